"""Project when everything in flight would complete if nothing else arrived, without and with a newcomer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.outlook import Outlook
from qos_jax.routing.whole_batch import whole_batch
from qos_jax.serving import FleetProfile
from qos_jax.serving.scheduler import prefix_sum


@struct.dataclass
class Projection:
    """Projected E2E latencies, network included, and how much of each is decoding still to come."""

    latency_s: jax.Array  # [N, K] float32, seconds, without the newcomer
    delayed_s: jax.Array  # [N, K] float32, seconds, with the newcomer at that expert
    decode_s: jax.Array  # [N, K] float32, seconds of `latency_s` that scale with the tokens left
    new_latency_s: jax.Array  # [N] float32, seconds, of the newcomer at each expert
    new_decode_s: jax.Array  # [N] float32, seconds of it that scale with its own length
    # Times to first token at the server, where asked for; who has its first token keeps the time it took.
    ttft_s: jax.Array | None = None  # [N, K] float32, seconds, without the newcomer
    delayed_ttft_s: jax.Array | None = None  # [N, K] float32, seconds, with the newcomer at that expert
    to_first_s: jax.Array | None = None  # [N, K] float32, seconds of `ttft_s` still to come
    new_ttft_s: jax.Array | None = None  # [N] float32, seconds, of the newcomer at each expert


class _Admission(NamedTuple):
    """Who enters the batch at the next boundary, and who waits for a request of it to end."""

    joins: jax.Array  # [N, K] bool, waiting requests prefilled together at the next boundary
    queued: jax.Array  # [N, K] bool, the other waiting requests
    new_joins: jax.Array  # [N] bool, whether the newcomer is prefilled at the next boundary too


class _Schedule(NamedTuple):
    """When each request decodes, in decode iterations from the next boundary, and what its prefill takes."""

    start: jax.Array  # [N, K] float32 iterations, at which each joins the batch
    needs: jax.Array  # [N, K] float32 iterations, that each still decodes
    new_start: jax.Array  # [N] float32 iterations
    new_needs: jax.Array  # [N] float32 iterations
    alone_s: jax.Array  # [N, K] float32 seconds, prefill of each in an iteration of its own
    committed_s: jax.Array  # [N] float32 seconds, to the first decode iteration, without the newcomer
    new_joins_s: jax.Array  # [N] float32 seconds, what the newcomer adds to the prefill at the next boundary
    new_queued_s: jax.Array  # [N] float32 seconds, prefill of the newcomer in an iteration of its own


def project(outlook: Outlook, first_tokens: bool = False) -> Projection:
    """Project completions by the closed form over a whole queue at once (see README.md, rule 11).

    Waiting requests that fit at the next boundary are prefilled in one iteration; each of the others
    enters the batch when the next request of it ends, FIFO. This is exact while all fit in the batch
    (``prefill_first``). Where requests wait for room it is an estimate: KV growth, preemption and the
    token budget are left out, and batching is by iterations.

    Args:
      outlook: the queues, and the lengths to project by.
      first_tokens: whether to project times to first token too.
    """
    admission = _admission(outlook)
    schedule = _waiting(outlook, admission)
    latency_s, decode_s = _company(outlook, admission, schedule)
    new_latency_s, new_decode_s, delay_s = _newcomer(outlook, admission, schedule)
    return Projection(
        latency_s=latency_s,
        delayed_s=latency_s + delay_s,
        decode_s=decode_s,
        new_latency_s=new_latency_s,
        new_decode_s=new_decode_s,
        **(_first_tokens(outlook, admission, schedule) if first_tokens else {}),
    )


def _admission(outlook: Outlook) -> _Admission:
    """Admit at the next boundary the waiting requests that fit (see serving/README.md, rule 2)."""
    profile, live = outlook.profile, outlook.live
    waiting = live & ~outlook.running
    rank = prefix_sum(live.astype(jnp.int32))
    footprint = prefix_sum(jnp.where(live, outlook.context_tokens + 1.0, 0.0))
    size = jnp.sum(outlook.running, axis=-1, dtype=jnp.int32)
    capacity = profile.kv_capacity_tokens.astype(jnp.float32) + size.astype(jnp.float32)
    joins = waiting & (rank <= profile.max_running[:, None]) & (footprint <= capacity[:, None])
    queued = waiting & ~joins
    new_joins = (
        ~jnp.any(queued, axis=-1)
        & (rank[:, -1] < profile.max_running)
        & (footprint[:, -1] + outlook.new_prompt_tokens + 1.0 <= capacity)
    )
    return _Admission(joins, queued, new_joins)


def _waiting(outlook: Outlook, admission: _Admission) -> _Schedule:
    """Schedule every request: those queued start, in order, when the next request of the batch ends."""
    profile, running = outlook.profile, outlook.running
    joins, queued, new_joins = admission
    # The prefill of a waiting request yields one of its tokens.
    waiting = outlook.live & ~running
    needs = jnp.where(waiting, jnp.maximum(outlook.left_tokens - 1.0, 0.0), outlook.left_tokens)
    position = jnp.where(queued, prefix_sum(queued.astype(jnp.int32)), 0)
    start, free = _start_iterations(position, running | joins, needs)
    new_start = jnp.where(new_joins, 0.0, free)

    prefill_s = _prefill_s(_column(profile), outlook.context_tokens)
    new_prefill_s = _prefill_s(profile, outlook.new_prompt_tokens)
    if outlook.cached_tokens is not None and outlook.new_cached_tokens is not None:
        prefill_s = prefill_s - _prefill_s(_column(profile), outlook.cached_tokens)
        new_prefill_s = new_prefill_s - _prefill_s(profile, outlook.new_cached_tokens)
    # Committed: the iteration in progress, a partly prefilled prompt, the prefill of those that join.
    partial_s = profile.prefill_per_token_s * jnp.sum(
        jnp.where(running, outlook.prefill_left_tokens, 0.0), axis=-1
    )
    batch_s = jnp.sum(jnp.where(joins, prefill_s, 0.0), axis=-1)
    any_joins = jnp.any(joins, axis=-1)
    base_s = jnp.where(any_joins, profile.prefill_base_s, 0.0)
    return _Schedule(
        start=start,
        needs=needs,
        new_start=jnp.where(jnp.isfinite(new_start), new_start, 0.0),
        new_needs=jnp.maximum(outlook.new_output_tokens - 1.0, 0.0),
        alone_s=prefill_s + profile.prefill_base_s[:, None],
        committed_s=outlook.lead_s + partial_s + batch_s + base_s,
        new_joins_s=new_prefill_s + jnp.where(any_joins, 0.0, profile.prefill_base_s),
        new_queued_s=new_prefill_s + profile.prefill_base_s,
    )


@whole_batch
def _company(outlook: Outlook, admission: _Admission, schedule: _Schedule) -> tuple[jax.Array, jax.Array]:
    """Return E2E latency and decode time of those in flight without the newcomer, [N, K] seconds each.

    The decode time of each is lengthened by the presence of all requests of its expert, and by the prefills
    of queued ones, which hold up all who end later. They are added one after another, from the first live
    slot on: a [K, K] table of pairs would be summed along its last axis, which XLA does not vectorise on a
    CPU. All arguments may have further leading axes.
    """
    column, live = _column(outlook.profile), outlook.live
    start, needs, context = schedule.start, schedule.needs, _decode_context(outlook)
    last = start + needs
    slots = live.shape[-1]
    slot = jnp.arange(slots, dtype=jnp.int32).reshape((1,) * (live.ndim - 1) + (-1,))

    def body(j: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def of(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(leaf, j, 1, axis=-1)

        present = jnp.where(of(live), jnp.clip(last - of(start), 0.0, of(needs)), 0.0)
        held_up = of(admission.queued) & ((of(start) < last) | (slot == j))
        shared_s = _presence_s(column, present, of(context))
        return sums[0] + shared_s, sums[1] + jnp.where(held_up, of(schedule.alone_s), 0.0)

    first = jnp.min(jnp.where(live, slot, slots))
    none = jnp.zeros_like(last)
    shared_s, held_up_s = jax.lax.fori_loop(first, jnp.int32(slots), body, (none, none))
    decode_s = column.decode_base_s * last + shared_s + held_up_s
    entry_s = jnp.where(_leaves(outlook), outlook.lead_s[..., None], schedule.committed_s[..., None])
    return outlook.age_s + entry_s + decode_s + column.network_rtt_s, decode_s


def _newcomer(
    outlook: Outlook, admission: _Admission, schedule: _Schedule
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the newcomer's E2E latency and decode time, [N] seconds, and its delay of others, [N, K]."""
    profile, start, needs = outlook.profile, schedule.start, schedule.needs
    column = _column(profile)
    new_last = (schedule.new_start + schedule.new_needs)[:, None]
    present = jnp.where(outlook.live, jnp.clip(new_last - start, 0.0, needs), 0.0)
    shared_s = jnp.sum(_presence_s(column, present, _decode_context(outlook)), axis=-1)
    decode_s = profile.decode_base_s * new_last[:, 0] + shared_s
    held_up = admission.queued & (start < new_last)
    decode_s = decode_s + jnp.sum(jnp.where(held_up, schedule.alone_s, 0.0), axis=-1)
    context = outlook.new_prompt_tokens + 1.0
    own_s = _presence_s(profile, schedule.new_needs, context)
    entry_s = jnp.where(admission.new_joins, schedule.new_joins_s, schedule.new_queued_s)
    latency_s = schedule.committed_s + profile.network_rtt_s + entry_s + decode_s + own_s

    last, new_start = start + needs, schedule.new_start[:, None]
    overlap = jnp.clip(last - new_start, 0.0, schedule.new_needs[:, None])
    queued_s = jnp.where(new_start < last, schedule.new_queued_s[:, None], 0.0)
    joins_s = jnp.where(admission.new_joins[:, None], schedule.new_joins_s[:, None], queued_s)
    delay_s = _presence_s(column, overlap, context) + joins_s
    return latency_s, decode_s + own_s, jnp.where(_leaves(outlook), 0.0, delay_s)


