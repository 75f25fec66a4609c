"""Schedule the requests of each expert, if nothing else arrived: who joins the batch when, and who waits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qos_jax.devices import vary_alike
from qos_jax.routing.outlook import Outlook
from qos_jax.routing.whole_batch import whole_batch
from qos_jax.serving import FleetProfile
from qos_jax.serving.scheduler import prefix_sum

_Queue = tuple[jax.Array, jax.Array, jax.Array]


class Schedule(NamedTuple):
    """When each request decodes, in decode iterations from the next boundary, and what its prefill takes."""

    joins: jax.Array  # [N, K] bool, waiting requests prefilled together at the next boundary
    queued: jax.Array  # [N, K] bool, the other waiting requests: each waits for a request of the batch to end
    start: jax.Array  # [N, K] float32 iterations, at which each joins the batch
    needs: jax.Array  # [N, K] float32 iterations, that each still decodes
    alone_s: jax.Array  # [N, K] float32 seconds, prefill of each in an iteration of its own
    partial_s: jax.Array  # [N] float32 seconds, the rest of a partly prefilled prompt
    committed_s: jax.Array  # [N] float32 seconds, to the first decode iteration, without the newcomer
    new_joins: jax.Array  # [N] bool, whether the newcomer is prefilled at the next boundary too
    new_start: jax.Array  # [N] float32 iterations
    new_needs: jax.Array  # [N] float32 iterations
    new_joins_s: jax.Array  # [N] float32 seconds, what the newcomer adds to the prefill at the next boundary
    new_queued_s: jax.Array  # [N] float32 seconds, prefill of the newcomer in an iteration of its own


class _Room(NamedTuple):
    """The requests of each expert and the room that they take; leading axes [...]."""

    live: jax.Array  # [..., N, K] bool
    running: jax.Array  # [..., N, K] bool
    held_tokens: jax.Array  # [..., N, K] float32, KV memory of each once it decodes; 0 of dead ones
    needs: jax.Array  # [..., N, K] float32 iterations
    max_running: jax.Array  # [..., N] int32
    capacity_tokens: jax.Array  # [..., N] float32, of KV memory
    has_room: jax.Array  # [..., N] bool, for all requests there and the newcomer


def schedule_batch(outlook: Outlook) -> Schedule:
    """Schedule every request: waiting ones that fit join at the next boundary.

    Those queued start, in order, when the next request of the batch ends. See serving/README.md, rule 2.
    """
    profile, live, running = outlook.profile, outlook.live, outlook.running
    # The prefill of a waiting request yields one of its tokens.
    waiting = live & ~running
    needs = jnp.where(waiting, jnp.maximum(outlook.left_tokens - 1.0, 0.0), outlook.left_tokens)
    held_tokens = jnp.where(live, outlook.context_tokens + 1.0, 0.0)
    size = jnp.sum(running, axis=-1, dtype=jnp.int32).astype(jnp.float32)
    capacity_tokens = profile.kv_capacity_tokens.astype(jnp.float32) + size
    has_room = (jnp.sum(live, axis=-1, dtype=jnp.int32) < profile.max_running) & (
        jnp.sum(held_tokens, axis=-1) + outlook.new_prompt_tokens + 1.0 <= capacity_tokens
    )
    room = _Room(live, running, held_tokens, needs, profile.max_running, capacity_tokens, has_room)
    queued, start, free = _queue(room)
    joins = waiting & ~queued
    new_start = jnp.where(has_room | ~jnp.isfinite(free), 0.0, free)

    prefill_s = _prefill_s(column_of(profile), outlook.context_tokens)
    new_prefill_s = _prefill_s(profile, outlook.new_prompt_tokens)
    if outlook.cached_tokens is not None and outlook.new_cached_tokens is not None:
        prefill_s = prefill_s - _prefill_s(column_of(profile), outlook.cached_tokens)
        new_prefill_s = new_prefill_s - _prefill_s(profile, outlook.new_cached_tokens)
    # Committed: the iteration in progress, a partly prefilled prompt, the prefill of those that join.
    partial_s = profile.prefill_per_token_s * jnp.sum(
        jnp.where(running, outlook.prefill_left_tokens, 0.0), axis=-1
    )
    batch_s = jnp.sum(jnp.where(joins, prefill_s, 0.0), axis=-1)
    any_joins = jnp.any(joins, axis=-1)
    base_s = jnp.where(any_joins, profile.prefill_base_s, 0.0)
    return Schedule(
        joins=joins,
        queued=queued,
        start=start,
        needs=needs,
        alone_s=prefill_s + profile.prefill_base_s[:, None],
        partial_s=partial_s,
        committed_s=outlook.lead_s + partial_s + batch_s + base_s,
        new_joins=has_room,
        new_start=new_start,
        new_needs=jnp.maximum(outlook.new_output_tokens - 1.0, 0.0),
        new_joins_s=new_prefill_s + jnp.where(any_joins, 0.0, profile.prefill_base_s),
        new_queued_s=new_prefill_s + profile.prefill_base_s,
    )


@whole_batch
def _queue(room: _Room) -> _Queue:
    """Return who is queued, [..., N, K], and the results of :func:`_start_iterations`.

    Nobody is, and nothing is computed, where all experts in use have room for all, as is most often so.
    """
    queued, start = jnp.zeros_like(room.live), jnp.zeros_like(room.needs)
    nobody = queued, start, jnp.zeros_like(room.capacity_tokens)

    def once(loop: tuple[jax.Array, _Queue]) -> tuple[jax.Array, _Queue]:
        rows = (-1, room.live.shape[-1])
        rank = prefix_sum(room.live.astype(jnp.int32).reshape(rows)).reshape(room.live.shape)
        held_tokens = prefix_sum(room.held_tokens.reshape(rows)).reshape(room.live.shape)
        fits = (rank <= room.max_running[..., None]) & (held_tokens <= room.capacity_tokens[..., None])
        queued = room.live & ~room.running & ~fits
        position = prefix_sum(queued.astype(jnp.int32).reshape(rows)).reshape(room.live.shape)
        position = jnp.where(queued, position, 0)
        start, free = _start_iterations(position, room.live & ~queued, room.needs)
        return vary_alike((jnp.bool_(False), (queued, start, free)), loop)

    todo = jnp.any(~room.has_room & jnp.any(room.live, axis=-1))
    return jax.lax.while_loop(lambda loop: loop[0], once, vary_alike((todo, nobody), room))[1]


def _start_iterations(position: jax.Array, batch: jax.Array, needs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the iteration at which each queued request joins: when the next of the batch ends, FIFO.

    One queued request a round. Experts lie along the last axis, since a CPU takes minima along the last
    axis one by one.

    Args:
      position: [..., N, K] int32, queue position among those that wait for room, from 1; 0 outside it.
      batch: [..., N, K] bool, in the batch from the next boundary on.
      needs: [..., N, K] float32, decode iterations each needs.

    Returns:
      [..., N, K] float32, when each of the queue starts, 0 elsewhere; and [..., N] float32, when the next
      request ends once all have started, inf if there is none.
    """
    shape = position.shape
    position, batch, needs = (
        jnp.moveaxis(leaf, -1, 0).reshape(shape[-1], -1) for leaf in (position, batch, needs)
    )
    slot = jnp.arange(shape[-1], dtype=jnp.int32)[:, None]

    def body(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        k, start, ends = carry
        mine = position == k
        free = jnp.min(ends, axis=0, keepdims=True)
        first = jnp.min(jnp.where(ends == free, slot, shape[-1]), axis=0, keepdims=True)
        need = jnp.max(jnp.where(mine, needs, -1.0), axis=0, keepdims=True)
        ends = jnp.where((slot == first) & (need >= 0.0), free + need, ends)
        return k + 1, jnp.where(mine, free, start), ends

    most = jnp.max(position)
    carry = (jnp.int32(1), jnp.zeros_like(needs), jnp.where(batch, needs, jnp.inf))
    _, start, ends = jax.lax.while_loop(lambda carry: carry[0] <= most, body, carry)
    start = jnp.moveaxis(start.reshape(shape[-1], *shape[:-1]), 0, -1)
    return start, jnp.min(ends, axis=0).reshape(shape[:-1])


def column_of(profile: FleetProfile) -> FleetProfile:
    """Return the profile with leaves [..., N, 1], to broadcast against [..., N, K]."""
    return jax.tree.map(lambda leaf: leaf[..., None], profile)


def _prefill_s(profile: FleetProfile, tokens: jax.Array) -> jax.Array:
    """Return the seconds that a prompt of ``tokens`` adds to a prefill iteration, base left out."""
    return tokens * (profile.prefill_per_token_s + profile.prefill_per_token_sq_s * tokens)
