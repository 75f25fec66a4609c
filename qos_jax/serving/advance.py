"""Let time pass: bring N experts from one arrival to the next, in closed form between events."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.serving import latency, scheduler
from qos_jax.serving.profile import FleetProfile
from qos_jax.serving.scheduler import Batch, PromptPhase, count, masked_sum
from qos_jax.serving.state import ServingConfig, ServingState


@struct.dataclass
class Progress:
    """What happened while time passed."""

    completed: jax.Array  # [N, K] bool, completed in this gap; their outcome is in the state's slots
    busy_s: jax.Array  # [N] float32, seconds of this gap in which an iteration ran
    kv_token_s: jax.Array  # [N] float32, KV tokens x seconds of the iterations BEGUN in this gap
    rounds: jax.Array  # [] int32, rounds of the event loop (for profiling)


class _Loop(NamedTuple):
    batch: Batch
    active: jax.Array  # [N] bool, experts that have another boundary before the end of the gap
    rounds: jax.Array  # [] int32


def advance(
    config: ServingConfig, profile: FleetProfile, state: ServingState, gap_s: jax.Array
) -> tuple[ServingState, Progress]:
    """Let ``gap_s`` seconds pass (DESIGN section 3, exact but for float32 rounding).

    Iterations that end within the gap end, its last instant included; one begins at every boundary
    BEFORE the end of the gap. A boundary at the very end waits for the arrivals of that instant.
    One round of the loop covers a prompt iteration, if there is prompt work, and then a whole run of
    decode iterations up to the next event: a completion, memory running out, or the end of the gap.

    Args:
      config: static sizes and the scheduler.
      profile: the fleet, leaves [N].
      state: the experts now.
      gap_s: [] float32, seconds, >= 0; ``inf`` drains every expert.

    Returns:
      The experts ``gap_s`` later, and what happened meanwhile.
    """
    rules = scheduler.BY_NAME[config.scheduler]
    gap_s = jnp.asarray(gap_s, jnp.float32)
    reached = state.lead_s <= gap_s
    ended = reached[:, None] & state.live & state.running & (state.left_tokens == 0)
    batch = Batch(
        live=state.live & ~ended,
        running=state.running & ~ended,
        context_tokens=state.context_tokens,
        left_tokens=state.left_tokens,
        prefill_left_tokens=state.prefill_left_tokens,
        ttft_s=state.ttft_s,
        latency_s=state.latency_s,
        preemptions=state.preemptions,
        completed=ended,
        offset_s=state.lead_s,
        kv_token_s=jnp.zeros_like(state.lead_s),
    )

    def body(loop: _Loop) -> _Loop:
        batch, progressed = _round(profile, loop.batch, loop.active, state.age_s, gap_s, rules)
        # An expert that could not progress ends here instead of hanging the program.
        active = progressed & (batch.offset_s < gap_s) & jnp.any(batch.live, axis=-1)
        return _Loop(batch, active, loop.rounds + 1)

    start = _Loop(batch, (state.lead_s < gap_s) & jnp.any(batch.live, axis=-1), jnp.int32(0))
    batch, _, rounds = jax.lax.while_loop(lambda loop: jnp.any(loop.active), body, start)
    advanced = dataclasses.replace(
        state,
        live=batch.live,
        running=batch.running,
        age_s=jnp.where(batch.live, state.age_s + gap_s, state.age_s),
        context_tokens=batch.context_tokens,
        left_tokens=batch.left_tokens,
        prefill_left_tokens=batch.prefill_left_tokens,
        ttft_s=batch.ttft_s,
        latency_s=batch.latency_s,
        preemptions=batch.preemptions,
        lead_s=jnp.maximum(batch.offset_s - gap_s, 0.0),
    )
    progress = Progress(
        completed=batch.completed,
        busy_s=jnp.minimum(batch.offset_s, gap_s),
        kv_token_s=batch.kv_token_s,
        rounds=rounds,
    )
    return advanced, progress


def _round(
    profile: FleetProfile,
    batch: Batch,
    active: jax.Array,
    age_s: jax.Array,
    gap_s: jax.Array,
    rules: scheduler.Scheduler,
) -> tuple[Batch, jax.Array]:
    """One event of every active expert; returns the batch after it and who progressed, [N] bool."""
    phase = rules.decide(profile, batch, active)
    batch = _prompt_iteration(profile, batch, phase, age_s, gap_s)
    size = count(batch.running)
    held = masked_sum(batch.running, batch.context_tokens)
    # After prompt work, decode at once only if the next boundary would decide the same.
    settled = ~phase.worked | (
        ~scheduler.head_fits(profile, batch, size, held + size if rules.keeps_growth_free else held)
        & (held + size <= profile.kv_capacity_tokens)
        & ~jnp.any(batch.running & (batch.prefill_left_tokens > 0), axis=-1)
    )
    decodes = active & settled & (size > 0) & (batch.offset_s < gap_s)
    return _decode_run(profile, batch, decodes, size, held, age_s, gap_s), decodes | phase.worked


def _prompt_iteration(
    profile: FleetProfile, batch: Batch, phase: PromptPhase, age_s: jax.Array, gap_s: jax.Array
) -> Batch:
    """Apply the prompt phase: tokens gained, first tokens, completions, time passed."""
    offset_s = batch.offset_s + phase.duration_s
    held = masked_sum(phase.running, batch.context_tokens).astype(jnp.float32)
    gained = phase.gained.astype(jnp.int32)
    left = batch.left_tokens - gained
    at_s = age_s + offset_s[:, None]
    batch = dataclasses.replace(
        batch,
        running=phase.running,
        context_tokens=batch.context_tokens + gained,
        left_tokens=left,
        prefill_left_tokens=phase.prefill_left_tokens,
        ttft_s=jnp.where(phase.gained & (batch.ttft_s < 0.0), at_s, batch.ttft_s),
        preemptions=batch.preemptions + phase.preempted.astype(jnp.int32),
        offset_s=offset_s,
        kv_token_s=batch.kv_token_s + held * phase.duration_s,
    )
    return _complete(profile, batch, phase.gained & (left == 0), at_s, gap_s)


def _decode_run(
    profile: FleetProfile,
    batch: Batch,
    decodes: jax.Array,
    size: jax.Array,
    held: jax.Array,
    age_s: jax.Array,
    gap_s: jax.Array,
) -> Batch:
    """Run decode iterations up to the first completion, the end of memory or the end of the gap."""
    most = jnp.iinfo(jnp.int32).max
    first_completion = jnp.min(jnp.where(batch.running, batch.left_tokens, most), axis=-1)
    safe_size = jnp.maximum(size, 1)
    in_memory = (profile.kv_capacity_tokens - held) // safe_size
    bound = jnp.maximum(jnp.minimum(first_completion, in_memory), 1)
    size_f, held_f = safe_size.astype(jnp.float32), held.astype(jnp.float32)
    iterations = latency.decode_iterations_until(profile, gap_s - batch.offset_s, size_f, held_f, bound)
    iterations = jnp.where(decodes, iterations, 0)
    iterations_f = iterations.astype(jnp.float32)
    offset_s = batch.offset_s + latency.decode_run_s(profile, iterations_f, size_f, held_f)
    grown = jnp.where(batch.running, iterations[:, None], 0)
    left = batch.left_tokens - grown
    batch = dataclasses.replace(
        batch,
        context_tokens=batch.context_tokens + grown,
        left_tokens=left,
        offset_s=offset_s,
        kv_token_s=batch.kv_token_s + latency.decode_run_kv_token_s(profile, iterations_f, size_f, held_f),
    )
    finished = decodes[:, None] & batch.running & (left == 0)
    return _complete(profile, batch, finished, age_s + offset_s[:, None], gap_s)


def _complete(
    profile: FleetProfile, batch: Batch, finished: jax.Array, at_s: jax.Array, gap_s: jax.Array
) -> Batch:
    """Note the latency of requests that got their last token; free those that did within the gap.

    The others hold their slot until the iteration in progress ends, after the next arrival.
    """
    freed = finished & (batch.offset_s <= gap_s)[:, None]
    return dataclasses.replace(
        batch,
        live=batch.live & ~freed,
        running=batch.running & ~freed,
        latency_s=jnp.where(finished, at_s + profile.network_rtt_s[:, None], batch.latency_s),
        completed=batch.completed | freed,
    )
