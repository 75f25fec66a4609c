"""Domain randomisation: draw an environment's numbers, from load to fleet, as traced values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.params import EnvParams, make_params
from qos_jax.serving import FleetProfile
from qos_jax.workload import (
    AddedError,
    RequestTable,
    SyntheticParams,
    known_log_std,
    make_process,
    measure_prediction_error,
    sample_table,
    table_for_trace,
    with_prediction_error,
)
from qos_jax.workload.capacity import traced_capacity_per_s

_FROM_ZERO = (
    "swing",
    "error_level",
    "prompt_log_std",
    "output_log_std",
    "length_noise_log",
    "quality_noise",
)
_BIASES = {"length_bias_log": 10.0, "quality_bias": 1.0}  # of either sign, and how large at most
_ADDED_ERROR_DRAW = 1000  # folded into an episode's key; above its splits, which hash as small numbers do
_SWING_BINS = 24


@dataclasses.dataclass(frozen=True)
class ScenarioConfig:
    """Ranges that each training episode draws from, (lowest, highest); equal ends fix a number.

    Raises:
      ValueError: a range out of order or out of bounds.
    """

    table_rows: int = 1024  # M, requests an episode draws from
    load: tuple[float, float] = (0.25, 1.25)  # arrival rate / the fleet's capacity, log-uniform
    arrival_rate: tuple[float, float] | None = None  # requests / s, log-uniform, in place of the load
    burst_factor: tuple[float, float] = (1.0, 32.0)  # rate in bursts / rate in calm, log-uniform
    burst_mean_s: tuple[float, float] = (1.0, 60.0)  # seconds, log-uniform
    calm_mean_s: tuple[float, float] = (5.0, 120.0)  # seconds, log-uniform
    swing: tuple[float, float] = (0.0, 0.9)  # share of its mean by which the rate rises and falls, uniform
    period_s: tuple[float, float] = (30.0, 600.0)  # seconds, of that sine, log-uniform; it starts anywhere
    limit_scale: tuple[float, float] = (0.8, 1.25)  # L over the fleet's own, log-uniform
    speed_log_std: float = 0.1  # of a common factor on all times of an expert, log-normal
    part_log_std: float = 0.05  # of a factor on each single coefficient, log-normal
    shuffle_models: bool = False  # deal the models' qualities and lengths to the servers anew
    error_level: tuple[float, float] = (0.7, 1.3)  # of predictions, 1 = as real ones, uniform
    trace_share: float = 0.5  # share of episodes with log-normal lengths such as traces have
    prompt_median: tuple[float, float] = (100.0, 2500.0)  # tokens, of such an episode, log-uniform
    output_median: tuple[float, float] = (12.0, 300.0)  # tokens, likewise
    prompt_log_std: tuple[float, float] = (0.4, 1.1)  # uniform
    output_log_std: tuple[float, float] = (0.4, 1.2)  # uniform
    length_bias_log: tuple[float, float] = (0.0, 0.0)  # added to log predicted lengths, unknown, uniform
    length_noise_log: tuple[float, float] = (0.0, 0.0)  # std of a log-normal error of them, known, uniform
    quality_bias: tuple[float, float] = (0.0, 0.0)  # added to predicted qualities, uniform
    quality_noise: tuple[float, float] = (0.0, 0.0)  # std of a normal error of them, uniform

    def __post_init__(self) -> None:
        if self.table_rows < 2:
            raise ValueError(f"table_rows = {self.table_rows}: must be at least 2")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _BIASES:
                most = _BIASES[field.name]
                if not -most <= value[0] <= value[1] <= most:
                    raise ValueError(
                        f"{field.name} = {value}: give (lowest, highest), in order, within +-{most:g}"
                    )
            elif isinstance(value, tuple):
                positive = field.name not in _FROM_ZERO
                if not 0 <= value[0] <= value[1] < float("inf") or (positive and value[0] == 0):
                    raise ValueError(f"{field.name} = {value}: give (lowest, highest), in order, above 0")
        if self.swing[1] >= 1:
            raise ValueError(f"swing = {self.swing}: must be below 1, or nothing arrives for a while")
        for name in ("speed_log_std", "part_log_std"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 or more")
        if not 0 <= self.trace_share <= 1:
            raise ValueError(f"trace_share = {self.trace_share}: must be in [0, 1]")

    @property
    def adds_error(self) -> bool:
        """Whether predictions may be made worse than they are."""
        return self.adds_quality_error or any(self.length_bias_log + self.length_noise_log)

    @property
    def adds_quality_error(self) -> bool:
        """Whether predicted qualities may be: requests are then not as good as predicted, on average."""
        return any(self.quality_bias + self.quality_noise)


@struct.dataclass
class Scenario:
    """What the draws vary: a fleet, its models' figures or a table of real requests, and L."""

    profile: FleetProfile  # leaves [N]
    latency_limit_s: jax.Array  # [] float32, seconds per output token
    calibration: SyntheticParams  # figures of N experts, for synthetic requests
    table: RequestTable | None = None  # [M'], real requests: drawn from instead, where given
    impact_weight: jax.Array | float = 1.0  # of the paper's reward
    discount: jax.Array | float = 0.99  # gamma of the potential-based reward


