"""What prefix caches spared experts: tokens that were not prefilled, and the seconds that it saved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.serving.profile import FleetProfile
from qos_jax.simulation.records import COMPLETED, RequestRecords


def prefix_spared(records: RequestRecords, profile: FleetProfile) -> dict[str, np.ndarray]:
    """Return what each expert's prefix cache spared it, by name, each [..., N] float64.

    ``prompt_tokens`` and ``cached_tokens`` of the requests it completed, ``hit_rate``, their ratio, and
    ``prefill_saved_s``, as in ``PREFIX_METRICS``.

    Args:
      records: the requests of the runs, [..., T], with prefix caching.
      profile: the fleet, leaves [N] or [..., N].

    Raises:
      ValueError: there is no prefix caching.
    """
    if records.cached_tokens is None:
        raise ValueError("records without prefix caching have no cached tokens")
    per_token_s = np.asarray(profile.prefill_per_token_s, np.float64)
    per_token_sq_s = np.asarray(profile.prefill_per_token_sq_s, np.float64)
    done = records.status == COMPLETED
    each: dict[str, list[np.ndarray]] = {"prompt_tokens": [], "cached_tokens": [], "squares": []}
    for expert in range(per_token_s.shape[-1]):
        here = done & (records.expert == expert)
        cached = np.where(here, records.cached_tokens, 0).astype(np.float64)
        each["prompt_tokens"].append(np.where(here, records.prompt_tokens, 0).sum(-1, dtype=np.float64))
        each["cached_tokens"].append(cached.sum(-1))
        each["squares"].append((cached**2).sum(-1))
    sums = {name: np.stack(values, axis=-1) for name, values in each.items()}
    squares = sums.pop("squares")
    return sums | {
        "hit_rate": _share(sums["cached_tokens"], sums["prompt_tokens"]),
        "prefill_saved_s": per_token_s * sums["cached_tokens"] + per_token_sq_s * squares,
    }


def spared_in_all(records: RequestRecords, profile: FleetProfile) -> dict[str, np.ndarray]:
    """Return the same of all experts together, but the prompt tokens, each [...] float64."""
    spared = prefix_spared(records, profile)
    cached, prompt = (spared[name].sum(-1) for name in ("cached_tokens", "prompt_tokens"))
    saved_s = spared["prefill_saved_s"].sum(-1)
    return {"cached_tokens": cached, "hit_rate": _share(cached, prompt), "prefill_saved_s": saved_s}


def traced_spared(records: Any, profile: FleetProfile) -> dict[str, jax.Array]:
    """Return :func:`spared_in_all` in float32, for use inside a jitted function.

    Args:
      records: of one run, [T]; anything with the fields of :class:`TracedRecords`, with prefix caching.
      profile: the fleet, leaves [N].
    """
    done = records.status == COMPLETED
    cached = jnp.where(done, records.cached_tokens, 0).astype(jnp.float32)
    prompt = jnp.sum(jnp.where(done, records.prompt_tokens, 0).astype(jnp.float32))
    expert = jnp.clip(records.expert, 0, profile.prefill_per_token_s.shape[-1] - 1)
    saved_s = profile.prefill_per_token_s[expert] * cached
    saved_s += profile.prefill_per_token_sq_s[expert] * cached**2
    total = jnp.sum(cached)
    return {
        "cached_tokens": total,
        "hit_rate": jnp.where(prompt > 0, total / jnp.where(prompt > 0, prompt, 1.0), jnp.nan),
        "prefill_saved_s": jnp.sum(saved_s),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, NaN where there is no whole."""
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
