"""Search for the net gain's numbers: candidates route whole episodes, and the better ones are followed.

What a place costs those to come depends on the fleet, the load and the requests at hand, and shows only over
hundreds of arrivals: too far for trials of some actions, too little in each decision for a gradient of the
policy. Seventeen numbers say most of it. Each update draws candidates about the present ones, in pairs to
both sides, lets all of them route the same episodes (equal requests at equal times), and moves towards the
better by rank, every episode counting alike: separable natural evolution strategies. An episode starts from
an empty fleet and is drained, each request paying the quality that its predictions let expect, which halves
the noise. Source: Wierstra et al., "Natural evolution strategies", JMLR 15, 2014,
section 3.5 and table 1; pairs: Salimans et al., arXiv 1703.03864.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.devices import vmap_lanes
from qos_jax.errors import near_match
from qos_jax.learning.types import Learner, Metrics, SampleParams
from qos_jax.policies.actor_critic import init_router
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.greedy_params import GreedyParams
from qos_jax.policies.heuristics import projected_greedy
from qos_jax.policies.router_input import GREEDY, greedy_of, router_input
from qos_jax.routing import EnvParams, EnvState, Observation, RoutingEnvironment
from qos_jax.routing.fleet_state import pass_time
from qos_jax.routing.params import as_good_as_expected


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Hyper-parameters of the search.

    Raises:
      ValueError: a number out of range.
    """

    updates: int = 20  # in all; 0 = a training run leaves this phase out
    candidates: int = 12  # tried in an update, half of them mirror images of the others
    num_envs: int = 32  # episodes that each of them routes
    steps: int = 1024  # decisions of an episode; short ones, from an empty fleet, underprice a place
    spread: float = 0.5  # of the candidates at the start, in steps of SEARCHED
    average: float = 0.95  # of the numbers so far in their running mean, per update; 0 = the last ones alone
    numbers: tuple[str, ...] = ()  # that are searched, the others staying as they are; empty = all
    expected_quality: bool = True  # pay what predictions let expect, with half the noise, not the true one

    def __post_init__(self) -> None:
        for name in self.numbers:
            if name not in SEARCHED:
                raise ValueError(
                    f"numbers: {name!r} is not searched{near_match(name, SEARCHED)}; choose from "
                    f"{', '.join(SEARCHED)}"
                )
        if len(set(self.numbers)) < len(self.numbers):
            raise ValueError(f"numbers = {self.numbers}: name each once")
        if self.updates < 0:
            raise ValueError(f"updates = {self.updates}: must be at least 0")
        for name in ("num_envs", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.candidates < 2 or self.candidates % 2:
            raise ValueError(f"candidates = {self.candidates}: must be even, they are tried in pairs")
        if not 0 < self.spread < math.inf:
            raise ValueError(f"spread = {self.spread}: must be above 0")
        if not 0 <= self.average < 1:
            raise ValueError(f"average = {self.average}: must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Searched:
    """How a number is searched."""

    step: float  # a change of it that is felt; of its logarithm, if it is searched so
    low: float  # its bounds
    high: float
    log: bool = False


# Average QoS of an episode; candidates that differ by less than this in it are hardly told apart by it.
SPREAD_FLOOR = 0.005

# A step of each cost or gained about as much, where the price of load_aware_greedy matters.
SEARCHED = {
    "congestion_price": Searched(0.4, 0.01, 2.0, log=True),
    "price_by_occupancy": Searched(1.0, 0.25, 8.0),
    "price_by_load": Searched(0.3, 0.0, 3.0),
    "price_by_burst": Searched(0.3, -2.0, 2.0),
    "price_by_length": Searched(0.3, 0.0, 3.0),
    "price_by_level": Searched(0.3, -2.0, 2.0),
    "price_by_prefill": Searched(0.5, -2.0, 4.0),
    "price_by_pace": Searched(0.8, -4.0, 4.0),
    "price_by_slowness": Searched(0.6, -4.0, 4.0),
    "price_by_fleet": Searched(0.6, -4.0, 4.0),
    "margin": Searched(0.3, 0.03, 2.0, log=True),
    "margin_by_load": Searched(0.3, -2.0, 2.0),
    "margin_by_level": Searched(0.2, -2.0, 2.0),
    "margin_of_others": Searched(0.4, 0.1, 5.0, log=True),
    "penalty_weight": Searched(0.4, 0.1, 10.0, log=True),
    "penalty_by_load": Searched(0.4, -2.0, 2.0),
    "quality_slope": Searched(0.4, 0.0, 1.5),
}


@struct.dataclass
class SearchState:
    """All there is; vectors [D] are in steps of ``SEARCHED``, from the numbers that the search began with."""

    params: Any  # of a router, its greedy numbers those that the search began with
    centre: jax.Array  # [D] float32, the present ones of the numbers searched
    average: jax.Array  # [D] float32, their running mean
    log_spread: jax.Array  # [D] float32, log std of the candidates about the centre
    key: jax.Array  # [] key
    update: jax.Array  # [] int32, updates done


def make_search(
    env: RoutingEnvironment, sample_params: SampleParams, network: NetworkConfig, config: SearchConfig
) -> Learner:
    """Return the learner. It trains no weights: those of the network stay as they are.

    Args:
      env: the environment.
      sample_params: draws the parameters of one episode, with an arrival process.
      network: of the router whose parameters the numbers are part of.
      config: the learner's numbers.
    """
    searched = {name: SEARCHED[name] for name in config.numbers or SEARCHED}
    size = len(searched)
    rank_weights = jnp.asarray(utilities(config.candidates), jnp.float32)
    spread_rate = (3.0 + math.log(size)) / (5.0 * math.sqrt(size))

    def init(key: jax.Array, params: Any | None = None) -> SearchState:
        key, network_key, env_key = jax.random.split(key, 3)
        if params is None:
            _, seen = env.reset(env_key, sample_params(env_key))
            example = router_input(seen, greedy_of(None, network.allow_drop))
            params = init_router(network, network_key, example)
        return SearchState(
            params=jax.tree.map(jnp.copy, params),  # of its own: the state is donated
            centre=jnp.zeros((size,), jnp.float32),
            average=jnp.zeros((size,), jnp.float32),
            log_spread=jnp.full((size,), jnp.log(jnp.float32(config.spread))),
            key=key,
            update=jnp.int32(0),
        )

    def moved(params: Any, change: jax.Array) -> GreedyParams:
        start = greedy_of(params, network.allow_drop)
        return dataclasses.replace(start, **moved_numbers(params[GREEDY], change, searched))

    def paying(key: jax.Array) -> EnvParams:
        params = sample_params(key)
        return as_good_as_expected(params) if config.expected_quality else params

    def update(state: SearchState) -> tuple[SearchState, Metrics]:
        key, draw_key, params_key, episode_key = jax.random.split(state.key, 4)
        half = jax.random.normal(draw_key, (config.candidates // 2, size))
        drawn = jnp.concatenate([half, -half])
        spread = jnp.exp(state.log_spread)
        changes = state.centre[None] + spread[None] * drawn
        tried = jax.vmap(lambda change: moved(state.params, change))(changes)
        params_keys = jax.random.split(params_key, config.num_envs)
        params = vmap_lanes(paying)(params_keys)
        keys = jax.random.split(episode_key, config.num_envs)

        def average_qos(greedy: GreedyParams) -> jax.Array:
            routed = vmap_lanes(lambda key, params: _episode_qos(env, params, greedy, key, config.steps))
            return routed(keys, params)

        qos = jax.lax.map(average_qos, tried)  # [C, B]; one after the other: memory for one of them
        reached = jnp.mean(qos, axis=-1)
        weights = rank_weights[jnp.argsort(jnp.argsort(-balanced(qos)))]
        centre = state.centre + spread * (weights @ drawn)
        log_spread = state.log_spread + 0.5 * spread_rate * (weights @ (jnp.square(drawn) - 1.0))
        metrics = {
            "qos": jnp.mean(reached),
            "qos_of_best": jnp.max(reached),
            "qos_spread": jnp.std(reached),
            "spread": jnp.exp(jnp.mean(log_spread)),
            **moved_numbers(state.params[GREEDY], state.average, searched),
        }
        # Candidates differ by less than chance does, so the centre wanders, and the mean of many is nearer:
        # at first of what there is, the later the more.
        step = state.update.astype(jnp.float32)
        follow = jnp.maximum(1.0 - config.average, 2.0 / (step + 2.0))
        new = SearchState(
            params=state.params,
            centre=centre,
            average=state.average + follow * (centre - state.average),
            log_spread=log_spread,
            key=key,
            update=state.update + 1,
        )
        return new, metrics

    def found(state: SearchState) -> Any:
        return {**state.params, GREEDY: moved_numbers(state.params[GREEDY], state.average, searched)}

    return Learner(
        init=init,
        update=update,
        params=found,
        decisions_per_update=config.candidates * config.num_envs * config.steps,
    )


def balanced(qos: jax.Array) -> jax.Array:
    """What candidates are ranked by, [C]: their lead in each episode, in its own spread, mean over episodes.

    Under load candidates differ by several hundredths, else by thousandths: by the plain mean, what is best
    for light loads would not count.

    Args:
      qos: [C, B] float32, of C candidates in B episodes.
    """
    lead = qos - jnp.mean(qos, axis=0, keepdims=True)
    return jnp.mean(lead / (jnp.std(qos, axis=0, keepdims=True) + SPREAD_FLOOR), axis=-1)


def utilities(candidates: int) -> list[float]:
    """Weight of each candidate by its rank, best first; they add up to 0, and follow the better half."""
    raw = [max(0.0, math.log(candidates / 2 + 1) - math.log(rank)) for rank in range(1, candidates + 1)]
    return [weight / sum(raw) - 1.0 / candidates for weight in raw]


def moved_numbers(
    numbers: dict[str, jax.Array], change: jax.Array, searched: Mapping[str, Searched]
) -> dict[str, jax.Array]:
    """The numbers after a change of those searched, [D] float32 in their steps, within their bounds."""
    found = dict(numbers)
    for index, (name, how) in enumerate(searched.items()):
        step = how.step * change[index]
        value = numbers[name] * jnp.exp(step) if how.log else numbers[name] + step
        found[name] = jnp.clip(value, how.low, how.high)
    return found


def _episode_qos(
    env: RoutingEnvironment, params: EnvParams, greedy: GreedyParams, key: jax.Array, steps: int
) -> jax.Array:
    """Average QoS of ``steps`` requests that the greedy router routes from an empty fleet on, drained, []."""
    reset_key, steps_key = jax.random.split(key)
    start = (*env.reset(reset_key, params), jnp.float32(0.0))

    def step(
        carry: tuple[EnvState, Observation, jax.Array], key: jax.Array
    ) -> tuple[tuple[EnvState, Observation, jax.Array], None]:
        state, seen, total = carry
        route_key, step_key = jax.random.split(key)
        state, result = env.step(step_key, state, projected_greedy(greedy, route_key, seen), params)
        return (state, result.observation, total + jnp.sum(result.info.passed.qos)), None

    (state, _, total), _ = jax.lax.scan(step, start, jax.random.split(steps_key, steps))
    _, drained = pass_time(
        env.config.serving, params.profile, state.fleet, jnp.float32(jnp.inf), params.latency_limit_s
    )
    return (total + jnp.sum(drained.qos)) / steps