def sample_params(key: jax.Array, config: ScenarioConfig, scenario: Scenario) -> EnvParams:
    """Draw the numbers of one episode; jittable, ``jax.vmap`` it over keys.

    Where ``scenario.table`` is given, the error of its predictions is its own: ``error_level``,
    ``trace_share`` and the ranges of prompt and output lengths do not matter. Errors added come on top, of a
    table and of synthetic requests; a router is told of the noise of lengths, never of a bias
    (``known_log_std``). Ranges that add none leave every other draw as it is, and are left by it.
    """
    keys = iter(jax.random.split(key, 12))

    def uniform(ends: tuple[float, float]) -> jax.Array:
        return jax.random.uniform(next(keys), minval=ends[0], maxval=ends[1])

    def log_uniform(ends: tuple[float, float]) -> jax.Array:
        low, high = jnp.log(jnp.float32(ends[0])), jnp.log(jnp.float32(ends[1]))
        return jnp.exp(jax.random.uniform(next(keys), minval=low, maxval=high))

    profile = _vary_fleet(next(keys), config, scenario.profile)
    table = _draw_table(next(keys), config, scenario)
    if config.arrival_rate is None:
        rate_per_s = log_uniform(config.load) * jnp.sum(traced_capacity_per_s(profile, table))
    else:
        rate_per_s = log_uniform(config.arrival_rate)
    process = make_process(
        rate_per_s,
        burst_factor=log_uniform(config.burst_factor),
        burst_mean_s=log_uniform(config.burst_mean_s),
        calm_mean_s=log_uniform(config.calm_mean_s),
        **_swinging(config, uniform, log_uniform),
    )
    latency_limit_s = scenario.latency_limit_s * log_uniform(config.limit_scale)
    measured = measure_prediction_error(scenario.table if scenario.table is not None else table)
    length_log_std = measured.length_log_std
    if config.adds_error:
        draw_key, miss_key = jax.random.split(jax.random.fold_in(key, _ADDED_ERROR_DRAW))
        error = _draw_error(draw_key, config)
        table = with_prediction_error(miss_key, table, error)
        length_log_std = known_log_std(length_log_std, error)
    return make_params(
        profile,
        table,
        latency_limit_s,
        length_log_std,
        process=process,
        impact_weight=scenario.impact_weight,
        discount=scenario.discount,
    )


def _swinging(
    config: ScenarioConfig,
    uniform: Callable[[tuple[float, float]], jax.Array],
    log_uniform: Callable[[tuple[float, float]], jax.Array],
) -> dict[str, jax.Array]:
    """A rate that rises and falls as a sine from a phase of its own, in steps; none if it never swings."""
    if config.swing[1] == 0:
        return {}
    phase = (jnp.arange(_SWING_BINS, dtype=jnp.float32) + 0.5) / _SWING_BINS + uniform((0.0, 1.0))
    return {
        "profile": 1.0 - uniform(config.swing) * jnp.cos(2.0 * jnp.pi * phase),
        "bin_s": log_uniform(config.period_s) / _SWING_BINS,
    }


