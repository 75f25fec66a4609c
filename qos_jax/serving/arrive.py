"""Assign an arriving request a slot of its expert, or reject it."""

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
class SlotAssignment:
    """Whether an expert accepts a newcomer, and which of its slots move up (README.md, rule 11)."""

    accepted: jax.Array  # [] bool, False = rejected, or routed to no expert
    too_long: jax.Array  # [] bool, rejected since the expert's KV cache or context limit can never hold it
    expert: jax.Array  # [] int32, the expert chosen, clipped to 0..N-1
    evicted: jax.Array  # [] int32, the dead slot of that expert to overwrite
    moved: jax.Array  # [K] bool, slots of that expert that take the content of the next slot


def assign_slot(
    profile: FleetProfile,
    state: ServingState,
    expert: jax.Array,
    prompt_tokens: jax.Array,
    output_tokens: jax.Array,
) -> SlotAssignment:
    """Accept or reject a request at ``expert``, and choose its slot (see README.md, rules 1 and 11).

    Args:
      profile: the fleet, leaves [N], with the context limits that hold (``with_context_limit``).
      state: the experts at the instant of arrival.
      expert: [] int32, 0..N-1; any other number is not accepted (the router dropped the request).
      prompt_tokens: [] int32.
      output_tokens: [N] int32, output length at each expert, as ``served_output_tokens`` cuts it.

    Returns:
      The assignment, on which :func:`insert`, :func:`evicted_content` and :func:`enqueue` act.
    """
    num_experts, slots = state.live.shape
    inside = jnp.clip(expert, 0, num_experts - 1).astype(jnp.int32)
    waiting = jnp.sum(state.waiting[inside], dtype=jnp.int32)
    # Not as a sum: prompt + output of an invalid request may exceed int32.
    fits = output_tokens[inside] <= profile.request_capacity_tokens[inside] - prompt_tokens
    chosen = expert == inside
    accepted = chosen & (waiting < profile.max_waiting[inside]) & fits
    # The LAST dead slot, so that those in flight stay together at the end.
    evicted = jnp.int32(slots - 1) - jnp.argmin(state.live[inside][::-1]).astype(jnp.int32)
    moved = accepted & (jnp.arange(slots, dtype=jnp.int32) >= evicted)
    return SlotAssignment(
        accepted=accepted, too_long=chosen & ~fits, expert=inside, evicted=evicted, moved=moved
    )


def insert(assignment: SlotAssignment, slots: Tree, newcomer: Tree) -> Tree:
    """Write ``newcomer`` into the last slot of its expert; the slots behind the evicted one move up.

    Only that expert's slots are read and written, not masks over all N experts, to spare memory traffic.

    Args:
      assignment: from :func:`assign_slot`.
      slots: a pytree of [N, K] arrays.
      newcomer: a pytree of the same structure; each leaf one value, or one per expert, [N].

    Returns:
      ``slots`` with the newcomer, unchanged if it was not accepted.
    """

    def shift(old: jax.Array, new: jax.Array) -> jax.Array:
        value = jnp.broadcast_to(jnp.asarray(new, old.dtype).reshape(-1), old.shape[:1])[assignment.expert]
        row = jax.lax.dynamic_index_in_dim(old, assignment.expert, keepdims=False)
        row = jnp.where(assignment.moved, jnp.append(row[1:], value), row)
        return jax.lax.dynamic_update_index_in_dim(old, row, assignment.expert, 0)

    return jax.tree.map(shift, slots, newcomer)


def evicted_content(assignment: SlotAssignment, slots: Tree) -> Tree:
    """Return what the evicted slot of a pytree of [N, K] arrays holds, [] each; undefined if not accepted."""
    return jax.tree.map(lambda old: old[assignment.expert, assignment.evicted], slots)


def enqueue(
    assignment: SlotAssignment,
    state: ServingState,
    request_id: jax.Array,
    prompt_tokens: jax.Array,
    output_tokens: jax.Array,
    age_s: jax.Array | float = 0.0,
) -> ServingState:
    """Add the newcomer to the waiting queue of its expert; the state is unchanged if it was not accepted.

    Args:
      assignment: from :func:`assign_slot` on the same state.
      state: the experts at the instant of arrival.
      request_id: [] int32.
      prompt_tokens: [] int32.
      output_tokens: [N] int32, output length at each expert.
      age_s: [] float32, seconds since it first arrived; above 0 for one that is routed again, whose times
        still count from then. It queues as the latest all the same.
    """
    newcomer = {
        "request_id": request_id,
        "live": jnp.bool_(True),
        "running": jnp.bool_(False),
        "age_s": jnp.asarray(age_s, jnp.float32),
        "context_tokens": prompt_tokens,
        "left_tokens": output_tokens,
        "prefill_left_tokens": jnp.int32(0),
        "ttft_s": jnp.float32(-1.0),
        "latency_s": jnp.float32(-1.0),
        "preemptions": jnp.int32(0),
    }
    slots = {name: getattr(state, name) for name in newcomer}
    return dataclasses.replace(state, **insert(assignment, slots, newcomer))
