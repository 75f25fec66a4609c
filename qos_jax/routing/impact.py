"""Impact of the newcomer at each expert: its own chance and QoS, and the QoS that others lose."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.normal import normal_cdf
from qos_jax.routing.observation import Observation, TrueObservation
from qos_jax.routing.occupied_slots import over_occupied_slots
from qos_jax.routing.outlook import Outlook, predicted_outlook, true_outlook
from qos_jax.routing.projection import Projection, project
from qos_jax.serving.limits import ServiceLimits, all_kept, limits_kept
from qos_jax.serving.profile import decode_law


@struct.dataclass
class Impact:
    """The projected effect of the newcomer at each of N experts."""

    latency_per_token_s: jax.Array  # [N] float32, seconds / token, the newcomer's own
    keeps_limits: jax.Array  # [N] bool, whether it keeps every limit if it comes as projected
    own_chance: jax.Array  # [N] float32, its chance to keep the limits, 0 where it would be rejected
    own_qos: jax.Array  # [N] float32, predicted quality x chance
    pushed: jax.Array  # [N] float32, expected number of requests there pushed past a limit
    penalty: jax.Array  # [N] float32, expected QoS those lose


# Traced once for all routers that project, which is most of what they take to trace.
@functools.partial(jax.jit, inline=True)
def projected_impact(
    seen: Observation, margin: jax.Array, margin_of_others: jax.Array | None = None
) -> Impact:
    """Project the newcomer's effect at each expert by predicted lengths (see README.md, rule 10).

    A request meets L with the chance that its latency per token, log-normal about the projected one,
    stays below L. Two errors make its spread: its own length (std ``length_log_std``), weighed by how
    far latency per token depends on it, and ``margin``. With several limits its chance is the least of
    those to keep each, since one cause, a crowded expert, makes it miss them together.

    Args:
      seen: the observation.
      margin: [] float32 >= 0, std of log latency per token beyond the newcomer's own length, as of
        arrivals to come; 0 with exact lengths is a hard test.
      margin_of_others: the margin of the requests in flight, [] float32; the newcomer's by default.
    """

    def impact(seen: Observation) -> Impact:
        quality, slot_quality = seen.predicted_quality, seen.slot_predicted_quality
        outlook = predicted_outlook(seen)
        return _impact(seen, outlook, quality, slot_quality, seen.length_log_std, margin, margin_of_others)

    return over_occupied_slots(impact, seen)


def true_impact(
    truth: TrueObservation, margin: jax.Array, margin_of_others: jax.Array | None = None
) -> Impact:
    """Project the newcomer's effect by true lengths and qualities, for oracles; later arrivals are unknown.

    Args:
      truth: the observation with true lengths and qualities.
      margin: see :func:`projected_impact`.
      margin_of_others: see :func:`projected_impact`.
    """
    exact = jnp.zeros_like(truth.seen.length_log_std)
    outlook = true_outlook(truth)
    return _impact(truth.seen, outlook, truth.quality, truth.slot_quality, exact, margin, margin_of_others)


def _impact(
    seen: Observation,
    outlook: Outlook,
    quality: jax.Array,
    slot_quality: jax.Array,
    length_log_std: jax.Array,
    margin: jax.Array,
    margin_of_others: jax.Array | None,
) -> Impact:
    limits = seen.limits
    projection = project(outlook, limits.needs_ttft)
    others = margin if margin_of_others is None else margin_of_others

    def chance(latency_s: jax.Array, ttft_s: jax.Array | None) -> jax.Array:
        return _chance_in_flight(outlook, projection, latency_s, ttft_s, length_log_std, others, limits)

    # A delay may raise the chance of a late request, by its larger spread; that counts as no gain.
    without = chance(projection.latency_s, projection.ttft_s)
    lost = jnp.maximum(without - chance(projection.delayed_s, projection.delayed_ttft_s), 0.0)
    lost = jnp.where(outlook.live, lost, 0.0)
    new_tokens = jnp.maximum(outlook.new_output_tokens, 1.0)
    new_per_token_s = projection.new_latency_s / new_tokens
    new_share = _share(projection.new_decode_s, projection.new_latency_s)
    own = _chance(new_per_token_s, _log_std(new_share, 1.0, length_log_std, margin), limits.latency_limit_s)
    own = _least([own, *_new_chances(outlook, projection, new_share, length_log_std, margin, limits)])
    own = jnp.where(seen.available, own, 0.0)
    return Impact(
        latency_per_token_s=new_per_token_s,
        keeps_limits=_keeps(outlook, projection.new_latency_s, projection.new_ttft_s, new_tokens, limits),
        own_chance=own,
        own_qos=quality * own,
        pushed=jnp.sum(lost, axis=-1),
        penalty=jnp.sum(lost * slot_quality, axis=-1),
    )


def _chance_in_flight(
    outlook: Outlook,
    projection: Projection,
    latency_s: jax.Array,
    ttft_s: jax.Array | None,
    length_log_std: jax.Array,
    margin: jax.Array,
    limits: ServiceLimits,
) -> jax.Array:
    """Return the chance, [N, K], that each in flight keeps the limits with these E2E latencies and TTFTs."""
    tokens = jnp.maximum(outlook.output_tokens, 1.0)
    decode_share = _share(projection.decode_s, latency_s)
    std = _log_std(decode_share, outlook.left_tokens / tokens, length_log_std[:, None], margin)
    chances = [_chance(latency_s / tokens, std, limits.latency_limit_s)]
    if limits.e2e_limit_s is not None:
        std = _log_std(decode_share, 0.0, length_log_std[:, None], margin)
        chances.append(_chance(latency_s, std, limits.e2e_limit_s))
    if ttft_s is not None and projection.to_first_s is not None:
        if limits.ttft_limit_s is not None:
            std = margin * _share(projection.to_first_s, ttft_s)
            chances.append(_chance(ttft_s, std, limits.ttft_limit_s))
        if limits.tpot_limit_s is not None:
            decode_s = latency_s - outlook.profile.network_rtt_s[:, None] - ttft_s
            more = jnp.maximum(tokens - 1.0, 1.0)
            decode_share = jnp.minimum(_share(projection.decode_s, decode_s), 1.0)
            left_share = jnp.minimum(outlook.left_tokens / more, 1.0)
            std = _log_std(decode_share, left_share, length_log_std[:, None], margin)
            chance = _chance(decode_s / more, std, limits.tpot_limit_s)
            chances.append(jnp.where(tokens <= 1.0, 1.0, chance))
    return _least(chances)


def _new_chances(
    outlook: Outlook,
    projection: Projection,
    decode_share: jax.Array,
    length_log_std: jax.Array,
    margin: jax.Array,
    limits: ServiceLimits,
) -> list[jax.Array]:
    """Return the newcomer's chances, [N] each, to keep the limits that are set besides L."""
    latency_s, chances = projection.new_latency_s, []
    if limits.e2e_limit_s is not None:
        std = _log_std(decode_share, 0.0, length_log_std, margin)
        chances.append(_chance(latency_s, std, limits.e2e_limit_s))
    if projection.new_ttft_s is not None:
        ttft_s, tokens = projection.new_ttft_s, outlook.new_output_tokens
        if limits.ttft_limit_s is not None:
            chances.append(_chance(ttft_s, margin, limits.ttft_limit_s))
        if limits.tpot_limit_s is not None:
            # All of it scales with the tokens it is divided by, so the length makes no spread.
            tpot_s = (latency_s - outlook.profile.network_rtt_s - ttft_s) / jnp.maximum(tokens - 1.0, 1.0)
            chance = _chance(tpot_s, margin, limits.tpot_limit_s)
            chances.append(jnp.where(tokens <= 1.0, 1.0, chance))
    return chances


