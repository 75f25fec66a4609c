"""The price of crowding where no profile is known: by counts, predictions and measured times.

The quantities of :func:`~qos_jax.policies.net_gain.crowding_price` have stand-ins: an expert is full at 20
requests in flight; its time per token is the measured one; and the load is the requests that arrive while an
answer of mean length may take, as a share of those that would fill every expert. Everywhere ``expert_mask``
is [N] bool, False for rows that only pad the fleet; all exist by default.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qos_jax.policies.greedy_params import PRICE_MEASURED, GreedyParams
from qos_jax.policies.net_gain import (
    BURST_RANGE,
    LOAD_RANGE,
    TYPICAL_OCCUPANCY,
    TYPICAL_PACE,
    factor,
    log_level,
    mean_of,
    queue_length,
)
from qos_jax.routing.measured import no_measurements, pace_at
from qos_jax.routing.observation import Observation, relative_length

FULL = 20.0  # requests in flight at which an expert counts as full, its batch size not being known
_POWERS = tuple(
    name.removeprefix("price_by_")
    for name in PRICE_MEASURED
    if name not in ("congestion_price", "price_by_occupancy")
)


def measured_price(
    params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None
) -> jax.Array:
    """Return the QoS charged for a slot of each expert on behalf of later arrivals, [N] float32.

    With the numbers of ``measured_greedy`` it is 0.4 times the cube of the requests in flight over 20, times
    the relative predicted length: it costs little until an expert is crowded.
    """
    count = queue_length(seen).astype(jnp.float32)
    taken = (count if expert_mask is None else jnp.where(expert_mask, count, 0.0)) / FULL
    given = no_measurements(seen.num_experts) if seen.measured is None else seen.measured
    pace_s = pace_at(given, count + 1.0)
    known = (pace_s > 0.0) if expert_mask is None else (pace_s > 0.0) & expert_mask
    pace_s = jnp.maximum(pace_s, 1e-9)
    usual_s = jnp.maximum(mean_of(pace_s, known), 1e-9)
    fleet = (mean_of(taken, expert_mask) + 0.01) / TYPICAL_OCCUPANCY
    context = {
        "load": _log_load(seen, expert_mask),
        "burst": _log_burst(seen),
        "level": log_level(seen, expert_mask),
        "length": jnp.log(relative_length(seen, seen.predicted_output_tokens)),
        "pace": jnp.where(known, jnp.log(pace_s / usual_s), 0.0),
        "slowness": jnp.where(known, jnp.log(pace_s / (TYPICAL_PACE * seen.limits.pace_s)), 0.0),
        "fleet": jnp.log(fleet),
    }
    price = params.congestion_price * factor(params, "price", context, _POWERS)
    return price * taken**params.price_by_occupancy


def measured_penalty_weight(
    params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None
) -> jax.Array:
    """Return the weight of the QoS that others are expected to lose, [] float32."""
    return params.penalty_weight * jnp.exp(params.penalty_by_load * _log_load(seen, expert_mask))


def _log_load(seen: Observation, expert_mask: jax.Array | None) -> jax.Array:
    """Return the logarithm of the load, [], in ``LOAD_RANGE``; 0 before any arrival."""
    gap_s = 0.5 * (seen.mean_gap_s[0] + seen.mean_gap_s[-1])
    due = seen.limits.pace_s * mean_of(seen.mean_output_tokens, expert_mask) / jnp.maximum(gap_s, 1e-6)
    load = due / (FULL * _count(seen, expert_mask))
    return jnp.where(gap_s > 0.0, jnp.log(jnp.clip(load, *LOAD_RANGE)), 0.0)


def _log_burst(seen: Observation) -> jax.Array:
    """Return the logarithm of the rate by the shortest window over that by the longest, []."""
    short_s, long_s = seen.mean_gap_s[0], seen.mean_gap_s[-1]
    known = (short_s > 0.0) & (long_s > 0.0)
    burst = jnp.where(known, long_s, 1.0) / jnp.where(known, short_s, 1.0)
    return jnp.log(jnp.clip(burst, *BURST_RANGE))


def _count(seen: Observation, expert_mask: jax.Array | None) -> jax.Array:
    """Return the experts that exist, [] float32."""
    if expert_mask is None:
        return jnp.float32(seen.num_experts)
    return jnp.maximum(jnp.sum(expert_mask, dtype=jnp.float32), 1.0)
