"""Observations written by hand: two experts, the first with some equal requests running."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from qos_jax.routing import Observation
from qos_jax.serving import FleetProfile, ServiceLimits

LIMIT_S = 0.06
EXPERTS, SLOTS = 2, 3


def observation(
    *,
    slots=1,
    age_s=0.5,
    generated=10,
    predicted=20.0,
    quality=0.75,
    predicted_new=5.0,
    length_log_std=0.0,
    lead_s=0.0,
) -> Observation:
    """``slots`` requests of prompt 100 run on expert 0; a prompt of 10 tokens has arrived."""

    def both(value, dtype=jnp.float32):
        return jnp.full((EXPERTS,), value, dtype)

    def here(value, dtype):
        return jnp.asarray(np.where(live, value, 0), dtype)

    live = np.zeros((EXPERTS, SLOTS), bool)
    live[0, :slots] = True
    profile = FleetProfile(
        max_running=both(3, jnp.int32),
        max_waiting=both(2, jnp.int32),
        max_batched_tokens=both(512, jnp.int32),
        kv_capacity_tokens=both(1000, jnp.int32),
        prefill_base_s=both(0.1),
        prefill_per_token_s=both(1e-3),
        prefill_per_token_sq_s=both(0.0),
        decode_base_s=both(0.02),
        decode_per_seq_s=both(0.0),
        decode_per_context_token_s=both(2e-4),
        network_rtt_s=both(0.05),
        busy_power_w=both(1.0),
        idle_power_w=both(1.0),
    )
    return Observation(
        step=jnp.int32(7),
        prompt_tokens=jnp.int32(10),
        predicted_output_tokens=both(predicted_new),
        predicted_quality=jnp.array([0.5, 0.9], jnp.float32),
        limits=ServiceLimits(jnp.float32(LIMIT_S)),
        length_log_std=both(length_log_std),
        profile=profile,
        offered_load=jnp.array([0.5, 0.25], jnp.float32),
        mean_output_tokens=both(10.0),
        mean_quality=both(0.7),
        mean_gap_s=jnp.array([0.2, 0.3], jnp.float32),
        available=both(True, bool),
        lead_s=both(lead_s),
        live=jnp.asarray(live),
        running=jnp.asarray(live),
        age_s=here(age_s, jnp.float32),
        slot_prompt_tokens=here(100, jnp.int32),
        slot_generated_tokens=here(generated, jnp.int32),
        slot_prefill_left_tokens=here(0, jnp.int32),
        slot_predicted_output_tokens=jnp.asarray(np.where(live, predicted, 1.0), jnp.float32),
        slot_predicted_quality=here(quality, jnp.float32),
        slot_ttft_s=jnp.asarray(np.where(np.asarray(live) & (generated > 0), 0.0, -1.0), jnp.float32),
    )


def with_slots(seen, **changes):
    """Replace columns of the slots, given as nested lists."""
    return dataclasses.replace(
        seen, **{name: jnp.asarray(value, getattr(seen, name).dtype) for name, value in changes.items()}
    )
