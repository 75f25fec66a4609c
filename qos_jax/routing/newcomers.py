"""Enter requests at many experts of a believed fleet at once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.fleet_state import FleetState
from qos_jax.routing.whole_batch import max_over_batch
from qos_jax.serving.state import PrefixSlots

# A believed fleet, and the tokens of each slot that are known for certain, [N, K] int32.
Believed = tuple[FleetState, jax.Array]


@struct.dataclass
class Newcomer:
    """A request to enter at each of N experts; every leaf [N]."""

    request_id: jax.Array  # [N] int32
    prompt_tokens: jax.Array  # [N] int32; 0 = there is none
    output_tokens: jax.Array  # [N] int32, as believed
    generated_tokens: jax.Array  # [N] int32
    predicted_output_tokens: jax.Array  # [N] float32
    predicted_quality: jax.Array  # [N] float32
    age_s: jax.Array  # [N] float32, seconds
    prefix: PrefixSlots | None = None  # leaves [N], with prefix caching


def no_newcomer(num_experts: int, prefix: PrefixSlots | None = None) -> Newcomer:
    """Return the newcomer before there was any; ``prefix`` of none, leaves [N], with prefix caching."""
    ints, floats = jnp.zeros((num_experts,), jnp.int32), jnp.zeros((num_experts,), jnp.float32)
    return Newcomer(ints, ints, ints, ints, jnp.ones((num_experts,), jnp.float32), floats, floats, prefix)


def add_each(believed: Believed, number: jax.Array, newcomer: Newcomer) -> Believed:
    """Enter ``number`` [N] int32 such requests at each expert, while slots are free."""
    rounds = max_over_batch(jnp.max(number))

    def body(index: jax.Array, believed: Believed) -> Believed:
        return _add(believed, index < number, newcomer)

    return jax.lax.fori_loop(jnp.int32(0), rounds, body, believed)


def _add(believed: Believed, mask: jax.Array, newcomer: Newcomer) -> Believed:
    """Enter the request as the last waiting one at each expert of ``mask`` [N] bool that has a free slot."""
    fleet, synced_tokens = believed
    serving, new = fleet.serving, newcomer
    slots = serving.live.shape[1]
    evicted = jnp.int32(slots - 1) - jnp.argmin(serving.live[:, ::-1], axis=1).astype(jnp.int32)
    taken = mask & ~jnp.all(serving.live, axis=1)
    moved = taken[:, None] & (jnp.arange(slots, dtype=jnp.int32)[None] >= evicted[:, None])

    def entered(old: jax.Array, value: jax.Array | float | bool) -> jax.Array:
        last = jnp.broadcast_to(jnp.asarray(value, old.dtype), old.shape[:1])[:, None]
        return jnp.where(moved, jnp.concatenate([old[:, 1:], last], axis=1), old)

    serving = dataclasses.replace(
        serving,
        request_id=entered(serving.request_id, new.request_id),
        live=entered(serving.live, True),
        running=entered(serving.running, False),
        age_s=entered(serving.age_s, new.age_s),
        context_tokens=entered(serving.context_tokens, new.prompt_tokens + new.generated_tokens),
        left_tokens=entered(serving.left_tokens, jnp.maximum(new.output_tokens - new.generated_tokens, 1)),
        prefill_left_tokens=entered(serving.prefill_left_tokens, 0),
        ttft_s=entered(serving.ttft_s, -1.0),
        latency_s=entered(serving.latency_s, -1.0),
        preemptions=entered(serving.preemptions, 0),
        prefix=jax.tree.map(entered, serving.prefix, new.prefix),
    )
    fleet = dataclasses.replace(
        fleet,
        serving=serving,
        prompt_tokens=entered(fleet.prompt_tokens, new.prompt_tokens),
        output_tokens=entered(fleet.output_tokens, new.output_tokens),
        quality=entered(fleet.quality, new.predicted_quality),
        predicted_output_tokens=entered(fleet.predicted_output_tokens, new.predicted_output_tokens),
        predicted_quality=entered(fleet.predicted_quality, new.predicted_quality),
    )
    return fleet, entered(synced_tokens, new.generated_tokens)