def _first_tokens(outlook: Outlook, admission: _Admission, schedule: _Schedule) -> dict[str, jax.Array]:
    """Return the times to first token of a :class:`Projection`.

    The newcomer is the last in order, so it delays the first tokens of those alone whose prefill it shares.
    """
    profile, joins = outlook.profile, admission.joins
    column = _column(profile)
    partial_s = profile.prefill_per_token_s * jnp.sum(
        jnp.where(outlook.running, outlook.prefill_left_tokens, 0.0), axis=-1
    )
    joins_s = schedule.committed_s[:, None]
    queued_s = joins_s + column.decode_base_s * schedule.start + _wait_s(outlook, admission, schedule)
    partial_s = (outlook.lead_s + partial_s)[:, None]
    to_come_s = jnp.where(admission.queued, queued_s, jnp.where(joins, joins_s, partial_s))
    known = outlook.ttft_s >= 0.0
    ttft_s = jnp.where(known, outlook.ttft_s, outlook.age_s + to_come_s)
    shared = ~known & joins & admission.new_joins[:, None]

    new_start = schedule.new_start[:, None]
    present = jnp.where(outlook.live, jnp.clip(new_start - schedule.start, 0.0, schedule.needs), 0.0)
    shared_s = jnp.sum(_presence_s(column, present, _decode_context(outlook)), axis=-1)
    held_up_s = jnp.sum(jnp.where(admission.queued, schedule.alone_s, 0.0), axis=-1)
    entry_s = jnp.where(admission.new_joins, schedule.new_joins_s, schedule.new_queued_s)
    new_ttft_s = schedule.committed_s + profile.decode_base_s * schedule.new_start + shared_s + held_up_s
    return {
        "ttft_s": ttft_s,
        "delayed_ttft_s": ttft_s + jnp.where(shared, schedule.new_joins_s[:, None], 0.0),
        "to_first_s": jnp.where(known, 0.0, to_come_s),
        "new_ttft_s": new_ttft_s + entry_s,
    }


