"""Estimate the arrival rate that a fleet can sustain on a given mix of requests."""

from __future__ import annotations

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
    prompt = np.asarray(table.prompt_tokens, np.float64).reshape(-1)
    output = np.asarray(table.output_tokens, np.float64).reshape(prompt.size, -1).mean(axis=0)
    fleet = {name: np.asarray(value, np.float64) for name, value in vars(profile).items()}
    context = prompt.mean() + output / 2
    batch = np.maximum(np.minimum(fleet["max_running"], fleet["kv_capacity_tokens"] / context), 1.0)
    prefill_s = (
        fleet["prefill_base_s"]
        + fleet["prefill_per_token_s"] * prompt.mean()
        + fleet["prefill_per_token_sq_s"] * np.mean(prompt**2)
    )
    decode_s = fleet["decode_base_s"] + batch * (
        fleet["decode_per_seq_s"] + fleet["decode_per_context_token_s"] * context
    )
    return 1.0 / (prefill_s + np.maximum(output - 1.0, 0.0) * decode_s / batch)
