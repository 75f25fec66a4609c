"""Domain randomisation: draw an environment's numbers, from load to fleet, as traced values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax import workload
from qos_jax.routing.params import EnvParams, make_params
from qos_jax.serving import FleetProfile, ServiceLimits
from qos_jax.training.scenario_config import ScenarioConfig
from qos_jax.training.world_ranges import WorldRanges, sample_world
from qos_jax.workload.capacity import traced_capacity_per_s
from qos_jax.workload.conversations import draw_conversations
from qos_jax.workload.drawn_requests import as_replicas
from qos_jax.workload.request_table import without_prefixes

# Folded into an episode's key; above its splits, which hash as small numbers do.
_ADDED_ERROR_DRAW, _REPLAY_DRAW, _STEADY_DRAW, _WORLD_DRAW, _TURNS_DRAW = range(1000, 1005)
_SWING_BINS = 24


@struct.dataclass
class Recorded:
    """A trace to train on, G + 1 requests."""

    rate_per_s: jax.Array  # [] float32, its mean arrival rate
    gap_s: jax.Array  # [G] float32, between its arrivals
    prompt_tokens: jax.Array  # [G + 1] int32
    output_tokens: jax.Array  # [G + 1] int32


def recorded_of(trace: workload.Trace) -> Recorded:
    """Return what training needs of a trace.

    Raises:
      InputError: its requests arrive at one instant, so that it has no rate.
    """
    return Recorded(
        rate_per_s=jnp.float32(workload.known_rate_per_s(trace)),
        gap_s=jnp.asarray(workload.gaps_s(trace.arrival_s[:-1], trace.arrival_s[1:])),
        prompt_tokens=jnp.asarray(trace.prompt_tokens),
        output_tokens=jnp.asarray(trace.output_tokens),
    )


@struct.dataclass
class Scenario:
    """What is randomised: a fleet, its models' figures or a table of real requests, and L."""

    profile: FleetProfile  # leaves [N]
    limits: ServiceLimits  # leaves [] float32, seconds
    calibration: workload.SyntheticParams  # figures of N experts, for synthetic requests
    table: workload.RequestTable | None = None  # [M'], real requests: drawn from instead, where given
    recorded: Recorded | None = None  # whose arrivals are replayed, and lengths drawn for synthetic requests
    impact_weight: jax.Array | float = 1.0  # of the paper's reward
    discount: jax.Array | float = 0.99  # gamma of the potential-based reward


def sample_params(
    key: jax.Array,
    config: ScenarioConfig,
    scenario: Scenario,
    world: WorldRanges | None = None,
    *,
    caches: bool = False,
) -> EnvParams:
    """Draw the numbers of one episode; jittable, ``jax.vmap`` it over keys.

    Where ``scenario.table`` is given, the error of its predictions is its own: ``error_level``,
    ``trace_share`` and the ranges of prompt and output lengths do not matter. Of a recorded trace,
    ``replay_share`` of the episodes have the gaps, at ``replay_rate`` of its rate, and their synthetic
    requests its lengths; load, bursts and swing do not matter to them. Errors added come on top, of a table
    and of synthetic requests; routers know the noise of lengths, never a bias (``known_log_std``).
    With ``caches``, requests say what they share, and ``conversation_share`` of the episodes are turns.
    Without a recorded trace, by ranges that add no error, and in any world, all other draws stay the same.
    """
    keys = iter(jax.random.split(key, 12))

    def uniform(ends: tuple[float, float]) -> jax.Array:
        return jax.random.uniform(next(keys), minval=ends[0], maxval=ends[1])

    def log_uniform(ends: tuple[float, float]) -> jax.Array:
        low, high = jnp.log(jnp.float32(ends[0])), jnp.log(jnp.float32(ends[1]))
        return jnp.exp(jax.random.uniform(next(keys), minval=low, maxval=high))

    profile = _vary_fleet(next(keys), config, scenario.profile)
    replay = None if scenario.recorded is None else _draw_replay(key, config, scenario.recorded)
    table = _draw_table(next(keys), config, scenario, replay)
    of_lengths = table if scenario.table is None else scenario.table
    if config.replicas:
        table, of_lengths = as_replicas(table, jnp), as_replicas(of_lengths, jnp)
    if caches:
        table = _sharing(jax.random.fold_in(key, _TURNS_DRAW), config, table)
    if config.arrival_rate is None:
        rate_per_s = log_uniform(config.load) * jnp.sum(traced_capacity_per_s(profile, table))
    else:
        rate_per_s = log_uniform(config.arrival_rate)
    if replay is not None:
        rate_per_s = jnp.where(replay.happens, replay.rate_per_s, rate_per_s)
    steady = jax.random.uniform(jax.random.fold_in(key, _STEADY_DRAW)) < config.steady_share
    process = workload.make_process(
        rate_per_s,
        burst_factor=jnp.where(steady, 1.0, log_uniform(config.burst_factor)),
        burst_mean_s=log_uniform(config.burst_mean_s),
        calm_mean_s=log_uniform(config.calm_mean_s),
        **_swinging(config, steady, uniform, log_uniform),
    )
    if replay is not None and scenario.recorded is not None:
        process = workload.with_recording(process, scenario.recorded.gap_s, replay.happens)
    latency_limit_s = scenario.limits.latency_limit_s * log_uniform(config.limit_scale)
    length_log_std = workload.measure_length_log_std(of_lengths)
    if config.adds_error:
        draw_key, miss_key = jax.random.split(jax.random.fold_in(key, _ADDED_ERROR_DRAW))
        error = _draw_error(draw_key, config)
        table = workload.with_prediction_error(miss_key, table, error)
        length_log_std = workload.known_log_std(length_log_std, error)
    telemetry, faults = None, None
    if world is not None:
        world_key = jax.random.fold_in(key, _WORLD_DRAW)
        telemetry, faults = sample_world(world_key, world, profile.max_running.shape[-1])
    return make_params(
        profile,
        table,
        dataclasses.replace(scenario.limits, latency_limit_s=latency_limit_s),
        length_log_std,
        process=process,
        impact_weight=scenario.impact_weight,
        discount=scenario.discount,
        telemetry=telemetry,
        faults=faults,
    )


