"""Put an arriving request into its expert's slots, or reject it."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.serving.profile import FleetProfile
from qos_jax.serving.state import ServingState

Tree = TypeVar("Tree")


@struct.dataclass
class Placement:
    """Where a newcomer goes: which slots move up, and which outcome leaves to make room."""

    accepted: jax.Array  # [] bool, False = rejected, or routed to no expert
    moved: jax.Array  # [N, K] bool, slots that take their right-hand neighbour's content
    last: jax.Array  # [N, K] bool, the slot the newcomer takes
    expert: jax.Array  # [] int32, the expert chosen, clipped to 0..N-1
    evicted: jax.Array  # [] int32, the dead slot of that expert given up


def place(
    profile: FleetProfile,
    state: ServingState,
    expert: jax.Array,
    prompt_tokens: jax.Array,
    output_tokens: jax.Array,
) -> Placement:
    """Decide whether ``expert`` takes a request, and where (DESIGN section 3, rule 1).

    It is rejected if ``max_waiting`` requests wait there now (preempted ones counted), or if
    prompt + output tokens exceed the KV cache.

    Args:
      profile: the fleet, leaves [N].
      state: the experts at the instant of arrival.
      expert: [] int32, 0..N-1; anything else places it nowhere (the router dropped it).
      prompt_tokens: [] int32.
      output_tokens: [N] int32, the answer's length at each expert.
    """
    num_experts, slots = state.live.shape
    waiting = jnp.sum(state.waiting, axis=-1, dtype=jnp.int32)
    # Not as a sum: prompt + output of a mistaken request may exceed int32.
    fits = output_tokens <= profile.kv_capacity_tokens - prompt_tokens
    room = (waiting < profile.max_waiting) & fits
    chosen = (jnp.arange(num_experts) == expert) & room
    evicted = jnp.argmin(state.live, axis=-1).astype(jnp.int32)
    slot = jnp.arange(slots, dtype=jnp.int32)
    inside = jnp.clip(expert, 0, num_experts - 1)
    return Placement(
        accepted=jnp.any(chosen),
        moved=chosen[:, None] & (slot[None, :] >= evicted[:, None]),
        last=chosen[:, None] & (slot == slots - 1)[None, :],
        expert=inside.astype(jnp.int32),
        evicted=evicted[inside],
    )


def insert(placement: Placement, slots: Tree, newcomer: Tree) -> Tree:
    """Write ``newcomer`` into the last slot of its expert; the slots behind the evicted one move up.

    Args:
      placement: from :func:`place`.
      slots: a pytree of [N, K] arrays.
      newcomer: the same pytree of values that broadcast to [N, 1] (one value, or one per expert).
    """

    def shift(old: jax.Array, new: jax.Array) -> jax.Array:
        neighbour = jnp.concatenate([old[:, 1:], old[:, -1:]], axis=1)
        value = jnp.broadcast_to(jnp.asarray(new, old.dtype).reshape(-1, 1), old.shape)
        return jnp.where(placement.last, value, jnp.where(placement.moved, neighbour, old))

    return jax.tree.map(shift, slots, newcomer)


def evict(placement: Placement, slots: Tree) -> Tree:
    """Return what the evicted slot held: the same pytree of [] arrays (meaningless unless accepted)."""
    return jax.tree.map(lambda old: old[placement.expert, placement.evicted], slots)


def arrive(
    placement: Placement,
    state: ServingState,
    request_id: jax.Array,
    prompt_tokens: jax.Array,
    output_tokens: jax.Array,
) -> ServingState:
    """Return the state with the newcomer waiting at its expert, unchanged if it was not accepted.

    Args:
      placement: from :func:`place` on the same state.
      state: the experts at the instant of arrival.
      request_id: [] int32.
      prompt_tokens: [] int32.
      output_tokens: [N] int32.
    """
    newcomer = {
        "request_id": request_id,
        "live": jnp.bool_(True),
        "running": jnp.bool_(False),
        "age_s": jnp.float32(0.0),
        "context_tokens": prompt_tokens,
        "left_tokens": output_tokens,
        "prefill_left_tokens": jnp.int32(0),
        "ttft_s": jnp.float32(-1.0),
        "latency_s": jnp.float32(-1.0),
        "preemptions": jnp.int32(0),
    }
    slots = {name: getattr(state, name) for name in newcomer}
    return dataclasses.replace(state, **insert(placement, slots, newcomer))