def _least(chances: list[jax.Array]) -> jax.Array:
    """Return the chance to keep all limits: the least of those to keep each, as if one cause missed all."""
    return functools.reduce(jnp.minimum, chances)


def _keeps(
    outlook: Outlook, latency_s: jax.Array, ttft_s: jax.Array | None, tokens: jax.Array, limits: ServiceLimits
) -> jax.Array:
    """Return whether times as projected keep every limit, [N] or [N, K] bool."""
    rtt_s = outlook.profile.network_rtt_s
    rtt_s = rtt_s[:, None] if latency_s.ndim > 1 else rtt_s
    return all_kept(limits_kept(limits, latency_s, ttft_s, tokens, rtt_s))


def _share(part_s: jax.Array, whole_s: jax.Array) -> jax.Array:
    """Return part over whole; 0 where both are 0, as of one token on an expert whose prefill is free."""
    return part_s / jnp.maximum(whole_s, 1e-9)


def _log_std(
    decode_share: jax.Array, left_share: jax.Array | float, length_log_std: jax.Array, margin: jax.Array
) -> jax.Array:
    """Return the std of log latency per token: sensitivity to the length times its std, and the margin."""
    sensitivity = decode_share - left_share
    return jnp.sqrt(jnp.square(sensitivity * length_log_std) + jnp.square(margin))