def _draw_error(key: jax.Array, config: ScenarioConfig) -> AddedError:
    """How much worse the predictions of one episode are, scalars."""
    names = [field.name for field in dataclasses.fields(AddedError)]
    drawn = {}
    for name, one in zip(names, jax.random.split(key, len(names)), strict=True):
        low, high = getattr(config, name)
        drawn[name] = jax.random.uniform(one, minval=low, maxval=high)
    return AddedError(**drawn)


def _vary_fleet(key: jax.Array, config: ScenarioConfig, profile: FleetProfile) -> FleetProfile:
    """Speed up and slow down each expert, as a whole and coefficient by coefficient."""
    speed_key, part_key = jax.random.split(key)
    shape = profile.decode_base_s.shape
    speed = jnp.exp(config.speed_log_std * jax.random.normal(speed_key, shape))
    changed = {}
    for index, name in enumerate(sorted(vars(profile))):
        if name.endswith("_s") and name != "network_rtt_s":
            part = jax.random.normal(jax.random.fold_in(part_key, index), shape)
            value = jnp.asarray(getattr(profile, name))
            changed[name] = value * speed * jnp.exp(config.part_log_std * part)
    return dataclasses.replace(profile, **changed)


def _draw_table(key: jax.Array, config: ScenarioConfig, scenario: Scenario) -> RequestTable:
    rows = config.table_rows
    if scenario.table is not None:
        chosen = jax.random.randint(key, (rows,), 0, scenario.table.prompt_tokens.shape[0])
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], scenario.table)
    error_key, order_key, kind_key, own_key, trace_key, length_key = jax.random.split(key, 6)
    low, high = config.error_level
    models = dataclasses.replace(
        scenario.calibration, error_level=jax.random.uniform(error_key, minval=low, maxval=high)
    )
    if config.shuffle_models:
        models = _reordered(models, jax.random.permutation(order_key, models.num_experts))
    own = sample_table(own_key, models, rows)
    prompt_key, output_key, range_key = jax.random.split(length_key, 3)
    spans = jax.random.uniform(range_key, (4,))

    def log_normal(key: jax.Array, median: jax.Array, log_std: jax.Array, most: float) -> jax.Array:
        tokens = median * jnp.exp(log_std * jax.random.normal(key, (rows,)))
        return jnp.clip(jnp.round(tokens), 1.0, most).astype(jnp.int32)

    def between(share: jax.Array, ends: tuple[float, float], log: bool) -> jax.Array:
        if not log:
            return ends[0] + share * (ends[1] - ends[0])
        return jnp.float32(ends[0]) * jnp.float32(ends[1] / ends[0]) ** share

    recorded = table_for_trace(
        trace_key,
        models,
        log_normal(
            prompt_key,
            between(spans[0], config.prompt_median, True),
            between(spans[1], config.prompt_log_std, False),
            8192.0,
        ),
        log_normal(
            output_key,
            between(spans[2], config.output_median, True),
            between(spans[3], config.output_log_std, False),
            2048.0,
        ),
    )
    like_trace = jax.random.uniform(kind_key) < config.trace_share
    return jax.tree.map(lambda a, b: jnp.where(like_trace, a, b), recorded, own)


def _reordered(models: SyntheticParams, order: jax.Array) -> SyntheticParams:
    """The models in another order over the servers; ``order`` [N] int32, traced."""
    per_task = ("quality_threshold", "length_log_mean", "length_log_std", "runaway_threshold", "cap_tokens")
    moved: dict[str, Any] = {name: jnp.asarray(getattr(models, name))[:, order] for name in per_task}
    moved |= {name: jnp.asarray(getattr(models, name))[order] for name in ("quality_bias", "length_log_bias")}
    return dataclasses.replace(models, **moved)
