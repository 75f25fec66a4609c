"""What happens at an iteration boundary: preemption, admission and prompt processing, by scheduler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.serving.latency import prefill_s
from qos_jax.serving.profile import FleetProfile, decode_law
from qos_jax.serving.state import LLAMA_CPP, PrefixSlots


@struct.dataclass
class Batch:
    """The part of the serving state that changes within a gap between two arrivals."""

    live: jax.Array  # [N, K] bool
    running: jax.Array  # [N, K] bool
    total_tokens: jax.Array  # [N, K] int32, prompt + output; does not change
    left_tokens: jax.Array  # [N, K] int32
    prefill_left_tokens: jax.Array  # [N, K] int32
    ttft_s: jax.Array  # [N, K] float32
    latency_s: jax.Array  # [N, K] float32
    preemptions: jax.Array  # [N, K] int32
    offset_s: jax.Array  # [N] float32, seconds from the start of the gap to this boundary
    offset_rest_s: jax.Array  # [N] float32, seconds, what rounding left out of the offset
    kv_token_s: jax.Array  # [N] float32, KV tokens held x seconds, of the iterations begun in this gap
    prefix: PrefixSlots | None = None  # with prefix caching
    block_tokens: int = struct.field(pytree_node=False, default=1)  # of the cache, which holds whole blocks

    @property
    def context_tokens(self) -> jax.Array:
        """[N, K] int32, prompt and generated tokens."""
        return self.total_tokens - self.left_tokens

    @property
    def own_tokens(self) -> jax.Array:
        """[N, K] int32, the context less what an earlier live request holds too: what it adds to memory."""
        context = self.context_tokens
        return context if self.prefix is None else context - self.prefix.shared_tokens

    @property
    def uncached_tokens(self) -> jax.Array:
        """[N, K] int32, the context that a waiting request has to prefill: at least its last token."""
        prefix = self.prefix
        if prefix is None:
            return self.context_tokens
        cached = jnp.minimum(prefix.cached_tokens, jnp.maximum(prefix.life_tokens, prefix.shared_tokens))
        cached = jnp.clip(cached, 0, self.context_tokens - 1)
        return self.context_tokens - cached // self.block_tokens * self.block_tokens


@struct.dataclass
class PromptPhase:
    """The prompt work decided at a boundary: one iteration with prefill, or none."""

    running: jax.Array  # [N, K] bool, the batch once preempted and admitted
    preempted: jax.Array  # [N, K] bool, sent back to wait
    gained: jax.Array  # [N, K] bool, one more token at the end of the iteration
    prefill_left_tokens: jax.Array  # [N, K] int32, after the iteration
    duration_s: jax.Array  # [N] float32, 0 = no prompt work
    worked: jax.Array  # [N] bool, there is prompt work
    rank: jax.Array  # [N, K] int32, position among the live slots before the iteration, from 1
    prefix: PrefixSlots | None = None  # after the admissions and preemptions, with prefix caching


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """One way to decide at a boundary."""

    # (profile, batch, active [N] bool) -> the prompt phase at this boundary of the active experts
    decide: Callable[[FleetProfile, Batch, jax.Array], PromptPhase]
    # Whether an iteration may leave a prompt partly prefilled.
    splits_prompts: bool
    # Whether each slot owns an equal share of the KV cache, so that memory never runs out between requests.
    splits_memory: bool = False


def masked_sum(mask: jax.Array, values: jax.Array) -> jax.Array:
    """Return the sum of ``values`` over the last axis where ``mask`` holds: [N, K] -> [N], dtype kept."""
    return jnp.sum(jnp.where(mask, values, 0), axis=-1, dtype=values.dtype)


def count(mask: jax.Array) -> jax.Array:
    """Count the True along the last axis: [N, K] bool -> [N] int32."""
    return jnp.sum(mask, axis=-1, dtype=jnp.int32)


def once_per_expert(values: jax.Array) -> jax.Array:
    """Return ``values`` unchanged, [N] int32 in 0..2^31 - 2, computed once and not again for each slot.

    XLA on CPU repeats cheap arithmetic on [N] in every loop over [N, K] that uses its result (it drops
    ``jax.lax.optimization_barrier`` before it does so), and may then leave that loop scalar. A remainder
    counts as too costly to repeat.
    """
    return jax.lax.rem(values, jnp.int32(jnp.iinfo(jnp.int32).max))


def prefix_sum(values: jax.Array) -> jax.Array:
    """Return the inclusive sum along the slots, dtype kept: [N, K] -> [N, K].

    By doubling shifts, which are faster than ``jnp.cumsum`` on CPU for tens of slots.
    """
    slots = values.shape[-1]
    shift = 1
    while shift < slots:
        values = values + jnp.pad(values, ((0, 0), (shift, 0)))[:, :slots]
        shift *= 2
    return values


def prefill_first(profile: FleetProfile, batch: Batch, active: jax.Array) -> PromptPhase:
    """Admit and prefill if the head fits, else preempt to decode (see README.md, rules 2 to 4).

    Every test is on a prefix of the slots, since the running requests precede the waiting ones: with
    ``footprint`` the inclusive prefix sum of context + 1 over live slots and ``rank`` of their number,
    the KV test of a waiting request is ``footprint - B <= kv`` and the one of a running request that
    decodes is ``footprint <= kv``.
    """
    waiting = batch.live & ~batch.running
    size = count(batch.running)
    uncached = batch.uncached_tokens
    rank = prefix_sum(batch.live.astype(jnp.int32))
    footprint = prefix_sum(jnp.where(batch.live, batch.own_tokens + 1, 0))
    # Prefill tokens up to and with this waiting request:
    if batch.prefix is None:
        prompt = footprint - (masked_sum(batch.running, batch.context_tokens)[:, None] + rank)
    else:
        prompt = prefix_sum(jnp.where(waiting, uncached, 0))
    admitted = (
        active[:, None]
        & waiting
        & (rank <= profile.max_running[:, None])
        & (footprint - size[:, None] <= profile.kv_capacity_tokens[:, None])
        & ((rank == size[:, None] + 1) | (prompt <= profile.max_batched_tokens[:, None]))
    )
    worked = jnp.any(admitted, axis=-1)
    preempted = (
        (active & ~worked)[:, None] & batch.running & (footprint > profile.kv_capacity_tokens[:, None])
    )
    tokens = masked_sum(admitted, uncached).astype(jnp.float32)
    context = batch.context_tokens.astype(jnp.float32)
    tokens_sq = masked_sum(admitted, context * context)
    if batch.prefix is not None:
        done = (batch.context_tokens - uncached).astype(jnp.float32)
        tokens_sq = tokens_sq - masked_sum(admitted, done * done)
    return PromptPhase(
        running=(batch.running | admitted) & ~preempted,
        preempted=preempted,
        gained=admitted,
        prefill_left_tokens=batch.prefill_left_tokens,
        duration_s=jnp.where(worked, prefill_s(profile, tokens, tokens_sq), 0.0),
        worked=worked,
        rank=rank,
        prefix=_prefix_after(batch, admitted, preempted),
    )


def chunked_prefill(profile: FleetProfile, batch: Batch, active: jax.Array) -> PromptPhase:
    """Preempt first, then a token for each decoding request, then prompts (see README.md, rules 6 to 8).

    With the prefix sums of :func:`prefill_first`, memory and admission share one KV test,
    ``footprint <= kv``: a running request that fails it is preempted, a waiting one not admitted.
    """
    size_limit = profile.max_running[:, None]
    uncached = batch.uncached_tokens
    rank = prefix_sum(batch.live.astype(jnp.int32))
    footprint = prefix_sum(jnp.where(batch.live, batch.own_tokens + 1, 0))
    in_memory = footprint <= profile.kv_capacity_tokens[:, None]
    preempted = active[:, None] & batch.running & ~in_memory
    kept = batch.running & ~preempted
    partial = kept & (batch.prefill_left_tokens > 0)
    decoding = kept & ~partial
    decoders = count(decoding)
    budget = profile.max_batched_tokens - decoders
    # At most one prompt is partly prefilled: whoever left it so took the rest of the budget.
    resumed = jnp.minimum(masked_sum(partial, batch.prefill_left_tokens), budget)
    spare = (budget - resumed)[:, None]
    waiting = batch.live & ~batch.running
    # Prefill tokens of the waiting ones ahead; if any was preempted, the test of memory fails for all.
    if batch.prefix is None:
        held = masked_sum(batch.running, batch.context_tokens)
        ahead = footprint - held[:, None] - rank - uncached
    else:
        ahead = prefix_sum(jnp.where(waiting, uncached, 0)) - uncached
    admitted = active[:, None] & waiting & (rank <= size_limit) & in_memory & (ahead < spare)
    chunk = jnp.where(admitted, jnp.minimum(uncached, spare - ahead), 0) + jnp.where(
        active[:, None] & partial, resumed[:, None], 0
    )
    done = jnp.where(partial, batch.context_tokens - batch.prefill_left_tokens, 0)
    if batch.prefix is not None:
        done = jnp.where(admitted, batch.context_tokens - uncached, done)
    tokens = jnp.sum(chunk, axis=-1, dtype=jnp.int32)
    worked = tokens > 0
    prefill_left = jnp.where(admitted, uncached, batch.prefill_left_tokens) - chunk
    prefilled = (admitted | partial) & (prefill_left == 0)
    before = done.astype(jnp.float32)
    step = chunk.astype(jnp.float32)
    tokens_sq = jnp.sum(step * (step + 2.0 * before), axis=-1)  # (done + chunk)^2 - done^2
    duration_s = prefill_s(profile, (tokens + decoders).astype(jnp.float32), tokens_sq)
    _, per_token_s = decode_law(profile, jnp.maximum(decoders, 1).astype(jnp.float32))
    held = masked_sum(decoding, batch.context_tokens).astype(jnp.float32)
    duration_s = duration_s + per_token_s * held
    return PromptPhase(
        running=kept | admitted,
        preempted=preempted,
        gained=worked[:, None] & (decoding | prefilled) & active[:, None],
        prefill_left_tokens=jnp.where(preempted, 0, prefill_left),
        duration_s=jnp.where(worked, duration_s, 0.0),
        worked=worked,
        rank=rank,
        prefix=_prefix_after(batch, admitted, preempted),
    )


def _prefix_after(batch: Batch, admitted: jax.Array, preempted: jax.Array) -> PrefixSlots | None:
    """Return the slots' prefixes after a boundary: a preempted request's blocks are the next to be taken."""
    prefix = batch.prefix
    if prefix is None:
        return None
    context, found = batch.context_tokens, batch.context_tokens - batch.uncached_tokens
    cached = jnp.where(admitted, found, jnp.where(preempted, context, prefix.cached_tokens))
    return dataclasses.replace(
        prefix,
        cached_tokens=cached,
        life_tokens=jnp.where(preempted, context, prefix.life_tokens),
        hit_tokens=jnp.where(admitted & (prefix.hit_tokens < 0), found, prefix.hit_tokens),
    )


def head_fits(profile: FleetProfile, batch: Batch, phase: PromptPhase) -> jax.Array:
    """Return whether the first waiting request might be admitted at the boundary after a prompt iteration.

    See README.md, rule 2; chunked prefill, which also keeps a token free for each running request,
    may then still refuse it.

    Args:
      profile: the fleet, leaves [N].
      batch: the experts at that boundary.
      phase: the prompt work just done.

    Returns:
      [N] bool, False where nobody waits.
    """
    # Those running, some of whom may just have completed, are the first by rank; the head is the next.
    head = phase.rank == (count(phase.running) + 1)[:, None]
    head = head & batch.live & ~batch.running
    prompt = masked_sum(head, batch.own_tokens)
    held = masked_sum(batch.running, batch.own_tokens)
    return (
        (prompt > 0)
        & (count(batch.running) < profile.max_running)
        & (held + prompt + 1 <= profile.kv_capacity_tokens)
    )


BY_NAME = {
    "prefill_first": Scheduler(prefill_first, splits_prompts=False),
    "chunked_prefill": Scheduler(chunked_prefill, splits_prompts=True),
    # Its context limits leave the tests of memory nothing to refuse (see README.md, rule 19).
    LLAMA_CPP: Scheduler(chunked_prefill, splits_prompts=True, splits_memory=True),
}