def _chance(per_token_s: jax.Array, log_std: jax.Array, limit_s: jax.Array) -> jax.Array:
    """Return the chance that a log-normal latency per token with this median is at most the limit."""
    slack = jnp.log(limit_s / jnp.maximum(per_token_s, 1e-9))
    # Floored, so that exact lengths without margin make a hard test that still counts equality as met.
    return normal_cdf((slack + 1e-6) / jnp.maximum(log_std, 1e-7))


def paper_impact(seen: Observation) -> jax.Array:
    """Estimate the QoS lost at each expert if the newcomer runs there, as the paper does: [N] float32.

    See README.md, rule 9, for the formula. Only running requests count, by their predicted qualities.
    Source: arXiv 2508.00234, action impact estimator.
    """
    profile = seen.profile
    prompt = seen.prompt_tokens.astype(jnp.float32)
    generated = seen.slot_generated_tokens.astype(jnp.float32)
    # The paper's reading of the tokens left, not those given survival (rule 12).
    left = jnp.maximum(seen.slot_predicted_output_tokens - generated, 1.0)
    together = jnp.maximum(jnp.minimum(left, seen.predicted_output_tokens[:, None]) - 1.0, 0.0)
    batch = jnp.maximum(jnp.sum(seen.running, axis=-1, dtype=jnp.float32), 1.0)
    decode_s = decode_law(profile, batch)[1][:, None] * (
        together * prompt + 0.5 * together * (together + 1.0)
    )
    extra_s = (profile.prefill_per_token_s[:, None] * prompt + decode_s) / (generated + left)
    now_s = seen.age_s / jnp.maximum(generated, 1.0)
    pushed = seen.running & (now_s <= seen.latency_limit_s) & (now_s + extra_s > seen.latency_limit_s)
    return jnp.sum(jnp.where(pushed, seen.slot_predicted_quality, 0.0), axis=-1)


def qos_in_flight(truth: TrueObservation) -> jax.Array:
    """Return Phi, the QoS all in flight reach if nothing else arrives, [] float32 (README.md, rule 8)."""
    outlook = true_outlook(truth)
    limits, tokens = truth.seen.limits, jnp.maximum(outlook.output_tokens, 1.0)
    projection = project(outlook, limits.needs_ttft)
    good = outlook.live & _keeps(outlook, projection.latency_s, projection.ttft_s, tokens, limits)
    return jnp.sum(jnp.where(good, truth.slot_quality, 0.0))


def expected_qos_in_flight(seen: Observation, margin: jax.Array) -> jax.Array:
    """Return Phi by predictions: quality times the chance to keep the limits of all in flight, [] float32.

    Args:
      seen: the observation; the newcomer does not count.
      margin: see :func:`projected_impact`.
    """

    def expected(seen: Observation) -> jax.Array:
        outlook = predicted_outlook(seen)
        projection = project(outlook, seen.limits.needs_ttft)
        chance = _chance_in_flight(
            outlook,
            projection,
            projection.latency_s,
            projection.ttft_s,
            seen.length_log_std,
            margin,
            seen.limits,
        )
        return jnp.sum(jnp.where(outlook.live, seen.slot_predicted_quality * chance, 0.0))

    return over_occupied_slots(expected, seen)
