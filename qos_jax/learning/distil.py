"""Policy improvement by simulation: the network learns what each action came to when it was tried.

At states on the learner's own way, a few likely actions are tried in the same simulated future, a heuristic
routing on (``action_values``), and the network's scores are regressed on the differences of their values.
One trial is noisy, and knows true lengths that no router sees; the regression averages over states that
look alike, so what is learned is the expectation given what is seen. Trials are short, since the noise of a
difference grows with every arrival. Those in flight at the end count by their chance to meet L, with the
heuristic's margin for what is still to come (drained without company, they would flatter crowded
fleets); what they cost later arrivals is charged by its price of crowding, times the lane's load.
Beside it the calibration of predicted qualities is fitted to the rows of the tables.
Source: after Tesauro and Galperin, "On-line policy improvement using Monte-Carlo search", NeurIPS 1996.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from qos_jax.devices import share_out, vmap_lanes
from qos_jax.learning.rollout import EnvLanes, renew_lanes, rollout, start_lanes
from qos_jax.learning.types import Learner, Metrics, SampleParams
from qos_jax.policies.action_values import action_values, with_expected_quality
from qos_jax.policies.actor_critic import RouterOutput, actor_function, init_router, is_trained
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.greedy_params import GreedyParams
from qos_jax.policies.heuristics import projected_greedy
from qos_jax.policies.net_gain import crowding_cost, latency_margin
from qos_jax.policies.router_input import RouterInput, action_mask, greedy_of, router_input
from qos_jax.routing import EnvParams, RoutingEnvironment
from qos_jax.routing.fleet_state import empty_fleet
from qos_jax.routing.graph import PAIR_FEATURES
from qos_jax.routing.impact import expected_qos_in_flight
from qos_jax.routing.observation import observe
from qos_jax.routing.params import request_at
from qos_jax.workload.capacity import traced_capacity_per_s


@dataclasses.dataclass(frozen=True)
class DistilConfig:
    """Hyper-parameters of the improvement by simulation.

    Raises:
      ValueError: a number out of range.
    """

    updates: int = 60  # in all: the schedule's length; 0 = a training run leaves this phase out
    num_envs: int = 384  # B, environments; each is tried once an update
    steps: int = 8  # decisions between two trials of a lane
    horizon: int = 24  # decisions of a trial; noise grows with it, what it adds to the mean does not
    crowding: float = (
        1.0  # times the load, share of the price of crowding paid for those in flight at its end
    )
    candidates: int = 3  # C, actions tried
    spread: float = 0.05  # QoS, temperature at which candidates and explored actions are drawn
    explore: float = 0.08  # share of decisions drawn so, instead of the most likely
    capacity: int = 65536  # tried states kept
    batch_size: int = 1024  # tried states of a gradient step
    gradient_steps: int = 1  # per update
    quality_rows: int = 1024  # rows of the tables that each gradient step calibrates qualities on
    learning_rate: float = 1e-3  # at the start, decayed to 0 by a cosine
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    average: float = 0.98  # of the weights so far in their running mean, per update; 0 = the last ones alone

    def __post_init__(self) -> None:
        if self.updates < 0:
            raise ValueError(f"updates = {self.updates}: must be at least 0")
        counts = ("num_envs", "steps", "horizon", "batch_size", "gradient_steps", "quality_rows")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.candidates < 2:
            raise ValueError(f"candidates = {self.candidates}: at least 2 can be compared")
        if self.capacity < self.num_envs:
            raise ValueError(f"capacity = {self.capacity}: less than one update's {self.num_envs} states")
        if not self.spread > 0 or not 0 <= self.explore <= 1 or not self.learning_rate > 0:
            raise ValueError("spread and learning_rate must be above 0, explore in [0, 1]")
        if not 0 <= self.average < 1:
            raise ValueError(f"average = {self.average}: must be in [0, 1)")


@struct.dataclass
class Trials:
    """A ring of D tried states."""

    input: RouterInput  # leaves [D, ...]
    action: jax.Array  # [D, C] int32, what was tried
    value: jax.Array  # [D, C] float32, QoS it came to
    count: jax.Array  # [] int32, tried since the start


@struct.dataclass
class DistilState:
    """All there is."""

    params: Any  # of ActorCritic
    average: Any  # running mean of the parameters: what is learned, less the noise of the last batches
    optimiser: Any
    lanes: EnvLanes
    trials: Trials
    key: jax.Array  # [] key
    update: jax.Array  # [] int32, updates done


def make_distil(
    env: RoutingEnvironment, sample_params: SampleParams, network: NetworkConfig, config: DistilConfig
) -> Learner:
    """Return the learner. Memory: ``capacity`` inputs, about 8 kB each at 6 experts of 32 slots."""
    actor = actor_function(network)
    schedule = optax.cosine_decay_schedule(
        config.learning_rate, max(config.updates, 1) * config.gradient_steps
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=is_trained),
    )

    def init(key: jax.Array, params: Any | None = None) -> DistilState:
        key, lanes_key, network_key = jax.random.split(key, 3)
        greedy = greedy_of(params, network.allow_drop)
        lanes = start_lanes(env, sample_params, greedy, lanes_key, config.num_envs)
        one = jax.tree.map(lambda leaf: leaf[0], lanes.input)
        if params is None:
            params = init_router(network, network_key, one)
        room = config.capacity // config.num_envs * config.num_envs
        tried = (room, config.candidates)
        return DistilState(
            params=params,
            average=jax.tree.map(jnp.copy, params),  # a buffer of its own: the state is donated
            optimiser=optimiser.init(params),
            lanes=lanes,
            trials=Trials(
                input=jax.tree.map(lambda leaf: jnp.zeros((room, *leaf.shape), leaf.dtype), one),
                action=jnp.zeros(tried, jnp.int32),
                value=jnp.zeros(tried, jnp.float32),
                count=jnp.int32(0),
            ),
            key=key,
            update=jnp.int32(0),
        )

    def apply(params: Any, inputs: RouterInput) -> RouterOutput:
        return jax.vmap(actor, (None, 0))(params, inputs)

    def drawn(key: jax.Array, logits: jax.Array) -> jax.Array:
        """Logits whose k largest are k actions drawn without replacement at temperature ``spread``."""
        return logits * (network.temperature / config.spread) + jax.random.gumbel(key, logits.shape)

    def update(state: DistilState) -> tuple[DistilState, Metrics]:
        key, try_key, pick_key, learn_key = jax.random.split(state.key, 4)
        greedy = greedy_of(state.params, network.allow_drop)

        def act(key: jax.Array, inputs: RouterInput) -> tuple[jax.Array, None]:
            logits = apply(state.params, inputs).logits
            draw_key, explore_key = jax.random.split(key)
            explored = jnp.argmax(drawn(draw_key, logits), -1)
            wander = jax.random.uniform(explore_key, explored.shape) < config.explore
            return jnp.where(wander, explored, jnp.argmax(logits, -1)).astype(jnp.int32), None

        lanes, transitions, _ = rollout(env, greedy, act, state.lanes, config.steps)
        lanes, _ = renew_lanes(env, sample_params, greedy, lanes, config.steps)
        logits = apply(state.params, lanes.input).logits
        _, candidates = jax.lax.top_k(drawn(pick_key, logits), config.candidates)

        def tried(key: jax.Array, params: EnvParams, env_state: Any, actions: jax.Array) -> jax.Array:
            price = config.crowding * _load(params)
            params, env_state = with_expected_quality(params, env_state)
            return action_values(
                env,
                params,
                env_state,
                actions,
                key,
                projected_greedy,
                greedy,
                config.horizon,
                later=lambda seen: (
                    expected_qos_in_flight(seen, latency_margin(greedy, seen))
                    - price * crowding_cost(greedy, seen)
                ),
            )

        keys = jax.random.split(try_key, config.num_envs)
        values = vmap_lanes(tried)(keys, lanes.params, lanes.state, candidates)
        trials = _kept(state.trials, lanes.input, candidates, values)

        def learn(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
            params, optimiser_state = carry
            trial_key, row_key = jax.random.split(key)
            held = jnp.minimum(trials.count, trials.value.shape[0])
            rows = jax.random.randint(trial_key, (config.batch_size,), 0, held)
            inputs, action, tried_value = share_out(
                jax.tree.map(lambda leaf: leaf[rows], (trials.input, trials.action, trials.value))
            )

            def loss(params: Any) -> tuple[jax.Array, Metrics]:
                output = apply(params, inputs)
                scores = output.logits * network.temperature
                value_loss, explained = _value_loss(scores, inputs, action, tried_value)
                quality_loss = jnp.float32(0.0)
                if network.calibrate_quality:
                    idle, quality = _rows(env, greedy, lanes, row_key, config.quality_rows)
                    correction = apply(params, idle).quality_correction
                    told = idle.graph.pair[..., PAIR_FEATURES.index("quality")]
                    quality_loss = jnp.mean(jnp.square(told + correction - quality))
                metrics = {
                    "value_loss": value_loss,
                    "value_explained": explained,
                    "quality_loss": quality_loss,
                }
                return value_loss + quality_loss, metrics

            gradient, metrics = jax.grad(loss, has_aux=True)(params)
            with jax.numpy_dtype_promotion("standard"):  # Optax counts in int32 and scales in float32
                change, optimiser_state = optimiser.update(gradient, optimiser_state, params)
            squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)]
            metrics["grad_norm"] = jnp.sqrt(jnp.sum(jnp.stack(squares)))
            return (optax.apply_updates(params, change), optimiser_state), metrics

        (params, optimiser_state), metrics = jax.lax.scan(
            learn, (state.params, state.optimiser), jax.random.split(learn_key, config.gradient_steps)
        )
        routed = config.steps * config.num_envs
        metrics = jax.tree.map(jnp.mean, metrics) | {
            "reward": jnp.mean(transitions.reward),
            "qos": jnp.sum(transitions.qos) / routed,
            "rejected_share": jnp.mean(transitions.rejected.astype(jnp.float32)),
            "advantage_of_best": jnp.mean(jnp.max(values, -1) - values[:, 0]),
            "learning_rate": schedule((state.update * config.gradient_steps).astype(jnp.float32)),
        }
        new = DistilState(
            params=params,
            average=optax.incremental_update(params, state.average, 1.0 - config.average),
            optimiser=optimiser_state,
            lanes=lanes,
            trials=trials,
            key=key,
            update=state.update + 1,
        )
        return new, metrics

    return Learner(
        init=init,
        update=update,
        params=lambda state: state.average,
        decisions_per_update=config.num_envs * (config.steps + config.candidates * config.horizon),
    )


def _load(params: EnvParams) -> jax.Array:
    """Arrival rate as a share of the fleet's capacity, [] float32: a place is worth what comes for it."""
    assert params.process is not None
    capacity_per_s = jnp.sum(traced_capacity_per_s(params.profile, params.table))
    return params.process.rate_per_s / capacity_per_s


