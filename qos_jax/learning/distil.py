"""Policy improvement by simulation: the network's scores are regressed on the values of tried actions.

At states along the learner's own trajectory, a few likely actions are tried in the same simulated future, a
heuristic routing afterwards (``trials.py``), and the network's scores are regressed on the
differences of their values. One trial is noisy, and depends on true lengths that no router sees; the
regression averages over states that look alike, so what is learned is the expectation given the observation.
Trials are short, since the noise of a difference grows with every arrival. Requests in flight at the end
count by their chance to meet L, with the heuristic's margin for what is still to come (drained without
later arrivals, they would flatter crowded fleets); what they cost later arrivals is charged by the price of
crowding, times the lane's load. Beside it the calibration of predicted qualities is fitted to rows of the
tables.

Source: after Tesauro and Galperin, "On-line policy improvement using Monte-Carlo search", NeurIPS 1996.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from qos_jax import checks
from qos_jax.devices import share_out
from qos_jax.errors import input_error
from qos_jax.learning.rollout import EnvLanes, Transition, renew_lanes, rollout, start_lanes
from qos_jax.learning.trials import Trials, add_trials, empty_trials, try_actions
from qos_jax.learning.types import Learner, Metrics, SampleParams
from qos_jax.policies.actor_critic import actor_outputs, init_router, is_trained
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.greedy_params import GreedyParams
from qos_jax.policies.router_input import RouterInput, action_mask, greedy_of, router_input
from qos_jax.routing import RoutingEnvironment
from qos_jax.routing.fleet_state import empty_fleet
from qos_jax.routing.graph import PAIR_FEATURES
from qos_jax.routing.observation import observe
from qos_jax.routing.params import request_at


@dataclasses.dataclass(frozen=True)
class DistilConfig:
    """Hyper-parameters of the improvement by simulation.

    Raises:
      InputError: a value out of its range, naming the field.
    """

    updates: int = 60  # in all: the schedule's length; 0 = a training run leaves this phase out
    num_envs: int = 384  # B, environments; each is tried once an update
    steps: int = 8  # decisions between two trials of a lane
    horizon: int = 24  # decisions of a trial; its noise grows with it
    crowding: float = 1.0  # share of the price of crowding, times the load, paid for those left in flight
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
    average: float = 0.98  # decay per update of the running mean of the weights; 0 = the last ones alone

    def __post_init__(self) -> None:
        checks.check_range(self, ("updates",), checks.COUNT_OR_ZERO)
        counts = ("num_envs", "steps", "horizon", "batch_size", "gradient_steps", "quality_rows", "capacity")
        checks.check_range(self, counts, checks.COUNT)
        checks.check_range(self, ("candidates",), checks.Interval(2, checks.COUNT.high, whole=True))
        if self.capacity < self.num_envs:
            fault = f"{self.capacity} is less than the states of one update"
            raise input_error(fault, field="capacity", remedy=f"give at least num_envs, {self.num_envs}")
        checks.check_range(self, ("spread", "learning_rate", "max_grad_norm"), checks.POSITIVE)
        checks.check_range(self, ("crowding", "weight_decay"), checks.NON_NEGATIVE)
        checks.check_range(self, ("explore",), checks.SHARE)
        checks.check_range(self, ("average",), checks.DISCOUNT)


@struct.dataclass
class DistilState:
    """The whole state of the learner."""

    params: Any  # of ActorCritic
    average: Any  # running mean of the parameters: the result, less the noise of the last batches
    optimiser: Any  # optax state
    lanes: EnvLanes  # B environments
    trials: Trials
    key: jax.Array  # [] key
    update: jax.Array  # [] int32, updates done


def make_distil(
    env: RoutingEnvironment, sample_params: SampleParams, network: NetworkConfig, config: DistilConfig
) -> Learner:
    """Return the improvement by simulation as a learner.

    It needs an arrival process, and holds ``capacity`` inputs, about 8 kB each at 6 experts of 32 slots.
    """
    schedule, optimiser = _optimiser(config)

    def init(key: jax.Array, params: Any | None = None) -> DistilState:
        key, lanes_key, network_key = jax.random.split(key, 3)
        greedy = greedy_of(params, network.allow_drop)
        lanes = start_lanes(env, sample_params, greedy, lanes_key, config.num_envs)
        example = jax.tree.map(lambda leaf: leaf[0], lanes.input)
        if params is None:
            params = init_router(network, network_key, example)
        size = config.capacity // config.num_envs * config.num_envs
        trials = empty_trials(example, size, config.candidates)
        average = jax.tree.map(jnp.copy, params)  # a buffer of its own: the state is donated
        return DistilState(params, average, optimiser.init(params), lanes, trials, key, update=jnp.int32(0))

    def update(state: DistilState) -> tuple[DistilState, Metrics]:
        key, try_key, pick_key, learn_key = jax.random.split(state.key, 4)
        greedy = greedy_of(state.params, network.allow_drop)

        def act(key: jax.Array, inputs: RouterInput) -> tuple[jax.Array, None]:
            logits = actor_outputs(network, state.params, inputs).logits
            draw_key, explore_key = jax.random.split(key)
            explored = jnp.argmax(_perturbed(draw_key, logits, network, config), -1)
            explores = jax.random.uniform(explore_key, explored.shape) < config.explore
            return jnp.where(explores, explored, jnp.argmax(logits, -1)).astype(jnp.int32), None

        lanes, transitions, _ = rollout(env, greedy, act, state.lanes, config.steps)
        lanes, _ = renew_lanes(env, sample_params, greedy, lanes, config.steps)
        logits = actor_outputs(network, state.params, lanes.input).logits
        _, candidates = jax.lax.top_k(_perturbed(pick_key, logits, network, config), config.candidates)
        values = try_actions(
            env, greedy, lanes, candidates, try_key, horizon=config.horizon, crowding=config.crowding
        )
        trials = add_trials(state.trials, lanes.input, candidates, values)

        def learn(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
            params, optimiser_state = carry
            trial_key, row_key = jax.random.split(key)
            held = jnp.minimum(trials.count, trials.value.shape[0])
            rows = jax.random.randint(trial_key, (config.batch_size,), 0, held)
            tried = (trials.input, trials.action, trials.value)
            batch = share_out(jax.tree.map(lambda leaf: leaf[rows], tried))
            qualities = None
            if network.calibrate_quality:
                qualities = _idle_rows(env, greedy, lanes, row_key, config.quality_rows)
            gradient, metrics = jax.grad(_loss, argnums=1, has_aux=True)(network, params, batch, qualities)
            with jax.numpy_dtype_promotion("standard"):  # Optax counts in int32 and scales in float32
                change, optimiser_state = optimiser.update(gradient, optimiser_state, params)
            squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)]
            metrics["grad_norm"] = jnp.sqrt(jnp.sum(jnp.stack(squares)))
            return (optax.apply_updates(params, change), optimiser_state), metrics

        start, keys = (state.params, state.optimiser), jax.random.split(learn_key, config.gradient_steps)
        (params, optimiser_state), metrics = jax.lax.scan(learn, start, keys)
        metrics = jax.tree.map(jnp.mean, metrics) | _metrics_of(transitions, values)
        metrics["learning_rate"] = schedule((state.update * config.gradient_steps).astype(jnp.float32))
        average = optax.incremental_update(params, state.average, 1.0 - config.average)
        return DistilState(params, average, optimiser_state, lanes, trials, key, state.update + 1), metrics

    decisions = config.num_envs * (config.steps + config.candidates * config.horizon)
    return Learner(init, update, lambda state: state.average, decisions)


def _optimiser(config: DistilConfig) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Return the learning rate's schedule and AdamW with clipped gradients."""
    steps = max(config.updates, 1) * config.gradient_steps
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps)
    adam = optax.adamw(schedule, weight_decay=config.weight_decay, mask=is_trained)
    return schedule, optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)