def _swinging(
    config: ScenarioConfig,
    steady: jax.Array,
    uniform: Callable[[tuple[float, float]], jax.Array],
    log_uniform: Callable[[tuple[float, float]], jax.Array],
) -> dict[str, jax.Array]:
    """Return a rate that rises and falls as a sine from a random phase, in steps; {} if it never swings.

    In a ``steady`` episode, [] bool, its swing is 0.
    """
    if config.diurnal_swing[1] == 0:
        return {}
    phase = (jnp.arange(_SWING_BINS, dtype=jnp.float32) + 0.5) / _SWING_BINS + uniform((0.0, 1.0))
    return {
        "profile": 1.0
        - jnp.where(steady, 0.0, uniform(config.diurnal_swing)) * jnp.cos(2.0 * jnp.pi * phase),
        "bin_s": log_uniform(config.period_s) / _SWING_BINS,
    }


@struct.dataclass
class _Replay:
    """Whether an episode replays the recording, and how."""

    happens: jax.Array  # [] bool
    rate_per_s: jax.Array  # [] float32
    prompt_tokens: jax.Array  # [M] int32, of requests of the recording
    output_tokens: jax.Array  # [M] int32


def _draw_replay(key: jax.Array, config: ScenarioConfig, recorded: Recorded) -> _Replay:
    share_key, rate_key, rows_key = jax.random.split(jax.random.fold_in(key, _REPLAY_DRAW), 3)
    scale = _between_logs(jax.random.uniform(rate_key), config.replay_rate)
    rows = jax.random.randint(rows_key, (config.table_rows,), 0, recorded.prompt_tokens.shape[0])
    return _Replay(
        happens=jax.random.uniform(share_key) < config.replay_share,
        rate_per_s=recorded.rate_per_s * scale,
        prompt_tokens=recorded.prompt_tokens[rows],
        output_tokens=recorded.output_tokens[rows],
    )


def _draw_error(key: jax.Array, config: ScenarioConfig) -> workload.AddedError:
    """Draw the error added to the predictions of one episode, scalars."""
    names = [field.name for field in dataclasses.fields(workload.AddedError)]
    drawn = {}
    for name, one in zip(names, jax.random.split(key, len(names)), strict=True):
        low, high = getattr(config, name)
        drawn[name] = jax.random.uniform(one, minval=low, maxval=high)
    return workload.AddedError(**drawn)


def _vary_fleet(key: jax.Array, config: ScenarioConfig, profile: FleetProfile) -> FleetProfile:
    """Draw a factor on all times of each expert, and one on each coefficient."""
    speed_key, part_key = jax.random.split(key)
    shape = profile.decode_base_s.shape
    speed = jnp.exp(config.speed_log_std * jax.random.normal(speed_key, shape))
    changed = {}
    # The draws go by these names' order: what may be missing is no part of it.
    names = sorted(set(vars(profile)) - {"decode_knots", "context_limit_tokens"})
    for index, name in enumerate(names):
        if name.endswith("_s") and name != "network_rtt_s":
            part = jax.random.normal(jax.random.fold_in(part_key, index), shape)
            value = jnp.asarray(getattr(profile, name))
            changed[name] = value * speed * jnp.exp(config.part_log_std * part)
    part = jax.random.normal(jax.random.fold_in(part_key, len(names)), shape)
    factor = speed * jnp.exp(config.part_log_std * part)
    knots = tuple(
        dataclasses.replace(
            knot, fixed_s=knot.fixed_s * factor, per_context_token_s=knot.per_context_token_s * factor
        )
        for knot in profile.decode_knots
    )
    return dataclasses.replace(profile, **changed, decode_knots=knots)


