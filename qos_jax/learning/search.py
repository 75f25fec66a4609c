"""Search for the net gain's numbers: candidates route whole episodes, and the mean moves to the better ones.

What a slot costs later arrivals depends on the fleet, the load and the requests, and shows only over hundreds
of arrivals: too far ahead for trials of single actions, and too little in each decision for a policy
gradient. A dozen numbers say most of it, whether the net gain is by the closed form or by an impact that a
network has learned. Each update draws candidates about the mean, in antithetic pairs, lets all of them route
the same episodes (equal requests at equal times), and moves mean and spread by the candidates' ranks, every
episode counting alike. An episode starts from an empty fleet and is drained at its end. Each request pays its
expected quality given its predictions, which halves the noise.

Source: separable natural evolution strategies, Wierstra et al., JMLR 15, 2014, section 3.5 and table 1;
antithetic pairs: Salimans et al., arXiv 1703.03864.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.checks import COUNT, COUNT_OR_ZERO, DISCOUNT, POSITIVE, check_range, check_some_of
from qos_jax.devices import vmap_lanes
from qos_jax.errors import input_error
from qos_jax.learning.types import Learner, Metrics, SampleParams, paying_expected_quality
from qos_jax.policies.actor_critic import init_router
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.greedy_params import SEARCHED, Number
from qos_jax.policies.heuristics import projected_greedy
from qos_jax.policies.learned import learned_router
from qos_jax.policies.router_input import GREEDY, greedy_of, router_input, searched_numbers
from qos_jax.routing import EnvParams, EnvState, Observation, RoutingEnvironment

# (key, observation) -> action, [] int32
Route = Callable[[jax.Array, Observation], jax.Array]

# Added to the standard deviation of candidates in an episode, QoS: smaller differences hardly count.
SPREAD_FLOOR = 0.005


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Hyper-parameters of the search.

    Raises:
      InputError: a value out of its range, naming the field.
    """

    updates: int = 20  # in all; 0 = a training run leaves this phase out
    candidates: int = 12  # C of an update, half of them mirror images of the others
    num_envs: int = 32  # B, episodes that each of them routes
    steps: int = 1024  # T, decisions of an episode; short ones, from an empty fleet, underprice a slot
    spread: float = 0.5  # std of the candidates at the start, in steps of the numbers
    average: float = 0.95  # decay per update of the running mean of the numbers; 0 = the last ones alone
    numbers: tuple[str, ...] = ()  # that are searched, the others staying as they are; empty = all
    expected_quality: bool = True  # pay the expectation given the predictions, with half the noise

    def __post_init__(self) -> None:
        if self.numbers:
            check_some_of("numbers", self.numbers, SEARCHED)
        check_range(self, ("updates",), COUNT_OR_ZERO)
        check_range(self, ("candidates", "num_envs", "steps"), COUNT)
        if self.candidates % 2:
            raise input_error(f"{self.candidates} is odd", field="candidates", remedy="give an even number")
        check_range(self, ("spread",), POSITIVE)
        check_range(self, ("average",), DISCOUNT)


@struct.dataclass
class SearchState:
    """The state of a search over D numbers; vectors are in steps of the numbers, from those at the start."""

    params: Any  # of a router, its net gain's numbers those that the search began with
    centre: jax.Array  # [D] float32, mean of the candidates
    average: jax.Array  # [D] float32, its running mean: the result
    log_spread: jax.Array  # [D] float32, log std of the candidates about the mean
    key: jax.Array  # [] key
    update: jax.Array  # [] int32, updates done