def _perturbed(key: jax.Array, logits: jax.Array, network: NetworkConfig, config: DistilConfig) -> jax.Array:
    """Return logits whose k largest are k actions drawn without replacement at temperature ``spread``."""
    return logits * (network.temperature / config.spread) + jax.random.gumbel(key, logits.shape)


def _loss(
    network: NetworkConfig,
    params: Any,
    batch: tuple[RouterInput, jax.Array, jax.Array],
    qualities: tuple[RouterInput, jax.Array] | None,
) -> tuple[jax.Array, Metrics]:
    """Return the loss of value differences and, given rows of the tables, of corrected qualities.

    Args:
      network: of the router.
      params: of the router.
      batch: inputs [batch], actions tried [batch, C] and their values [batch, C], QoS.
      qualities: inputs [rows] of an idle fleet and true qualities [rows, N]; None = not calibrated.
    """
    inputs, action, value = batch
    scores = actor_outputs(network, params, inputs).logits * network.temperature
    value_loss, explained = _value_loss(scores, inputs, action, value)
    quality_loss = jnp.float32(0.0)
    if qualities is not None:
        idle, quality = qualities
        correction = actor_outputs(network, params, idle).quality_correction
        predicted = idle.graph.pair[..., PAIR_FEATURES.index("quality")]
        quality_loss = jnp.mean(jnp.square(predicted + correction - quality))
    metrics = {"value_loss": value_loss, "value_explained": explained, "quality_loss": quality_loss}
    return value_loss + quality_loss, metrics


