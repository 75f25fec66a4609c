"""Estimate the arrival rate that a fleet can sustain on a given mix of requests."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.serving import cut_at_limit
from qos_jax.serving.profile import FleetProfile, decode_law
from qos_jax.workload.request_table import RequestTable


def capacity_per_s(profile: FleetProfile, table: RequestTable) -> np.ndarray:
    """Return the requests per second that each expert completes if its batch is always full: [N] float64.

    A batch holds B = min(max_running, what the KV cache holds) mean requests; each costs its prefill,
    in a prefill iteration of its own, and its share of B of (output - 1) decode iterations at mid-life
    context. The sum over experts is the fleet's capacity, to which "load" is relative. It is an estimate,
    which leaves out the latency limit, chunked prefill, and which expert suits which request.

    Args:
      profile: the fleet, leaves [N]; outputs count as its context limits cut them.
      table: M requests, of which the mean lengths matter, per expert.
    """
    return _capacity(np, np.float64, profile, table)


def traced_capacity_per_s(profile: FleetProfile, table: RequestTable) -> jax.Array:
    """Return :func:`capacity_per_s` in float32, for use inside a jitted function: [N] float32."""
    return _capacity(jnp, jnp.float32, profile, table)


def _capacity(xp: ModuleType, dtype: Any, profile: FleetProfile, table: RequestTable) -> Any:
    table = cut_at_limit(profile, table, xp)
    prompt = xp.asarray(table.prompt_tokens, dtype).reshape(-1)
    output = xp.asarray(table.output_tokens, dtype).reshape(prompt.size, -1).mean(axis=0)
    return capacity_of_means_per_s(profile, prompt.mean(), xp.mean(prompt**2), output, xp=xp, dtype=dtype)


def capacity_of_means_per_s(
    profile: FleetProfile,
    prompt_tokens: Any,
    prompt_tokens_sq: Any,
    output_tokens: Any,
    *,
    xp: ModuleType = jnp,
    dtype: Any = jnp.float32,
) -> Any:
    """Return :func:`capacity_per_s` from the means of a mix of requests, which broadcast with the profile.

    Args:
      profile: the fleet, leaves [N, ...].
      prompt_tokens: mean prompt, tokens.
      prompt_tokens_sq: mean of the squared prompts.
      output_tokens: mean output per expert, tokens.
      xp: the module that computes, ``numpy`` or ``jax.numpy``.
      dtype: of the result.
    """
    profile = jax.tree.map(lambda leaf: xp.asarray(leaf, dtype), profile)
    context = prompt_tokens + output_tokens / 2
    batch = xp.maximum(xp.minimum(profile.max_running, profile.kv_capacity_tokens / context), 1.0)
    prefill_s = (
        profile.prefill_base_s
        + profile.prefill_per_token_s * prompt_tokens
        + profile.prefill_per_token_sq_s * prompt_tokens_sq
    )
    if profile.decode_knots:
        fixed_s, per_token_s = decode_law(profile, batch, xp)
        decode_s = fixed_s + per_token_s * context * batch
    else:
        decode_s = profile.decode_base_s + batch * (
            profile.decode_per_seq_s + profile.decode_per_context_token_s * context
        )
    return 1.0 / (prefill_s + xp.maximum(output_tokens - 1.0, 0.0) * decode_s / batch)
