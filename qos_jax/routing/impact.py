"""Impact of the newcomer at each expert: its own chance and QoS, and the QoS that others lose."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.observation import Observation, TrueObservation
from qos_jax.routing.outlook import Outlook, predicted_outlook, true_outlook
from qos_jax.routing.projection import Projection, project
from qos_jax.serving.profile import decode_law


@struct.dataclass
class Impact:
    """The projected effect of the newcomer at each of N experts."""

    latency_per_token_s: jax.Array  # [N] float32, seconds / token, the newcomer's own
    own_chance: jax.Array  # [N] float32, its chance to meet L, 0 where it would be rejected
    own_qos: jax.Array  # [N] float32, predicted quality x chance
    pushed: jax.Array  # [N] float32, expected number of requests there pushed past L
    penalty: jax.Array  # [N] float32, expected QoS those lose


def projected_impact(
    seen: Observation, margin: jax.Array, margin_of_others: jax.Array | None = None
) -> Impact:
    """Project the newcomer's effect at each expert by predicted lengths (see README.md, rule 10).

    A request meets L with the chance that its latency per token, log-normal about the projected one,
    stays below L. Two errors make its spread: its own length (std ``length_log_std``), weighed by how
    far latency per token depends on it, and ``margin``.

    Args:
      seen: the observation.
      margin: [] float32 >= 0, std of log latency per token beyond the newcomer's own length, as of
        arrivals to come; 0 with exact lengths is a hard test.
      margin_of_others: the margin of the requests in flight, [] float32; the newcomer's by default.
    """
    outlook, quality, slot_quality = (
        predicted_outlook(seen),
        seen.predicted_quality,
        seen.slot_predicted_quality,
    )
    return _impact(seen, outlook, quality, slot_quality, seen.length_log_std, margin, margin_of_others)


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
    limit_s = seen.latency_limit_s
    projection = project(outlook)
    others = margin if margin_of_others is None else margin_of_others

    def chance(latency_s: jax.Array) -> jax.Array:
        return _chance_in_flight(outlook, projection, latency_s, length_log_std, others, limit_s)

    # A delay may raise the chance of a late request, by its larger spread; that counts as no gain.
    lost = jnp.maximum(chance(projection.latency_s) - chance(projection.delayed_s), 0.0)
    lost = jnp.where(outlook.live, lost, 0.0)
    new_tokens = jnp.maximum(outlook.new_output_tokens, 1.0)
    new_per_token_s = projection.new_latency_s / new_tokens
    new_share = _share(projection.new_decode_s, projection.new_latency_s)
    own = _chance(new_per_token_s, _log_std(new_share, 1.0, length_log_std, margin), limit_s)
    own = jnp.where(seen.available, own, 0.0)
    return Impact(
        latency_per_token_s=new_per_token_s,
        own_chance=own,
        own_qos=quality * own,
        pushed=jnp.sum(lost, axis=-1),
        penalty=jnp.sum(lost * slot_quality, axis=-1),
    )


def _chance_in_flight(
    outlook: Outlook,
    projection: Projection,
    latency_s: jax.Array,
    length_log_std: jax.Array,
    margin: jax.Array,
    limit_s: jax.Array,
) -> jax.Array:
    """Return the chance, [N, K], that each request in flight meets the limit with E2E ``latency_s``."""
    tokens = jnp.maximum(outlook.output_tokens, 1.0)
    decode_share = _share(projection.decode_s, latency_s)
    std = _log_std(decode_share, outlook.left_tokens / tokens, length_log_std[:, None], margin)
    return _chance(latency_s / tokens, std, limit_s)


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
    return jax.scipy.special.ndtr((slack + 1e-6) / jnp.maximum(log_std, 1e-7))


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
    per_token_s = project(outlook).latency_s / jnp.maximum(outlook.output_tokens, 1.0)
    good = outlook.live & (per_token_s <= truth.seen.latency_limit_s)
    return jnp.sum(jnp.where(good, truth.slot_quality, 0.0))


def expected_qos_in_flight(seen: Observation, margin: jax.Array) -> jax.Array:
    """Return Phi by predictions: quality times the chance to meet L of all in flight, [] float32.

    Args:
      seen: the observation; the newcomer does not count.
      margin: see :func:`projected_impact`.
    """
    outlook = predicted_outlook(seen)
    projection = project(outlook)
    chance = _chance_in_flight(
        outlook, projection, projection.latency_s, seen.length_log_std, margin, seen.latency_limit_s
    )
    return jnp.sum(jnp.where(outlook.live, seen.slot_predicted_quality * chance, 0.0))