def _value_loss(
    scores: jax.Array, inputs: RouterInput, action: jax.Array, value: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the mean square error of the differences between tried actions, and the share explained.

    Scores are [batch, A] QoS, actions and values [batch, C]; a masked action counts nothing.
    """
    mask = jnp.take_along_axis(action_mask(inputs, scores.shape[-1] > inputs.gain.shape[-1]), action, -1)
    predicted = jnp.where(mask, jnp.take_along_axis(scores, action, -1), 0.0)
    count = jnp.maximum(jnp.sum(mask, -1, keepdims=True, dtype=jnp.float32), 1.0)

    def centred(x: jax.Array) -> jax.Array:
        mean = jnp.sum(jnp.where(mask, x, 0.0), -1, keepdims=True) / count
        return jnp.where(mask, x - mean, 0.0)

    spread = jnp.sum(jnp.square(centred(value)))
    missed = jnp.sum(jnp.square(centred(predicted) - centred(value)))
    return missed / jnp.sum(count), 1.0 - missed / jnp.maximum(spread, 1e-9)


def _idle_rows(
    env: RoutingEnvironment, greedy: GreedyParams, lanes: EnvLanes, key: jax.Array, count: int
) -> tuple[RouterInput, jax.Array]:
    """Return requests drawn from the lanes' tables as an idle fleet sees them, and true qualities [rows, N].

    The calibration reads nothing else of the input, so XLA leaves the rest uncomputed.
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
        fleet = dataclasses.replace(idle, demand=demand)  # the recent arrivals give the usual qualities
        seen = observe(mine.known, fleet, request, jnp.int32(0))
        return router_input(seen, greedy, sees_caches=env.config.serving.prefix_entries > 0), request.quality

    return jax.vmap(one)(lane, row)


def _metrics_of(transitions: Transition, values: jax.Array) -> Metrics:
    """Return figures of the rollout (leaves [T, B]) and of the trials' values [B, C]."""
    return {
        "reward": jnp.mean(transitions.reward),
        "qos": jnp.sum(transitions.qos) / transitions.reward.size,
        "rejected_share": jnp.mean(transitions.rejected.astype(jnp.float32)),
        "advantage_of_best": jnp.mean(jnp.max(values, -1) - values[:, 0]),
    }