def make_search(
    env: RoutingEnvironment, sample_params: SampleParams, network: NetworkConfig, config: SearchConfig
) -> Learner:
    """Return the search as a learner: it needs an arrival process, and keeps the network's weights.

    Candidates route by the net gain alone or, with ``learned_impact``, as the network does.
    """
    known = searched_numbers(network.information)
    searched = {name: known[name] for name in config.numbers or known}
    learned = learned_router(network)
    if config.expected_quality:
        sample_params = paying_expected_quality(sample_params)

    def init(key: jax.Array, params: Any | None = None) -> SearchState:
        key, network_key, env_key = jax.random.split(key, 3)
        if params is None:
            _, seen = env.reset(env_key, sample_params(env_key))
            greedy = greedy_of(None, network.allow_drop, network.information)
            example = router_input(
                seen,
                greedy,
                information=network.information,
                believes=network.believes,
                sees_caches=network.sees_caches,
            )
            params = init_router(network, network_key, example)
        params = jax.tree.map(jnp.copy, params)  # of its own: the state is donated
        centre, average = (jnp.zeros((len(searched),), jnp.float32) for _ in range(2))
        log_spread = jnp.full((len(searched),), jnp.log(jnp.float32(config.spread)))
        return SearchState(params, centre, average, log_spread, key, update=jnp.int32(0))

    def moved(params: Any, change: jax.Array) -> dict[str, jax.Array]:
        return moved_numbers(params[GREEDY], change, searched)

    def route_by(params: Any, numbers: dict[str, jax.Array]) -> Route:
        params = {**params, GREEDY: numbers}
        if network.learned_impact:
            return lambda key, seen: learned(params, key, seen)
        greedy = greedy_of(params, network.allow_drop, network.information)
        return lambda key, seen: projected_greedy(greedy, key, seen)

    def update(state: SearchState) -> tuple[SearchState, Metrics]:
        key, draw_key, params_key, episode_key = jax.random.split(state.key, 4)
        half = jax.random.normal(draw_key, (config.candidates // 2, len(searched)))
        drawn = jnp.concatenate([half, -half])
        changes = state.centre[None] + jnp.exp(state.log_spread)[None] * drawn
        candidates = jax.vmap(moved, (None, 0))(state.params, changes)
        params = vmap_lanes(sample_params)(jax.random.split(params_key, config.num_envs))
        keys = jax.random.split(episode_key, config.num_envs)

        def of_lane(key: jax.Array, params: EnvParams, router: Any, numbers: Any) -> jax.Array:
            return episode_qos(env, params, route_by(router, numbers), key, config.steps)

        is_small = env.config.serving.is_small and not network.learned_impact
        of_lanes = vmap_lanes(of_lane, (0, 0, None, None), is_small=is_small)

        def episodes_qos(numbers: dict[str, jax.Array]) -> jax.Array:
            return of_lanes(keys, params, state.params, numbers)

        qos = jax.lax.map(episodes_qos, candidates)  # [C, B], one candidate at a time to save memory
        centre, log_spread = natural_step(state.centre, state.log_spread, drawn, balanced(qos))
        reached = jnp.mean(qos, axis=-1)
        metrics = {
            "qos": jnp.mean(reached),
            "qos_of_best": jnp.max(reached),
            "qos_spread": jnp.std(reached),
            "spread": jnp.exp(jnp.mean(log_spread)),
            **moved_numbers(state.params[GREEDY], state.average, searched),
        }
        # Candidates differ by less than chance does, so the mean wanders and its running mean is nearer: at
        # first over all updates so far, weighted towards the later ones.
        count = state.update.astype(jnp.float32)
        follow = jnp.maximum(1.0 - config.average, 2.0 / (count + 2.0))
        average = state.average + follow * (centre - state.average)
        return SearchState(state.params, centre, average, log_spread, key, state.update + 1), metrics

    def result(state: SearchState) -> Any:
        return {**state.params, GREEDY: moved_numbers(state.params[GREEDY], state.average, searched)}

    return Learner(init, update, result, config.candidates * config.num_envs * config.steps)


def natural_step(
    centre: jax.Array, log_spread: jax.Array, drawn: jax.Array, score: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return mean and log spread after a natural-gradient step towards the candidates that rank higher.

    Equal candidates share the weights of their ranks: where all are equal, nothing moves.

    Args:
      centre: [D] float32, mean of the candidates, as ``log_spread``, their log std.
      log_spread: [D] float32, log std of the candidates.
      drawn: [C, D] float32, standard normal draws of the candidates.
      score: [C] float32, higher is better.
    """
    count, size = drawn.shape
    weights = jnp.asarray(utilities(count), jnp.float32)[jnp.argsort(jnp.argsort(-score))]
    equal = ((score[:, None] == score[None]) | jnp.eye(count, dtype=bool)).astype(jnp.float32)
    weights = equal @ weights / jnp.sum(equal, axis=-1)
    rate = (3.0 + math.log(size)) / (5.0 * math.sqrt(size))
    moved = centre + jnp.exp(log_spread) * (weights @ drawn)
    return moved, log_spread + 0.5 * rate * (weights @ (jnp.square(drawn) - 1.0))


def balanced(qos: jax.Array) -> jax.Array:
    """Return each candidate's lead in units of the episode's spread, mean over episodes, [C] float32.

    Under load candidates differ by several hundredths, else by thousandths: by the plain mean, what is best
    for light loads would not count. ``qos`` is [C, B], of C candidates in B episodes.
    """
    lead = qos - jnp.mean(qos, axis=0, keepdims=True)
    return jnp.mean(lead / (jnp.std(qos, axis=0, keepdims=True) + SPREAD_FLOOR), axis=-1)


def utilities(candidates: int) -> list[float]:
    """Return the weight of each candidate by its rank, best first; their sum is 0."""
    raw = [max(0.0, math.log(candidates / 2 + 1) - math.log(rank)) for rank in range(1, candidates + 1)]
    return [weight / sum(raw) - 1.0 / candidates for weight in raw]


def moved_numbers(
    numbers: dict[str, jax.Array], change: jax.Array, searched: Mapping[str, Number]
) -> dict[str, jax.Array]:
    """Return the net gain's numbers after a change [D] of those searched, in their steps, within bounds."""
    moved = dict(numbers)
    for index, (name, number) in enumerate(searched.items()):
        assert number.step is not None
        step = number.step * change[index]
        value = numbers[name] * jnp.exp(step) if number.logarithmic else numbers[name] + step
        moved[name] = jnp.clip(value, number.low, number.high)
    return moved


def episode_qos(
    env: RoutingEnvironment, params: EnvParams, route: Route, key: jax.Array, steps: int
) -> jax.Array:
    """Return the average QoS of ``steps`` requests routed from an empty fleet, [] float32.

    The fleet is drained after the last decision. Where failed requests are sent again, which is a decision,
    too, fewer have arrived.
    """
    reset_key, steps_key = jax.random.split(key)
    start = (*env.reset(reset_key, params), jnp.float32(0.0))

    def step(
        carry: tuple[EnvState, Observation, jax.Array], key: jax.Array
    ) -> tuple[tuple[EnvState, Observation, jax.Array], None]:
        state, seen, total = carry
        route_key, step_key = jax.random.split(key)
        state, result = env.step(step_key, state, route(route_key, seen), params)
        return (state, result.observation, total + jnp.sum(result.info.passed.qos)), None

    (state, _, total), _ = jax.lax.scan(step, start, jax.random.split(steps_key, steps))
    drained = env.drain(params, state)
    arrived = steps if state.world is None else jnp.maximum(state.arrived, 1).astype(jnp.float32)
    return (total + jnp.sum(drained.qos)) / arrived
