"""Random observations of a fleet of any size: idle, crowded and full experts, equal ones, none available."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.routing import Observation
from qos_jax.serving import FleetProfile, ServiceLimits

RUNNING, WAITING = 3, 2
SLOTS = RUNNING + WAITING


def random_seen(seed: int, experts: int = 3) -> Observation:
    """One in four scenes has every queue full; one in four, each expert twice or more."""
    rng = np.random.default_rng(seed)
    full, twins = seed % 4 == 1, seed % 4 == 2

    def uniform(low, high, shape=(experts,), dtype=np.float32):
        return rng.uniform(low, high, shape).astype(dtype)

    slots = (experts, SLOTS)
    in_flight = np.full(experts, SLOTS) if full else rng.integers(0, SLOTS + 1, experts)
    running = np.minimum(in_flight, RUNNING)
    place = np.arange(SLOTS)
    live = place < in_flight[:, None]
    generated = rng.integers(1, 60, slots)

    def held(values, empty=0):
        return np.where(live, values, empty)

    profile = FleetProfile(
        max_running=np.full(experts, RUNNING, np.int32),
        max_waiting=np.full(experts, WAITING, np.int32),
        max_batched_tokens=np.full(experts, 512, np.int32),
        kv_capacity_tokens=rng.integers(800, 2000, experts).astype(np.int32),
        prefill_base_s=uniform(0.01, 0.05),
        prefill_per_token_s=uniform(1e-4, 1e-3),
        prefill_per_token_sq_s=uniform(0.0, 1e-6),
        decode_base_s=uniform(0.01, 0.04),
        decode_per_seq_s=uniform(0.0, 2e-3),
        decode_per_context_token_s=uniform(0.0, 2e-5),
        network_rtt_s=uniform(0.0, 0.05),
        busy_power_w=uniform(200.0, 300.0),
        idle_power_w=uniform(20.0, 50.0),
    )
    seen = Observation(
        step=np.int32(rng.integers(0, 100)),
        prompt_tokens=np.int32(rng.integers(1, 200)),
        predicted_output_tokens=uniform(1.0, 80.0),
        predicted_quality=uniform(0.0, 1.0),
        limits=ServiceLimits(np.float32(rng.uniform(0.03, 0.08))),
        length_log_std=uniform(0.2, 0.8),
        profile=profile,
        offered_load=rng.uniform(0.2, 1.5, 2).astype(np.float32),
        mean_output_tokens=uniform(1.0, 80.0),
        mean_quality=uniform(0.0, 1.0),
        mean_gap_s=np.array([0.2, 0.3], np.float32),
        available=in_flight - running < WAITING,
        lead_s=np.where(in_flight > 0, uniform(0.0, 0.05), 0.0).astype(np.float32),
        live=live,
        running=place < running[:, None],
        age_s=held(uniform(0.0, 3.0, slots)).astype(np.float32),
        slot_prompt_tokens=held(rng.integers(1, 200, slots)).astype(np.int32),
        slot_generated_tokens=held(np.where(place < running[:, None], generated, 0)).astype(np.int32),
        slot_prefill_left_tokens=np.zeros(slots, np.int32),
        slot_predicted_output_tokens=held(uniform(1.0, 80.0, slots), 1.0).astype(np.float32),
        slot_predicted_quality=held(uniform(0.0, 1.0, slots)).astype(np.float32),
        slot_ttft_s=np.where(place < running[:, None], 0.1, -1.0).astype(np.float32),
    )
    return jax.tree.map(jnp.asarray, reordered(seen, np.arange(experts) // 2 * 2) if twins else seen)


def random_scenes(count: int, experts: int = 3) -> Observation:
    """Scenes 0 to ``count`` - 1, leaves [count, ...]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(random_seen(i, experts) for i in range(count)))


def reordered(tree, rows, axis: int = 0):
    """Take these rows of every leaf that has an axis of experts there."""
    of_the_request = ("step", "prompt_tokens", "limits", "offered_load", "mean_gap_s")
    changed = {
        field.name: jax.tree.map(
            lambda leaf: jnp.asarray(np.take(np.asarray(leaf), rows, axis)), getattr(tree, field.name)
        )
        for field in dataclasses.fields(tree)
        if field.name not in of_the_request
    }
    return dataclasses.replace(tree, **changed)
