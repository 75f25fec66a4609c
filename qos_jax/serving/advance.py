"""Let time pass: bring N experts from one arrival to the next, in closed form between events.

Times of a gap, in seconds (all words are in README.md):
  lead: from now to the end of the iteration in progress, 0 if there is none; kept in the state.
  offset: from the start of the gap to a boundary; the lead, at first.
  rest: what rounding left out of the offset, which is the sum of both.
  overrun: from the end of the gap to a boundary, offset + rest - gap; at last, the lead where positive.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.devices import batched_like, vary_alike
from qos_jax.serving import latency, prefix, scheduler
from qos_jax.serving.profile import FleetProfile
from qos_jax.serving.scheduler import Batch, PromptPhase, count, masked_sum, once_per_expert
from qos_jax.serving.state import ServingConfig, ServingState

# Stands for the tokens left of a slot that is not running: above any, so the least is a running one's.
_NOT_RUNNING = jnp.iinfo(jnp.int32).max


@struct.dataclass
class Progress:
    """The events and totals of a gap."""

    completed: jax.Array  # [N, K] bool, completed in this gap; their outcome is in the state's slots
    busy_s: jax.Array  # [N] float32, seconds of this gap in which an iteration ran
    kv_token_s: jax.Array  # [N] float32, KV tokens x seconds of the iterations BEGUN in this gap
    rounds: jax.Array  # [] int32, rounds of the event loop, decode runs within one not counted (profiling)
    allocated_tokens: jax.Array | None = None  # [N] int32, KV tokens allocated, with prefix caching


class _Loop(NamedTuple):
    batch: Batch
    active: jax.Array  # [N] bool, experts that have another boundary before the end of the gap
    rounds: jax.Array  # [] int32


class _Decode(NamedTuple):
    """The part of the batch that decoding changes."""

    left_tokens: jax.Array  # [N, K] int32, of those running; _NOT_RUNNING for the others
    latency_s: jax.Array  # [N, K] float32
    offset_s: jax.Array  # [N] float32
    offset_rest_s: jax.Array  # [N] float32
    kv_token_s: jax.Array  # [N] float32
    decodes: jax.Array  # [N] bool, experts that have a decode run ahead


class _Gap(NamedTuple):
    """The constants of a gap."""

    profile: FleetProfile
    rules: scheduler.Scheduler
    age_s: jax.Array  # [N, K] float32, at the start of the gap
    gap_s: jax.Array  # [] float32

    def overrun_s(self, offset_s: jax.Array, offset_rest_s: jax.Array) -> jax.Array:
        """Return the seconds from the end of the gap to a boundary, [N]; negative within it, 0 at its end."""
        return offset_s - self.gap_s + offset_rest_s


# Programs that advance the same shapes share what this traces to; XLA inlines it.
@functools.partial(jax.jit, static_argnums=0)
def advance(
    config: ServingConfig, profile: FleetProfile, state: ServingState, gap_s: jax.Array
) -> tuple[ServingState, Progress]:
    """Advance the experts by ``gap_s`` seconds (see README.md, rules 9 to 13).

    One round of the loop decides at a boundary, covers the prompt iteration, if there is prompt work, and
    then whole runs of decode iterations, from completion to completion, for as long as no boundary
    could decide anything but to decode: nobody waits, memory lasts, and the gap has not ended.

    Args:
      config: static sizes and the scheduler.
      profile: the fleet, leaves [N].
      state: the experts now.
      gap_s: [] float32, seconds, >= 0; ``inf`` drains every expert.

    Returns:
      The experts ``gap_s`` later, and the events and totals of the gap.
    """
    gap_s = jnp.asarray(gap_s, jnp.float32)
    gap = _Gap(profile, scheduler.BY_NAME[config.scheduler], state.age_s, gap_s)
    reached = state.lead_s <= gap_s
    ended = reached[:, None] & state.live & state.running & (state.left_tokens == 0)
    zeros_s, rounds = batched_like((jnp.zeros_like(state.lead_s), jnp.int32(0)), state.lead_s)
    batch = Batch(
        live=state.live & ~ended,
        running=state.running & ~ended,
        total_tokens=state.context_tokens + state.left_tokens,
        left_tokens=state.left_tokens,
        prefill_left_tokens=state.prefill_left_tokens,
        ttft_s=state.ttft_s,
        latency_s=state.latency_s,
        preemptions=state.preemptions,
        offset_s=state.lead_s,
        offset_rest_s=zeros_s,
        kv_token_s=zeros_s,
        prefix=state.prefix,
        block_tokens=prefix.block_tokens(config.scheduler),
    )

    def body(loop: _Loop) -> _Loop:
        batch, goes_on = _round(gap, loop.batch, loop.active)
        before_end = gap.overrun_s(batch.offset_s, batch.offset_rest_s) < 0.0
        return _Loop(batch, goes_on & before_end, loop.rounds + 1)

    start = _Loop(batch, (state.lead_s < gap_s) & (count(batch.live) > 0), rounds)
    start = vary_alike(start, profile, state, gap_s)
    batch, _, rounds = jax.lax.while_loop(lambda loop: jnp.any(loop.active), body, start)
    prefixes, allocated = (
        (None, None) if state.prefix is None else prefix.after_gap(config, profile, state, batch)
    )
    advanced = dataclasses.replace(
        state,
        prefix=prefixes,
        live=batch.live,
        running=batch.running,
        age_s=jnp.where(batch.live, state.age_s + gap_s, state.age_s),
        context_tokens=batch.context_tokens,
        left_tokens=batch.left_tokens,
        prefill_left_tokens=batch.prefill_left_tokens,
        ttft_s=batch.ttft_s,
        latency_s=batch.latency_s,
        preemptions=batch.preemptions,
        lead_s=jnp.maximum(gap.overrun_s(batch.offset_s, batch.offset_rest_s), 0.0),
    )
    progress = Progress(
        completed=state.live & ~batch.live,
        busy_s=jnp.minimum(batch.offset_s, gap_s),
        kv_token_s=batch.kv_token_s,
        rounds=rounds,
        allocated_tokens=allocated,
    )
    return advanced, progress


def _round(gap: _Gap, batch: Batch, active: jax.Array) -> tuple[Batch, jax.Array]:
    """Decide once at every active expert; return the batch after it and who may decide again, [N] bool."""
    phase = gap.rules.decide(gap.profile, batch, active)
    batch = _prompt_iteration(gap, batch, phase)
    # After prompt work, decode at once only if the next boundary would decide the same.
    before_end = gap.overrun_s(batch.offset_s, batch.offset_rest_s) < 0.0
    decodes = active & before_end & (~phase.worked | _must_decode(gap, batch, phase))
    decodes = decodes & (count(batch.running) > 0)
    decoded = _decode(gap, batch, decodes)
    completed = count(batch.running) - count(decoded.running)
    # Rule 13: an expert that cannot progress ends here, where another round would repeat it for ever.
    return decoded, (decodes | phase.worked) & (count(batch.live) > completed)


def _must_decode(gap: _Gap, batch: Batch, phase: PromptPhase) -> jax.Array:
    """Return whether the boundary after a prompt iteration can only decode, memory allowing, [N] bool."""
    decodes = ~scheduler.head_fits(gap.profile, batch, phase)
    if gap.rules.splits_prompts:
        decodes = decodes & (count(batch.running & (batch.prefill_left_tokens > 0)) == 0)
    return decodes


def _prompt_iteration(gap: _Gap, batch: Batch, phase: PromptPhase) -> Batch:
    """Apply the prompt phase: tokens gained, first tokens, completions, time passed."""
    offset_s, rest_s = latency.add_exactly(batch.offset_s, batch.offset_rest_s, phase.duration_s)
    held = masked_sum(phase.running, batch.context_tokens).astype(jnp.float32)
    left = batch.left_tokens - phase.gained.astype(jnp.int32)
    at_s = gap.age_s + offset_s[:, None]
    finished = phase.gained & (left == 0)
    freed = finished & (gap.overrun_s(offset_s, rest_s) <= 0.0)[:, None]
    return dataclasses.replace(
        batch,
        live=batch.live & ~freed,
        running=phase.running & ~freed,
        left_tokens=left,
        prefill_left_tokens=phase.prefill_left_tokens,
        ttft_s=jnp.where(phase.gained & (batch.ttft_s < 0.0), at_s, batch.ttft_s),
        latency_s=_latency_s(gap, finished, at_s, batch.latency_s),
        preemptions=batch.preemptions + phase.preempted.astype(jnp.int32),
        offset_s=offset_s,
        offset_rest_s=rest_s,
        kv_token_s=batch.kv_token_s + held * phase.duration_s,
        prefix=phase.prefix,
    )


def _decode(gap: _Gap, batch: Batch, decodes: jax.Array) -> Batch:
    """Decode to the end of the gap or the first boundary that may decide something else.

    While nobody waits that is to the end of the gap or of memory, from completion to completion; with
    somebody waiting it is to the first completion.
    """
    # Counts of stored masks, since a CPU does not vectorise a count of masks combined slot by slot.
    nobody_waits = count(batch.live) == count(batch.running)
    shared = None if batch.prefix is None else batch.prefix.shared_tokens

    def body(run: _Decode) -> _Decode:
        running = run.left_tokens < _NOT_RUNNING
        size = count(running)
        held = masked_sum(running, batch.total_tokens - run.left_tokens)
        safe_size = jnp.maximum(size, 1)
        own = held if shared is None else held - masked_sum(running, shared)
        in_memory = (gap.profile.kv_capacity_tokens - own) // safe_size
        decodes = run.decodes & (size > 0) & (in_memory > 0)
        first_completion = jnp.min(run.left_tokens, axis=-1)
        bound = jnp.maximum(jnp.minimum(first_completion, in_memory), 1)
        size_f, held_f = safe_size.astype(jnp.float32), held.astype(jnp.float32)
        iterations = latency.decode_iterations_until(
            gap.profile, -gap.overrun_s(run.offset_s, run.offset_rest_s), size_f, held_f, bound
        )
        iterations = jnp.where(decodes, iterations, 0)
        iterations_f = iterations.astype(jnp.float32)
        run_s, run_rest_s = latency.decode_run_parts_s(gap.profile, iterations_f, size_f, held_f)
        offset_s, rest_s = latency.add_exactly(run.offset_s, run.offset_rest_s, run_s)
        offset_s, rest_s = latency.add_exactly(offset_s, jnp.zeros_like(rest_s), run_rest_s + rest_s)
        overrun_s = gap.overrun_s(offset_s, rest_s)
        # Those that finish after the gap hold their slot until the iteration in progress ends.
        freed = once_per_expert((overrun_s <= 0.0).astype(jnp.int32)) > 0
        iterations = once_per_expert(iterations)
        left = run.left_tokens - jnp.where(running, iterations[:, None], 0)
        finished = running & (left == 0) & (iterations > 0)[:, None]
        kv_token_s = latency.decode_run_kv_token_s(gap.profile, iterations_f, size_f, held_f)
        return _Decode(
            left_tokens=jnp.where(finished, jnp.where(freed, _NOT_RUNNING, 0)[:, None], left),
            latency_s=_latency_s(gap, finished, gap.age_s + offset_s[:, None], run.latency_s),
            offset_s=offset_s,
            offset_rest_s=rest_s,
            kv_token_s=run.kv_token_s + kv_token_s,
            decodes=decodes & nobody_waits & (overrun_s < 0.0),
        )

    start = _Decode(
        left_tokens=jnp.where(batch.running, batch.left_tokens, _NOT_RUNNING),
        latency_s=batch.latency_s,
        offset_s=batch.offset_s,
        offset_rest_s=batch.offset_rest_s,
        kv_token_s=batch.kv_token_s,
        decodes=decodes,
    )
    start = vary_alike(start, gap.profile, gap.age_s, gap.gap_s)
    end = jax.lax.while_loop(lambda run: jnp.any(run.decodes), body, start)
    running = end.left_tokens < _NOT_RUNNING
    freed = batch.running & ~running
    return dataclasses.replace(
        batch,
        live=batch.live & ~freed,
        running=running,
        left_tokens=jnp.where(freed, 0, jnp.where(running, end.left_tokens, batch.left_tokens)),
        latency_s=end.latency_s,
        offset_s=end.offset_s,
        offset_rest_s=end.offset_rest_s,
        kv_token_s=end.kv_token_s,
    )


def _latency_s(gap: _Gap, finished: jax.Array, at_s: jax.Array, latency_s: jax.Array) -> jax.Array:
    """Return E2E latencies, [N, K], set for those that just got their last token at age ``at_s``."""
    return jnp.where(finished, at_s + gap.profile.network_rtt_s[:, None], latency_s)