def _kept(trials: Trials, inputs: RouterInput, action: jax.Array, value: jax.Array) -> Trials:
    """The ring with one update's trials over the oldest."""
    at = trials.count % trials.value.shape[0]

    def write(ring: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(ring, new, at, axis=0)

    return Trials(
        input=jax.tree.map(write, trials.input, inputs),
        action=write(trials.action, action),
        value=write(trials.value, value),
        count=trials.count + value.shape[0],
    )


def _value_loss(
    scores: jax.Array, inputs: RouterInput, action: jax.Array, value: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean square error of the differences between tried actions, and the share of them explained.

    Args:
      scores: [batch, A] float32, QoS.
      inputs: what they are of; a masked action says nothing.
      action: [batch, C] int32.
      value: [batch, C] float32.
    """
    mask = jnp.take_along_axis(action_mask(inputs, scores.shape[-1] > inputs.gain.shape[-1]), action, -1)
    told = jnp.where(mask, jnp.take_along_axis(scores, action, -1), 0.0)
    count = jnp.maximum(jnp.sum(mask, -1, keepdims=True, dtype=jnp.float32), 1.0)

    def centred(x: jax.Array) -> jax.Array:
        mean = jnp.sum(jnp.where(mask, x, 0.0), -1, keepdims=True) / count
        return jnp.where(mask, x - mean, 0.0)

    spread = jnp.sum(jnp.square(centred(value)))
    missed = jnp.sum(jnp.square(centred(told) - centred(value)))
    return missed / jnp.sum(count), 1.0 - missed / jnp.maximum(spread, 1e-9)


def _rows(
    env: RoutingEnvironment, greedy: GreedyParams, lanes: EnvLanes, key: jax.Array, count: int
) -> tuple[RouterInput, jax.Array]:
    """Requests drawn from the lanes' tables, as the fleet sees them if idle, and true qualities [rows, N].

    The calibration reads nothing else, so XLA leaves the rest of the input uncomputed.
    """
    lane_key, row_key = jax.random.split(key)
    num_envs, num_rows = lanes.params.table.prompt_tokens.shape
    lane = jax.random.randint(lane_key, (count,), 0, num_envs)
    row = jax.random.randint(row_key, (count,), 0, num_rows)
    idle = empty_fleet(env.config.serving)

    def one(lane: jax.Array, row: jax.Array) -> tuple[RouterInput, jax.Array]:
        of_all = dataclasses.replace(lanes.params, process=None)
        mine, demand = jax.tree.map(lambda leaf: leaf[lane], (of_all, lanes.state.fleet.demand))
        request = request_at(mine.table, row)
        fleet = dataclasses.replace(idle, demand=demand)  # it knows what qualities are usual
        seen = observe(mine.known, fleet, request, jnp.int32(0))
        return router_input(seen, greedy), request.quality

    return jax.vmap(one)(lane, row)
