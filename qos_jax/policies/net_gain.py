"""The net gain of routing a request to each expert, which the greedy routers maximise.

Everywhere ``expert_mask`` is [N] bool, False for rows that only pad the fleet; all exist by default.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from qos_jax.policies.greedy_params import POWERS, GreedyParams
from qos_jax.routing.believed_quality import believed_quality
from qos_jax.routing.impact import Impact, projected_impact
from qos_jax.routing.observation import Observation, relative_length
from qos_jax.routing.outlook import tokens_left
from qos_jax.serving.latency import decode_run_s, prefill_s
from qos_jax.serving.profile import affine_between

# Offered loads are clipped to this: beyond, much is lost under any router; below, nothing waits.
LOAD_RANGE = (0.1, 2.0)
BURST_RANGE = (0.25, 4.0)
# Typical values, at which a power has no effect: mean occupancy of the experts (as at a load of 0.6),
# predicted output tokens of an arrival, and an expert's time per token as a share of L.
TYPICAL_OCCUPANCY, TYPICAL_OUTPUT_TOKENS, TYPICAL_PACE = 0.3, 100.0, 0.5
# The powers of the price that depend on the expert or the recent arrivals, not on the request.
_SLOT_POWERS = ("level", "pace", "slowness", "fleet")


def recent_load(seen: Observation) -> jax.Array:
    """Return the recent offered load, [], in ``LOAD_RANGE``; 1 before any arrival.

    It is the mean over the shortest and the longest window of arrivals.
    """
    load = 0.5 * (seen.offered_load[0] + seen.offered_load[-1])
    return jnp.where(load > 0.0, jnp.clip(load, *LOAD_RANGE), 1.0)


def latency_margin(
    params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None
) -> jax.Array:
    """Return ``margin`` times its powers of recent arrivals, [] std of log latency per token."""
    return params.margin * factor(params, "margin", _log_demand(seen, expert_mask))


def impact_of_each(params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None) -> Impact:
    """Return the projected impact of routing to each expert, which :func:`net_gain` is made of."""
    margin = latency_margin(params, seen, expert_mask)
    return projected_impact(as_believed(params, seen, expert_mask), margin, params.margin_of_others * margin)


def as_believed(params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None) -> Observation:
    """Return the observation with the arrived request's predicted qualities shrunk by ``quality_slope``.

    They are shrunk towards each expert's recent mean, as :func:`believed_quality` does; before any arrival
    they stay as predicted, as do those of the requests in flight.
    """
    known = seen.mean_output_tokens > 0.0
    usual = jnp.where(known, seen.mean_quality, seen.predicted_quality)
    believed = believed_quality(seen.predicted_quality, usual, params.quality_slope, expert_mask)
    return dataclasses.replace(seen, predicted_quality=believed)


def crowding_price(
    params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None
) -> jax.Array:
    """Return the QoS charged for a slot of each expert on behalf of later arrivals, [N].

    ``congestion_price`` times a power of the occupancy, so that an expert with room costs little, times
    powers of the recent load, of the relative length and of the other quantities of ``POWERS``.
    """
    context = _log_demand(seen, expert_mask) | _log_request(seen) | _log_slot(seen, expert_mask)
    taken = _occupancy(seen) ** params.price_by_occupancy
    return params.congestion_price * factor(params, "price", context) * taken


def net_gain(
    params: GreedyParams, seen: Observation, impact: Impact, expert_mask: jax.Array | None = None
) -> jax.Array:
    """Return expected own QoS less that lost by others and the price of crowding, [N] float32.

    ``impact`` is that of :func:`impact_of_each`; the gain is -inf where the queue is full.
    """
    price = crowding_price(params, seen, expert_mask)
    weight = params.penalty_weight * factor(params, "penalty", _log_demand(seen, expert_mask))
    gain = impact.own_qos - weight * impact.penalty - price
    return jnp.where(seen.available, gain, -jnp.inf)


def crowding_cost(params: GreedyParams, seen: Observation) -> jax.Array:
    """Return the price of crowding of all requests in flight, at a load of 1, [] QoS.

    Each request of an expert pays :func:`crowding_price` at the occupancy that it found, the first that of
    an empty expert; its length is what is left of it, and its prefill is over.
    """
    count = queue_length(seen).astype(jnp.float32)[:, None]
    found = jnp.arange(seen.live.shape[-1], dtype=jnp.float32)[None]  # requests before each
    taken = found / seen.profile.max_running.astype(jnp.float32)[:, None]
    slots = jnp.sum(jnp.where(found < count, taken**params.price_by_occupancy, 0.0), axis=-1)
    length = jax.vmap(relative_length, (None, 1), 1)(seen, tokens_left(seen)) ** params.price_by_length
    length = jnp.sum(jnp.where(seen.live, length, 0.0), axis=-1) / jnp.maximum(count[:, 0], 1.0)
    context = _log_slot(seen, None) | _log_demand(seen, None)
    price = params.congestion_price * factor(params, "price", context, _SLOT_POWERS)
    return jnp.sum(price * slots * length)


def queue_length(seen: Observation) -> jax.Array:
    """Return the requests waiting and running at each expert, [N] int32."""
    return jnp.sum(seen.live, axis=-1, dtype=jnp.int32)


def _occupancy(seen: Observation) -> jax.Array:
    """Return the requests in flight over the size of the batch, [N] float32."""
    return queue_length(seen).astype(jnp.float32) / seen.profile.max_running.astype(jnp.float32)


def factor(
    params: GreedyParams, term: str, context: dict[str, jax.Array], names: tuple[str, ...] | None = None
) -> jax.Array:
    """Return the product of a term's powers, or of those ``names``, given logarithms of their quantities."""
    powers = [getattr(params, f"{term}_by_{name}") * context[name] for name in names or POWERS[term]]
    return jnp.exp(sum(powers[1:], powers[0]))