@whole_batch
def _wait_s(outlook: Outlook, admission: _Admission, schedule: _Schedule) -> jax.Array:
    """Return what others and its own prefill add to the wait of each queued request, [N, K] seconds.

    Summed one after another as in :func:`_company`, and not at all where nobody is queued. All arguments may
    have further leading axes.
    """
    column, live, queued = _column(outlook.profile), outlook.live, admission.queued
    start, context = schedule.start, _decode_context(outlook)
    slots = live.shape[-1]
    slot = jnp.arange(slots, dtype=jnp.int32).reshape((1,) * (live.ndim - 1) + (-1,))

    def body(j: jax.Array, sum_s: jax.Array) -> jax.Array:
        def of(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(leaf, j, 1, axis=-1)

        present = jnp.where(of(live), jnp.clip(start - of(start), 0.0, of(schedule.needs)), 0.0)
        prefill_s = jnp.where(of(queued) & (j <= slot), of(schedule.alone_s), 0.0)
        return sum_s + _presence_s(column, present, of(context)) + prefill_s

    first = jnp.where(jnp.any(queued), jnp.min(jnp.where(live, slot, slots)), slots)
    return jax.lax.fori_loop(first, jnp.int32(slots), body, jnp.zeros_like(start))


def _decode_context(outlook: Outlook) -> jax.Array:
    """[N, K] float32 tokens of context in the first decode iteration of each: a prefill adds one."""
    return outlook.context_tokens + (outlook.live & ~outlook.running).astype(jnp.float32)


def _leaves(outlook: Outlook) -> jax.Array:
    """[N, K] bool: the last token is generated in the iteration in progress, so no prefill delays it."""
    return outlook.running & (outlook.left_tokens <= 0.0)


def _column(profile: FleetProfile) -> FleetProfile:
    """Return the profile with leaves [..., N, 1], to broadcast against [..., N, K]."""
    return jax.tree.map(lambda leaf: leaf[..., None], profile)


def _prefill_s(profile: FleetProfile, tokens: jax.Array) -> jax.Array:
    """Return the seconds that a prompt of ``tokens`` adds to a prefill iteration, base left out."""
    return tokens * (profile.prefill_per_token_s + profile.prefill_per_token_sq_s * tokens)


def _presence_s(profile: FleetProfile, iterations: jax.Array, context: jax.Array) -> jax.Array:
    """Return the seconds that one request's presence adds to decode iterations, base left out.

    A term of T(m) in serving/README.md, rule 9.

    Args:
      profile: the fleet, leaves that broadcast to the other arguments.
      iterations: [...] float32, decode iterations in which the request takes part.
      context: [...] float32, its tokens of context in the first of them.
    """
    return iterations * (
        profile.decode_per_seq_s + profile.decode_per_context_token_s * (context + 0.5 * (iterations - 1.0))
    )


@whole_batch
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
