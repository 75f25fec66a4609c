"""The context limit of a request: how long it may get at each expert, and outputs cut there (rule 18)."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any, Protocol, TypeVar

import jax.numpy as jnp

from qos_jax.serving.profile import FleetProfile
from qos_jax.serving.scheduler import BY_NAME


class _Requests(Protocol):
    """Requests with the answers of N experts to each; arrays, further leading axes alike in all."""

    prompt_tokens: Any  # [...] int32
    output_tokens: Any  # [..., N] int32, true
    predicted_output_tokens: Any  # [..., N] float32


Requests = TypeVar("Requests", bound=_Requests)


def with_context_limit(scheduler: str, profile: FleetProfile, xp: ModuleType = jnp) -> FleetProfile:
    """Return the profile with the context limits that hold under a scheduler (see README.md, rules 18, 19).

    Applied to its own result it changes nothing.

    Args:
      scheduler: of every expert, one of ``SCHEDULERS``.
      profile: the fleet, leaves [..., N].
      xp: the module that computes, ``numpy`` or ``jax.numpy``.
    """
    if not BY_NAME[scheduler].splits_memory:
        return profile
    limit = xp.asarray(profile.kv_capacity_tokens) // xp.asarray(profile.max_running)
    if profile.context_limit_tokens is not None:
        limit = xp.minimum(limit, xp.asarray(profile.context_limit_tokens))
    return dataclasses.replace(profile, context_limit_tokens=limit)


def served_output_tokens(
    profile: FleetProfile, prompt_tokens: Any, output_tokens: Any, xp: ModuleType = jnp
) -> Any:
    """Return the output tokens that each expert would generate, cut where prompt + output reach its limit.

    Where the limit leaves no room for one token of output they are left as they are: there the request is
    refused as too long.

    Args:
      profile: the fleet, leaves [N]; its limits are those of :func:`with_context_limit`.
      prompt_tokens: [...] int32.
      output_tokens: [..., N] int32, or float32 if predicted.
      xp: the module that computes, ``numpy`` or ``jax.numpy``.

    Returns:
      [..., N], dtype kept.
    """
    if profile.context_limit_tokens is None:
        return output_tokens
    prompt, output = xp.asarray(prompt_tokens)[..., None], xp.asarray(output_tokens)
    room = xp.asarray(profile.context_limit_tokens).reshape((1,) * (prompt.ndim - 1) + (-1,)) - prompt
    return xp.where(room > 0, xp.minimum(output, room.astype(output.dtype)), output)


def cut_at_limit(profile: FleetProfile, requests: Requests, xp: ModuleType = jnp) -> Requests:
    """Return the requests with outputs, true and predicted, as :func:`served_output_tokens`.

    Args:
      profile: the fleet, leaves [N]; its limits are those of :func:`with_context_limit`.
      requests: a dataclass of them.
      xp: the module that computes, ``numpy`` or ``jax.numpy``.
    """
    if profile.context_limit_tokens is None:
        return requests
    changed: dict[str, Any] = {
        name: served_output_tokens(profile, requests.prompt_tokens, getattr(requests, name), xp)
        for name in ("output_tokens", "predicted_output_tokens")
    }
    return dataclasses.replace(requests, **changed)  # type: ignore[type-var]