def _draw_table(
    key: jax.Array, config: ScenarioConfig, scenario: Scenario, replay: _Replay | None
) -> workload.RequestTable:
    rows = config.table_rows
    if scenario.table is not None:
        chosen = jax.random.randint(key, (rows,), 0, scenario.table.prompt_tokens.shape[0])
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], scenario.table)
    error_key, order_key, kind_key, own_key, trace_key, length_key = jax.random.split(key, 6)
    low, high = config.error_level
    error_level = jax.random.uniform(error_key, minval=low, maxval=high)
    models = dataclasses.replace(scenario.calibration, error_level=error_level)
    if config.shuffle_models:
        models = _reordered(models, jax.random.permutation(order_key, models.num_experts))
    own = workload.sample_table(own_key, models, rows)
    prompt_tokens, output_tokens = _draw_lengths(length_key, config)
    like_trace = jax.random.uniform(kind_key) < config.trace_share
    if replay is not None:
        prompt_tokens = jnp.where(replay.happens, replay.prompt_tokens, prompt_tokens)
        output_tokens = jnp.where(replay.happens, replay.output_tokens, output_tokens)
        like_trace = like_trace | replay.happens
    recorded = workload.table_for_trace(trace_key, models, prompt_tokens, output_tokens)
    return jax.tree.map(lambda a, b: jnp.where(like_trace, a, b), recorded, own)


def _sharing(key: jax.Array, config: ScenarioConfig, table: workload.RequestTable) -> workload.RequestTable:
    """Return the requests as turns of conversations, or as they are and sharing nothing, by chance."""
    share_key, turns_key = jax.random.split(key)
    turns = draw_conversations(
        turns_key,
        without_prefixes(table),
        mean_turns=config.conversation_turns,
        open_conversations=config.open_conversations,
        limit_tokens=config.conversation_limit_tokens,
    )
    assert turns.prefix_group is not None
    assert turns.prefix_tokens is not None
    talks = jax.random.uniform(share_key) < config.conversation_share
    return dataclasses.replace(
        turns,
        prompt_tokens=jnp.where(talks, turns.prompt_tokens, table.prompt_tokens),
        prefix_group=jnp.where(talks, turns.prefix_group, -1),
        prefix_tokens=jnp.where(talks, turns.prefix_tokens, 0),
    )


def _draw_lengths(key: jax.Array, config: ScenarioConfig) -> tuple[jax.Array, jax.Array]:
    """Draw prompt and output tokens of an episode with log-normal lengths, two [M] int32."""
    prompt_key, output_key, range_key = jax.random.split(key, 3)
    spans = jax.random.uniform(range_key, (4,))

    def log_normal(key: jax.Array, name: str, shares: jax.Array, most: float) -> jax.Array:
        median = _between_logs(shares[0], getattr(config, f"{name}_median"))
        low, high = getattr(config, f"{name}_log_std")
        log_std = low + shares[1] * (high - low)
        tokens = median * jnp.exp(log_std * jax.random.normal(key, (config.table_rows,)))
        return jnp.clip(jnp.round(tokens), 1.0, most).astype(jnp.int32)

    prompt_tokens = log_normal(prompt_key, "prompt", spans[:2], 8192.0)
    return prompt_tokens, log_normal(output_key, "output", spans[2:], 2048.0)


def _between_logs(share: jax.Array, ends: tuple[float, float]) -> jax.Array:
    """Return the number a share of the way from one end to the other on a logarithmic scale."""
    return jnp.float32(ends[0]) * jnp.float32(ends[1] / ends[0]) ** share


def _reordered(models: workload.SyntheticParams, order: jax.Array) -> workload.SyntheticParams:
    """Return the models in another order over the servers; ``order`` [N] int32, traced."""
    per_task = ("quality_threshold", "length_log_mean", "length_log_std", "runaway_threshold", "cap_tokens")
    moved: dict[str, Any] = {name: jnp.asarray(getattr(models, name))[:, order] for name in per_task}
    moved |= {name: jnp.asarray(getattr(models, name))[order] for name in ("quality_bias", "length_bias_log")}
    return dataclasses.replace(models, **moved)
