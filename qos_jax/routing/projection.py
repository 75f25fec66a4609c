"""Project when everything in flight would complete if nothing else arrived, without and with a newcomer."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.batch_schedule import Schedule, column_of, schedule_batch
from qos_jax.routing.outlook import Outlook
from qos_jax.routing.whole_batch import whole_batch
from qos_jax.serving import FleetProfile

# Slots whose company is added in one round of a loop, at most: each round reads and writes the sums.
_ADDED_TOGETHER = 16


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
    schedule = schedule_batch(outlook)
    latency_s, decode_s = _company(outlook, schedule)
    new_latency_s, new_decode_s, delay_s = _newcomer(outlook, schedule)
    return Projection(
        latency_s=latency_s,
        delayed_s=latency_s + delay_s,
        decode_s=decode_s,
        new_latency_s=new_latency_s,
        new_decode_s=new_decode_s,
        **(_first_tokens(outlook, schedule) if first_tokens else {}),
    )


@whole_batch
def _company(outlook: Outlook, schedule: Schedule) -> tuple[jax.Array, jax.Array]:
    """Return E2E latency and decode time of those in flight without the newcomer, [N, K] seconds each.

    The decode time of each is lengthened by the presence of all requests of its expert, and by the prefills
    of queued ones, which hold up all who end later. They are added one after another, from the first live
    slot on: a [K, K] table of pairs would be summed along its last axis, which XLA does not vectorise on a
    CPU. All arguments may have further leading axes.
    """
    column, queued = column_of(outlook.profile), schedule.queued
    start, needs, context = schedule.start, schedule.needs, _decode_context(outlook)
    last = start + needs
    slots = last.shape[-1]
    slot = jnp.arange(slots, dtype=jnp.int32).reshape((1,) * (last.ndim - 1) + (-1,))

    # Those in the batch from the next boundary on share as many iterations as either has left.
    in_batch = jnp.where(outlook.live & ~queued, needs, 0.0)
    weight = column.decode_per_seq_s + column.decode_per_context_token_s * (context - 0.5)
    half = 0.5 * column.decode_per_context_token_s
    together = math.gcd(slots, _ADDED_TOGETHER)

    def of_batch(i: jax.Array, sum_s: jax.Array) -> jax.Array:
        need, each = (
            jax.lax.dynamic_slice_in_dim(leaf, i * together, together, axis=-1) for leaf in (in_batch, weight)
        )
        for j in range(together):
            shared = jnp.minimum(last, need[..., j : j + 1])
            sum_s = sum_s + shared * (each[..., j : j + 1] + half * shared)
        return sum_s

    def of_queue(j: jax.Array, sum_s: jax.Array) -> jax.Array:
        def of(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(leaf, j, 1, axis=-1)

        present = jnp.where(of(queued), jnp.clip(last - of(start), 0.0, of(needs)), 0.0)
        held_up = of(queued) & ((of(start) < last) | (slot == j))
        shared_s = _presence_s(column, present, of(context))
        return sum_s + shared_s + jnp.where(held_up, of(schedule.alone_s), 0.0)

    # With one chunk there is nothing to skip, and a loop of one round is no loop.
    chunks = slots // together
    first = _first_slot(outlook.live) // together if chunks > 1 else 0
    shared_s = jax.lax.fori_loop(first, chunks, of_batch, jnp.zeros_like(last))
    shared_s = jax.lax.fori_loop(_first_slot(queued), jnp.int32(slots), of_queue, shared_s)
    decode_s = column.decode_base_s * last + shared_s
    entry_s = jnp.where(_leaves(outlook), outlook.lead_s[..., None], schedule.committed_s[..., None])
    return outlook.age_s + entry_s + decode_s + column.network_rtt_s, decode_s


def _newcomer(outlook: Outlook, schedule: Schedule) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the newcomer's E2E latency and decode time, [N] seconds, and its delay of others, [N, K]."""
    profile, start, needs = outlook.profile, schedule.start, schedule.needs
    column = column_of(profile)
    new_last = (schedule.new_start + schedule.new_needs)[:, None]
    present = jnp.clip(new_last - start, 0.0, needs)
    # Masked after the products: with a mask before them XLA calls a library for both them and the sum.
    present_s = jnp.where(outlook.live, _presence_s(column, present, _decode_context(outlook)), 0.0)
    shared_s = jnp.sum(present_s, axis=-1)
    decode_s = profile.decode_base_s * new_last[:, 0] + shared_s
    held_up = schedule.queued & (start < new_last)
    decode_s = decode_s + jnp.sum(jnp.where(held_up, schedule.alone_s, 0.0), axis=-1)
    context = outlook.new_prompt_tokens + 1.0
    own_s = _presence_s(profile, schedule.new_needs, context)
    entry_s = jnp.where(schedule.new_joins, schedule.new_joins_s, schedule.new_queued_s)
    latency_s = schedule.committed_s + profile.network_rtt_s + entry_s + decode_s + own_s

    last, new_start = start + needs, schedule.new_start[:, None]
    overlap = jnp.clip(last - new_start, 0.0, schedule.new_needs[:, None])
    queued_s = jnp.where(new_start < last, schedule.new_queued_s[:, None], 0.0)
    joins_s = jnp.where(schedule.new_joins[:, None], schedule.new_joins_s[:, None], queued_s)
    delay_s = _presence_s(column, overlap, context) + joins_s
    return latency_s, decode_s + own_s, jnp.where(_leaves(outlook), 0.0, delay_s)


