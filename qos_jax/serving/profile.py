"""The profile of a fleet: every expert's limits, iteration times and power, as one pytree."""

from __future__ import annotations

import jax
from flax import struct


@struct.dataclass
class FleetProfile:
    """Limits, iteration-time coefficients and power of N experts; every leaf is traced, so sweepable.

    Iteration times are affine in tokens, requests and context: see README.md, rules 3, 4 and 8.
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

    @property
    def num_experts(self) -> int:
        """Number of experts N."""
        return int(self.max_running.shape[-1])
