"""Estimate the arrival rate that a fleet can sustain on a given mix of requests."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.serving.profile import FleetProfile
from qos_jax.workload.request_table import RequestTable


def capacity_per_s(profile: FleetProfile, table: RequestTable) -> np.ndarray:
    """Requests a second that each expert could complete if its batch were always full, [N] float64.

    A batch holds B = min(max_running, what the KV cache holds) mean requests; each costs its prefill,
    in a prefill iteration of its own, and its share of B of (output - 1) decode iterations at mid-life
    context. The sum is the fleet's capacity: what "load" is relative to. An estimate: it knows nothing of
    L, of chunking, or of which expert suits which request.

    Args:
      profile: the fleet, leaves [N].
      table: M requests; their mean lengths matter, per expert.
    """
    return _capacity(np, np.float64, profile, table)


def traced_capacity_per_s(profile: FleetProfile, table: RequestTable) -> jax.Array:
    """The same in float32, for use inside a jitted function: [N] float32."""
    return _capacity(jnp, jnp.float32, profile, table)


def capacity_of_means_per_s(
    profile: FleetProfile, prompt_tokens: jax.Array, prompt_tokens_sq: jax.Array, output_tokens: jax.Array
) -> jax.Array:
    """The same from the means of a mix of requests, which broadcast against the profile's leaves.

    Args:
      profile: the fleet, leaves [N, ...].
      prompt_tokens: mean prompt.
      prompt_tokens_sq: mean of the squared prompts.
      output_tokens: mean output, per expert.
    """
    return _of_means(jnp, jnp.float32, profile, prompt_tokens, prompt_tokens_sq, output_tokens)


def _capacity(xp: ModuleType, dtype: Any, profile: FleetProfile, table: RequestTable) -> Any:
    prompt = xp.asarray(table.prompt_tokens, dtype).reshape(-1)
    output = xp.asarray(table.output_tokens, dtype).reshape(prompt.size, -1).mean(axis=0)
    return _of_means(xp, dtype, profile, prompt.mean(), xp.mean(prompt**2), output)


def _of_means(
    xp: ModuleType, dtype: Any, profile: FleetProfile, prompt: Any, prompt_sq: Any, output: Any
) -> Any:
    fleet = {name: xp.asarray(value, dtype) for name, value in vars(profile).items()}
    context = prompt + output / 2
    batch = xp.maximum(xp.minimum(fleet["max_running"], fleet["kv_capacity_tokens"] / context), 1.0)
    prefill_s = (
        fleet["prefill_base_s"]
        + fleet["prefill_per_token_s"] * prompt
        + fleet["prefill_per_token_sq_s"] * prompt_sq
    )
    decode_s = fleet["decode_base_s"] + batch * (
        fleet["decode_per_seq_s"] + fleet["decode_per_context_token_s"] * context
    )
    return 1.0 / (prefill_s + xp.maximum(output - 1.0, 0.0) * decode_s / batch)
