"""The queues and the newcomer with the lengths to project them by: predicted, or true for an oracle."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.observation import Observation, TrueObservation
from qos_jax.serving import FleetProfile
from qos_jax.serving.profile import affine_between

# Highest power first: their quotient is the normal quantile of 1 - SF(z) / 2, less z. It is cheaper than the
# quantile and the distribution themselves, and good where float32 has no digits left of 1 - SF(z) / 2.
_RISE = (0.00048675594, 0.0068998949, 0.073027987, 0.18439594, 0.6747172)
_OVER = (0.00063769426, 0.011665905, 0.089266344, 0.36726526, 0.82488393, 1.0)


@struct.dataclass
class Outlook:
    """The queues and the newcomer, with the lengths to project them by (predicted or true)."""

    profile: FleetProfile  # leaves [N], decode times affine in the batch
    lead_s: jax.Array  # [N] float32, seconds
    live: jax.Array  # [N, K] bool
    running: jax.Array  # [N, K] bool
    age_s: jax.Array  # [N, K] float32, seconds
    context_tokens: jax.Array  # [N, K] float32, prompt + generated
    prefill_left_tokens: jax.Array  # [N, K] float32, of a partly prefilled prompt
    left_tokens: jax.Array  # [N, K] float32, output tokens still to come, >= 0
    output_tokens: jax.Array  # [N, K] float32, generated + left
    ttft_s: jax.Array  # [N, K] float32, seconds to its first token; -1 = none yet
    new_prompt_tokens: jax.Array  # [] float32
    new_output_tokens: jax.Array  # [N] float32
    # Of waiting requests and of the newcomer, expected to be cached; None without prefix caching.
    cached_tokens: jax.Array | None = None  # [N, K] float32
    new_cached_tokens: jax.Array | None = None  # [N] float32


def left_given_survival(
    predicted_tokens: jax.Array, generated_tokens: jax.Array, length_log_std: jax.Array
) -> jax.Array:
    """Return the median tokens left of an answer that has reached ``generated_tokens``.

    The length is log-normal about the prediction, conditioned on survival (see README.md, rule 12). With
    z = log(generated / predicted) / std, the conditional median is at the normal quantile of
    1 - SF(z) / 2. How far that is above z is one rational function of z from -4 to 12, fitted to 4e-4 of
    itself; below, it is the prediction.

    Args:
      predicted_tokens: [...] float32, medians, > 0.
      generated_tokens: [...] float32, >= 0.
      length_log_std: [...] float32, >= 0; 0 = predictions are exact.

    Returns:
      [...] float32, at least 1.
    """
    std = jnp.maximum(length_log_std, 1e-3)
    z = jnp.maximum(jnp.log(jnp.maximum(generated_tokens, 0.5) / predicted_tokens) / std, -4.0)
    rise = jnp.polyval(jnp.array(_RISE, jnp.float32), z) / jnp.polyval(jnp.array(_OVER, jnp.float32), z)
    median = predicted_tokens * jnp.exp(std * (z + rise))
    return jnp.maximum(median - generated_tokens, 1.0)


def tokens_left(seen: Observation) -> jax.Array:
    """Return the expected remaining output tokens of each slot given those generated, [N, K] float32."""
    generated = seen.slot_generated_tokens.astype(jnp.float32)
    return left_given_survival(seen.slot_predicted_output_tokens, generated, seen.length_log_std[:, None])


def predicted_outlook(seen: Observation) -> Outlook:
    """Return the outlook of a router: predicted lengths, given the tokens each request has generated."""
    generated = seen.slot_generated_tokens.astype(jnp.float32)
    left = tokens_left(seen)
    if seen.profile.context_limit_tokens is not None:  # where the answer ends at the latest
        room = seen.profile.context_limit_tokens[:, None] - seen.slot_prompt_tokens
        left = jnp.minimum(left, jnp.maximum(room.astype(jnp.float32) - generated, 0.0))
    return _outlook(seen, left, seen.predicted_output_tokens)


def true_outlook(truth: TrueObservation) -> Outlook:
    """Return the outlook of an oracle: true lengths."""
    left = (truth.slot_output_tokens - truth.seen.slot_generated_tokens).astype(jnp.float32)
    return _outlook(truth.seen, left, truth.output_tokens.astype(jnp.float32))


def _outlook(seen: Observation, left: jax.Array, new_output: jax.Array) -> Outlook:
    generated = seen.slot_generated_tokens.astype(jnp.float32)
    live = jnp.sum(seen.live, axis=-1, dtype=jnp.int32)
    batch = jnp.minimum(live + 1, seen.profile.max_running).astype(jnp.float32)
    cached = {}
    if seen.prefix is not None:
        cached = {
            "cached_tokens": seen.prefix.slot_cached_tokens.astype(jnp.float32),
            "new_cached_tokens": seen.prefix.cached_tokens.astype(jnp.float32),
        }
    return Outlook(
        profile=affine_between(seen.profile, batch),
        lead_s=seen.lead_s,
        live=seen.live,
        running=seen.running,
        age_s=seen.age_s,
        context_tokens=(seen.slot_prompt_tokens + seen.slot_generated_tokens).astype(jnp.float32),
        prefill_left_tokens=seen.slot_prefill_left_tokens.astype(jnp.float32),
        left_tokens=left,
        output_tokens=generated + left,
        ttft_s=seen.slot_ttft_s,
        new_prompt_tokens=seen.prompt_tokens.astype(jnp.float32),
        new_output_tokens=new_output,
        **cached,
    )
