"""The profile of a fleet: every expert's limits, iteration times and power, as one pytree."""

from __future__ import annotations

import dataclasses
import itertools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class DecodeKnot:
    """The decode time of N experts at one batch size each; between knots it is linear in the size."""

    batch: jax.Array  # [N] float32, requests decoding; 1 at the first knot, then rising
    fixed_s: jax.Array  # [N] float32, seconds of an iteration but for the context, > 0, never falling
    per_context_token_s: jax.Array  # [N] float32, seconds / context token


@struct.dataclass
class FleetProfile:
    """Limits, iteration-time coefficients and power of N experts; every leaf is traced, so sweepable.

    Iteration times are affine in tokens, requests and context (see README.md, rules 3, 4 and 8), unless
    ``decode_knots`` give those of decoding by batch size: then they take the place of ``decode_base_s``,
    ``decode_per_seq_s`` and ``decode_per_context_token_s``.
    """

    max_running: jax.Array  # [N] int32, requests batched at once, >= 1
    max_waiting: jax.Array  # [N] int32, requests queued before rejection, >= 1
    # [N] int32, prompt tokens (chunked: all tokens) of an iteration, >= max_running
    max_batched_tokens: jax.Array
    kv_capacity_tokens: jax.Array  # [N] int32, tokens the KV cache holds
    prefill_base_s: jax.Array  # [N] float32, seconds
    prefill_per_token_s: jax.Array  # [N] float32, seconds / token
    prefill_per_token_sq_s: jax.Array  # [N] float32, seconds / token^2
    decode_base_s: jax.Array  # [N] float32, seconds, > 0
    decode_per_seq_s: jax.Array  # [N] float32, seconds / running request
    decode_per_context_token_s: jax.Array  # [N] float32, seconds / context token
    network_rtt_s: jax.Array  # [N] float32, seconds, added to the E2E latency of each request served
    busy_power_w: jax.Array  # [N] float32, watts while an iteration runs
    idle_power_w: jax.Array  # [N] float32, watts otherwise
    decode_knots: tuple[DecodeKnot, ...] = ()  # by rising batch size, of all experts or none
    # [N] int32, most prompt + output tokens of a request (see README.md, rule 18); None = no limit anywhere
    context_limit_tokens: jax.Array | None = None

    @property
    def num_experts(self) -> int:
        """Number of experts N."""
        return int(self.max_running.shape[-1])

    @property
    def request_capacity_tokens(self) -> Any:
        """[N] int32, most prompt + output tokens of a request: the KV cache, and the context limit if any."""
        if self.context_limit_tokens is None:
            return self.kv_capacity_tokens
        xp = np if isinstance(self.kv_capacity_tokens, np.ndarray) else jnp
        return xp.minimum(self.kv_capacity_tokens, self.context_limit_tokens)


def decode_law(profile: FleetProfile, batch: Any, xp: ModuleType = jnp) -> tuple[Any, Any]:
    """Return what a decode iteration of a batch size takes: a fixed part, and per token of context.

    Args:
      profile: the fleet, leaves [N].
      batch: [N] float32, requests decoding, >= 1.
      xp: the module that computes, ``numpy`` or ``jax.numpy``.

    Returns:
      [N] float32 seconds, and [N] float32 seconds / context token.
    """
    knots = profile.decode_knots
    if not knots:
        return profile.decode_base_s + profile.decode_per_seq_s * batch, profile.decode_per_context_token_s
    fixed_s, per_token_s = knots[0].fixed_s, knots[0].per_context_token_s
    for index, (low, high) in enumerate(itertools.pairwise(knots)):
        # Beyond the last knot the last slope goes on.
        end = np.inf if index == len(knots) - 2 else 1.0
        share = xp.clip((batch - low.batch) / (high.batch - low.batch), 0.0, end)
        fixed_s = fixed_s + share * (high.fixed_s - low.fixed_s)
        rise = high.per_context_token_s - low.per_context_token_s
        # The price of context stays what it is at the last knot: it must not fall below 0.
        per_token_s = per_token_s + xp.minimum(share, 1.0) * rise
    return fixed_s, per_token_s


def slowed(profile: FleetProfile, pace: jax.Array) -> FleetProfile:
    """Return the profile with every iteration time multiplied by ``pace``; limits and network as they are.

    Args:
      profile: the fleet, leaves [N].
      pace: [N] float32, > 0; 1 leaves each bit as it is, more is slower.
    """
    times = (
        "prefill_base_s",
        "prefill_per_token_s",
        "prefill_per_token_sq_s",
        "decode_base_s",
        "decode_per_seq_s",
        "decode_per_context_token_s",
    )
    knots = tuple(
        dataclasses.replace(
            knot, fixed_s=knot.fixed_s * pace, per_context_token_s=knot.per_context_token_s * pace
        )
        for knot in profile.decode_knots
    )
    return dataclasses.replace(
        profile, decode_knots=knots, **{name: getattr(profile, name) * pace for name in times}
    )


def affine_between(profile: FleetProfile, batch: jax.Array) -> FleetProfile:
    """Return the profile with decode times affine in the batch, right for 1 request and for ``batch``.

    Sums over requests that come and go need an affine law; between its two sizes it is a chord. Without
    knots it is the profile itself.

    Args:
      profile: the fleet, leaves [N].
      batch: [N] float32, requests decoding.

    Returns:
      The profile without knots; ``decode_base_s`` may be negative.
    """
    if not profile.decode_knots:
        return profile
    batch = jnp.maximum(batch, 2.0)
    one_s, _ = decode_law(profile, jnp.ones_like(batch))
    all_s, per_token_s = decode_law(profile, batch)
    per_seq_s = (all_s - one_s) / (batch - 1.0)
    return dataclasses.replace(
        profile,
        decode_base_s=one_s - per_seq_s,
        decode_per_seq_s=per_seq_s,
        decode_per_context_token_s=per_token_s,
        decode_knots=(),
    )
