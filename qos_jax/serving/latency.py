"""Closed forms of iteration times: how long a prompt phase or a run of decode iterations takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qos_jax.serving.profile import FleetProfile, decode_law

# Stands for "no arrival ahead": finite, so that the quadratic below stays free of inf / inf.
_FAR_S = 1e12


def prefill_s(profile: FleetProfile, tokens: jax.Array, tokens_sq: jax.Array) -> jax.Array:
    """Return the seconds of a prefill iteration over prompts of c tokens (see README.md, rules 3 and 8).

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
    """Return the seconds of m decode iterations of an unchanging batch: T(m) of README.md, rule 9.

    Args:
      profile: the fleet, leaves [N].
      iterations: [N] float32, m.
      batch: [N] float32, B, requests running.
      held_tokens: [N] float32, sum of their contexts before the first iteration.

    Returns:
      [N] float32 seconds.
    """
    whole_s, rest_s = decode_run_parts_s(profile, iterations, batch, held_tokens)
    return whole_s + rest_s


def alone_s(profile: FleetProfile, prompt_tokens: jax.Array, output_tokens: jax.Array) -> jax.Array:
    """Return the seconds that an otherwise idle expert is busy with one request.

    One prefill iteration yields the first token, and a decode iteration each of the others.

    Args:
      profile: the fleet, leaves [N].
      prompt_tokens: [] or [N] float32.
      output_tokens: [N] float32, >= 1.

    Returns:
      [N] float32 seconds, without ``network_rtt_s``.
    """
    return prefill_s(profile, prompt_tokens, prompt_tokens * prompt_tokens) + decode_run_s(
        profile, output_tokens - 1.0, jnp.ones_like(output_tokens), prompt_tokens + 1.0
    )


def decode_run_parts_s(
    profile: FleetProfile, iterations: jax.Array, batch: jax.Array, held_tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return T(m) as an exact float32 product and a much smaller rest, which carries what that leaves out.

    ``decode_base_s + decode_per_seq_s B`` is the same in every iteration of a batch size, so its rounding
    would add up to a drift while an expert is never idle. Here its leading 12 bits are multiplied
    exactly (m < 4096) and all that was rounded off goes into the rest.

    Arguments as :func:`decode_run_s`; returns two [N] float32, seconds, whose sum is T(m).
    """
    fixed_s, per_token_s = decode_law(profile, batch)
    if profile.decode_knots:
        rounded_off_s = jnp.zeros_like(fixed_s)
    else:
        rounded_off_s = profile.decode_per_seq_s * batch - (fixed_s - profile.decode_base_s)
    leading_s = jax.lax.reduce_precision(fixed_s, exponent_bits=8, mantissa_bits=11)
    mean_context = held_tokens + batch * (iterations - 1.0) * 0.5
    rest_s = (fixed_s - leading_s) + rounded_off_s + per_token_s * mean_context
    return iterations * leading_s, iterations * rest_s


def add_exactly(time_s: jax.Array, rest_s: jax.Array, more_s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Add seconds to a time kept as value and rest, so that nothing is rounded off (Knuth's TwoSum)."""
    total_s = time_s + more_s
    other_s = total_s - time_s
    lost_s = (time_s - (total_s - other_s)) + (more_s - other_s)
    return total_s, rest_s + lost_s


def decode_iterations_until(
    profile: FleetProfile, horizon_s: jax.Array, batch: jax.Array, held_tokens: jax.Array, most: jax.Array
) -> jax.Array:
    """Return the smallest m >= 1 with ``T(m) >= horizon_s``, or ``most`` if that is smaller.

    T is a quadratic in m, so its root gives m up to rounding; the last step checks one iteration less. A
    root rounded down only splits the run in two; one rounded up would overshoot an arrival.

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
    fixed_s, per_token_s = decode_law(profile, batch)
    square = 0.5 * per_token_s * batch
    slope = fixed_s + per_token_s * (held_tokens - 0.5 * batch)
    # The form without cancellation; it also holds for square = 0.
    root = 2.0 * horizon_s / (slope + jnp.sqrt(slope * slope + 4.0 * square * horizon_s))
    found = jnp.clip(jnp.ceil(root), 1.0, most.astype(jnp.float32))
    before = found - 1.0
    overshot = (before >= 1.0) & (decode_run_s(profile, before, batch, held_tokens) >= horizon_s)
    # The bound again as an integer: float32 may round it up beyond 2^24.
    return jnp.minimum(jnp.where(overshot, before, found).astype(jnp.int32), most)


def decode_run_kv_token_s(
    profile: FleetProfile, iterations: jax.Array, batch: jax.Array, held_tokens: jax.Array
) -> jax.Array:
    """Return KV tokens times seconds over m decode iterations: sum_{k<m} X_k T_k, X_k = held + B k.

    Arguments as :func:`decode_run_s`; returns [N] float32, token-seconds.
    """
    m = iterations
    fixed_s, per_token_s = decode_law(profile, batch)
    first_moment = m * held_tokens + 0.5 * batch * m * (m - 1.0)
    second_moment = (
        m * held_tokens**2
        + held_tokens * batch * m * (m - 1.0)
        + batch**2 * m * (m - 1.0) * (2.0 * m - 1.0) / 6.0
    )
    return fixed_s * first_moment + per_token_s * second_moment