def _first_tokens(outlook: Outlook, schedule: Schedule) -> dict[str, jax.Array]:
    """Return the times to first token of a :class:`Projection`.

    The newcomer is the last in order, so it delays the first tokens of those alone whose prefill it shares.
    """
    profile, joins = outlook.profile, schedule.joins
    column = column_of(profile)
    joins_s = schedule.committed_s[:, None]
    queued_s = joins_s + column.decode_base_s * schedule.start + _wait_s(outlook, schedule)
    running_s = (outlook.lead_s + schedule.partial_s)[:, None]
    to_come_s = jnp.where(schedule.queued, queued_s, jnp.where(joins, joins_s, running_s))
    known = outlook.ttft_s >= 0.0
    ttft_s = jnp.where(known, outlook.ttft_s, outlook.age_s + to_come_s)
    shared = ~known & joins & schedule.new_joins[:, None]

    new_start = schedule.new_start[:, None]
    present = jnp.where(outlook.live, jnp.clip(new_start - schedule.start, 0.0, schedule.needs), 0.0)
    shared_s = jnp.sum(_presence_s(column, present, _decode_context(outlook)), axis=-1)
    held_up_s = jnp.sum(jnp.where(schedule.queued, schedule.alone_s, 0.0), axis=-1)
    entry_s = jnp.where(schedule.new_joins, schedule.new_joins_s, schedule.new_queued_s)
    new_ttft_s = schedule.committed_s + profile.decode_base_s * schedule.new_start + shared_s + held_up_s
    return {
        "ttft_s": ttft_s,
        "delayed_ttft_s": ttft_s + jnp.where(shared, schedule.new_joins_s[:, None], 0.0),
        "to_first_s": jnp.where(known, 0.0, to_come_s),
        "new_ttft_s": new_ttft_s + entry_s,
    }


@whole_batch
def _wait_s(outlook: Outlook, schedule: Schedule) -> jax.Array:
    """Return what others and its own prefill add to the wait of each queued request, [N, K] seconds.

    Summed one after another as in :func:`_company`, and not at all where nobody is queued. All arguments may
    have further leading axes.
    """
    column, live, queued = column_of(outlook.profile), outlook.live, schedule.queued
    start, context = schedule.start, _decode_context(outlook)
    slots = live.shape[-1]
    slot = jnp.arange(slots, dtype=jnp.int32).reshape((1,) * (live.ndim - 1) + (-1,))

    def body(j: jax.Array, sum_s: jax.Array) -> jax.Array:
        def of(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(leaf, j, 1, axis=-1)

        present = jnp.where(of(live), jnp.clip(start - of(start), 0.0, of(schedule.needs)), 0.0)
        prefill_s = jnp.where(of(queued) & (j <= slot), of(schedule.alone_s), 0.0)
        return sum_s + _presence_s(column, present, of(context)) + prefill_s

    first = jnp.where(jnp.any(queued), _first_slot(live), slots)
    return jax.lax.fori_loop(first, jnp.int32(slots), body, jnp.zeros_like(start))


def _first_slot(mask: jax.Array) -> jax.Array:
    """Return the first slot that is set anywhere in [..., N, K], [] int32; K if there is none."""
    slot_has = jnp.any(mask, axis=tuple(range(mask.ndim - 1)))
    return jnp.where(jnp.any(slot_has), jnp.argmax(slot_has).astype(jnp.int32), mask.shape[-1])


def _decode_context(outlook: Outlook) -> jax.Array:
    """[N, K] float32 tokens of context in the first decode iteration of each: a prefill adds one."""
    return outlook.context_tokens + (outlook.live & ~outlook.running).astype(jnp.float32)


def _leaves(outlook: Outlook) -> jax.Array:
    """[N, K] bool: the last token is generated in the iteration in progress, so no prefill delays it."""
    return outlook.running & (outlook.left_tokens <= 0.0)


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