def _log_demand(seen: Observation, expert_mask: jax.Array | None) -> dict[str, jax.Array]:
    """Return logarithms of the quantities of recent arrivals, [] each."""
    short, long = seen.offered_load[0], seen.offered_load[-1]
    known = (short > 0.0) & (long > 0.0)
    burst = jnp.where(known, short, 1.0) / jnp.where(known, long, 1.0)
    return {
        "load": jnp.log(recent_load(seen)),
        "burst": jnp.log(jnp.clip(burst, *BURST_RANGE)),
        "level": log_level(seen, expert_mask),
    }


def _log_request(seen: Observation) -> dict[str, jax.Array]:
    """Return logarithms of the quantities of the request at each expert, [N] each."""
    profile = seen.profile
    prompt = seen.prompt_tokens.astype(jnp.float32)
    output = jnp.maximum(seen.predicted_output_tokens, 1.0)
    base_s = affine_between(profile, profile.max_running.astype(jnp.float32)).decode_base_s
    share = prefill_s(profile, prompt, jnp.square(prompt)) / jnp.maximum(base_s * output, 1e-9)
    length = jnp.log(relative_length(seen, seen.predicted_output_tokens))
    return {"length": length, "prefill": jnp.log1p(jnp.minimum(share, 20.0))}


def _log_slot(seen: Observation, expert_mask: jax.Array | None) -> dict[str, jax.Array]:
    """Return logarithms of the quantities of a slot of each expert, [N] or [] each."""
    profile = seen.profile
    context = (seen.slot_prompt_tokens + seen.slot_generated_tokens).astype(jnp.float32)
    context = jnp.sum(jnp.where(seen.live, context, 0.0), axis=-1)  # of int32 slower on a CPU
    batch = queue_length(seen).astype(jnp.float32)
    pace_s = jnp.maximum(decode_run_s(profile, jnp.ones_like(batch), batch, context), 1e-9)
    log_pace = jnp.log(pace_s)
    # The hundredth keeps the factor of an idle fleet finite, where no slot costs anything.
    fleet = (mean_of(_occupancy(seen), expert_mask) + 0.01) / TYPICAL_OCCUPANCY
    return {
        "pace": log_pace - jnp.log(jnp.maximum(mean_of(pace_s, expert_mask), 1e-9)),
        "slowness": log_pace - jnp.log(TYPICAL_PACE * seen.limits.pace_s),
        "fleet": jnp.log(fleet),
    }


def log_level(seen: Observation, expert_mask: jax.Array | None) -> jax.Array:
    """Return the logarithm of the recent mean of predicted output tokens over a typical one, []."""
    tokens = mean_of(seen.mean_output_tokens, expert_mask)
    tokens = jnp.where(tokens > 0.0, tokens, TYPICAL_OUTPUT_TOKENS)
    return jnp.log(jnp.maximum(tokens, 1.0) / TYPICAL_OUTPUT_TOKENS)


def mean_of(of_each: jax.Array, expert_mask: jax.Array | None) -> jax.Array:
    """Return the mean of [N] over the experts that exist, []."""
    exists = jnp.ones(of_each.shape, bool) if expert_mask is None else expert_mask
    return jnp.sum(jnp.where(exists, of_each, 0.0)) / jnp.maximum(jnp.sum(exists, dtype=jnp.float32), 1.0)
