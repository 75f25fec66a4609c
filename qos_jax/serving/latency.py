"""Closed forms of iteration times: how long a prompt phase or a run of decode iterations takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qos_jax.serving.profile import FleetProfile

# Stands for "no arrival ahead": finite, so that the quadratic below stays free of inf / inf.
_FAR_S = 1e12


def prefill_s(profile: FleetProfile, tokens: jax.Array, tokens_sq: jax.Array) -> jax.Array:
    """Seconds of a prefill iteration over prompts of c tokens (DESIGN section 3, rule 3).

    Args:
      profile: the fleet, leaves [N].
      tokens: [N] float32, sum of c.
      tokens_sq: [N] float32, sum of c^2 (chunked: of (done + chunk)^2 - done^2).

    Returns:
      [N] float32 seconds.
    """
    return (
        profile.prefill_base_s
        + profile.prefill_per_token_s * tokens
        + profile.prefill_per_token_sq_s * tokens_sq
    )


def decode_run_s(
    profile: FleetProfile, iterations: jax.Array, batch: jax.Array, held_tokens: jax.Array
) -> jax.Array:
    """Seconds of m decode iterations of an unchanging batch: T(m) of DESIGN section 3 while m <= min r.

    The context grows by ``batch`` tokens an iteration, so
    ``T(m) = m (decode_base_s + decode_per_seq_s B + decode_per_context_token_s (held + B (m - 1) / 2))``.

    Args:
      profile: the fleet, leaves [N].
      iterations: [N] float32, m.
      batch: [N] float32, B, requests running.
      held_tokens: [N] float32, sum of their contexts before the first iteration.

    Returns:
      [N] float32 seconds.
    """
    mean_context = held_tokens + batch * (iterations - 1.0) * 0.5
    return iterations * (
        profile.decode_base_s
        + profile.decode_per_seq_s * batch
        + profile.decode_per_context_token_s * mean_context
    )


def decode_iterations_until(
    profile: FleetProfile,
    horizon_s: jax.Array,
    batch: jax.Array,
    held_tokens: jax.Array,
    most: jax.Array,
) -> jax.Array:
    """Smallest m >= 1 with ``T(m) >= horizon_s``, or ``most`` if that is smaller.

    T is a quadratic in m, so its root gives m up to rounding; the last step looks one iteration back.
    A root rounded down only splits the run in two, one rounded up would overshoot an arrival.

    Args:
      profile: the fleet, leaves [N].
      horizon_s: [N] float32, seconds; inf for no bound, and 1 iteration where it is not positive.
      batch: [N] float32, requests running, >= 1.
      held_tokens: [N] float32, sum of their contexts.
      most: [N] int32, bound on m, >= 1.

    Returns:
      [N] int32, at least 1.
    """
    horizon_s = jnp.clip(horizon_s, 0.0, _FAR_S)
    square = 0.5 * profile.decode_per_context_token_s * batch
    slope = (
        profile.decode_base_s
        + profile.decode_per_seq_s * batch
        + profile.decode_per_context_token_s * (held_tokens - 0.5 * batch)
    )
    # The form without cancellation; it also holds for square = 0.
    root = 2.0 * horizon_s / (slope + jnp.sqrt(slope * slope + 4.0 * square * horizon_s))
    found = jnp.clip(jnp.ceil(root), 1.0, most.astype(jnp.float32))
    before = found - 1.0
    overshot = (before >= 1.0) & (decode_run_s(profile, before, batch, held_tokens) >= horizon_s)
    return jnp.where(overshot, before, found).astype(jnp.int32)


def decode_run_kv_token_s(
    profile: FleetProfile, iterations: jax.Array, batch: jax.Array, held_tokens: jax.Array
) -> jax.Array:
    """KV tokens times seconds over m decode iterations: sum over k < m of X_k * T_k, X_k = held + B k.

    Arguments as :func:`decode_run_s`; returns [N] float32 token seconds.
    """
    m = iterations
    fixed_s = profile.decode_base_s + profile.decode_per_seq_s * batch
    first_moment = m * held_tokens + 0.5 * batch * m * (m - 1.0)
    second_moment = (
        m * held_tokens**2
        + held_tokens * batch * m * (m - 1.0)
        + batch**2 * m * (m - 1.0) * (2.0 * m - 1.0) / 6.0
    )
    return fixed_s * first_moment + profile.decode_per_context_token_s * second_moment
