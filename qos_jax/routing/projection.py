"""Project when everything in flight would complete if nothing else arrived, without and with a newcomer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.observation import Observation, TrueObservation
from qos_jax.routing.whole_batch import whole_batch
from qos_jax.serving import FleetProfile
from qos_jax.serving.scheduler import prefix_sum


@struct.dataclass
class Outlook:
    """The queues and the newcomer, with the lengths to project them by (predicted or true)."""

    profile: FleetProfile  # leaves [N]
    lead_s: jax.Array  # [N] float32, seconds
    live: jax.Array  # [N, K] bool
    running: jax.Array  # [N, K] bool
    age_s: jax.Array  # [N, K] float32, seconds
    context_tokens: jax.Array  # [N, K] float32, prompt + generated
    prefill_left_tokens: jax.Array  # [N, K] float32, of a partly prefilled prompt
    left_tokens: jax.Array  # [N, K] float32, output tokens still to come
    output_tokens: jax.Array  # [N, K] float32, generated + left
    new_prompt_tokens: jax.Array  # [] float32
    new_output_tokens: jax.Array  # [N] float32


@struct.dataclass
class Projection:
    """Projected E2E latencies, network included, and how much of each is decoding still to come."""

    latency_s: jax.Array  # [N, K] float32, seconds, without the newcomer
    delayed_s: jax.Array  # [N, K] float32, seconds, with the newcomer at that expert
    decode_s: jax.Array  # [N, K] float32, seconds of `latency_s` that scale with the tokens left
    new_latency_s: jax.Array  # [N] float32, seconds, of the newcomer at each expert
    new_decode_s: jax.Array  # [N] float32, seconds of it that scale with its own length


def left_given_survival(
    predicted_tokens: jax.Array, generated_tokens: jax.Array, length_log_std: jax.Array
) -> jax.Array:
    """Median tokens left of an answer that has already reached ``generated_tokens``.

    The length is log-normal about the prediction, conditioned on the tokens generated (README.md, rule 12):
    an answer that outlived its prediction is not about to end, it is one of the long ones. With
    z = log(generated / predicted) / std, the conditional median is at the normal quantile of
    1 - SF(z) / 2; beyond z = 3, where float32 has no digits left, it is z + log(2) / hazard with the
    asymptote z + 1 / z of the normal hazard (2% off the tokens left at worst).

    Args:
      predicted_tokens: [...] float32, medians, > 0.
      generated_tokens: [...] float32, >= 0.
      length_log_std: [...] float32, >= 0; 0 = predictions are exact.

    Returns:
      [...] float32, at least 1.
    """
    std = jnp.maximum(length_log_std, 1e-3)
    z = jnp.log(jnp.maximum(generated_tokens, 0.5) / predicted_tokens) / std
    near = jax.scipy.special.ndtri(1.0 - 0.5 * jax.scipy.special.ndtr(-jnp.minimum(z, 3.0)))
    beyond = jnp.maximum(z, 1.0)
    far = z + jnp.log(2.0) / (beyond + 1.0 / beyond)
    median = predicted_tokens * jnp.exp(std * jnp.where(z < 3.0, near, far))
    return jnp.maximum(median - generated_tokens, 1.0)


def predicted_outlook(seen: Observation) -> Outlook:
    """Outlook of a router: predicted lengths, corrected for what each request has outlived."""
    generated = seen.slot_generated_tokens.astype(jnp.float32)
    left = left_given_survival(seen.slot_predicted_output_tokens, generated, seen.length_log_std[:, None])
    return _outlook(seen, left, seen.predicted_output_tokens)


def true_outlook(truth: TrueObservation) -> Outlook:
    """Outlook of an oracle: true lengths."""
    left = (truth.slot_output_tokens - truth.seen.slot_generated_tokens).astype(jnp.float32)
    return _outlook(truth.seen, left, truth.output_tokens.astype(jnp.float32))


def _outlook(seen: Observation, left: jax.Array, new_output: jax.Array) -> Outlook:
    generated = seen.slot_generated_tokens.astype(jnp.float32)
    return Outlook(
        profile=seen.profile,
        lead_s=seen.lead_s,
        live=seen.live,
        running=seen.running,
        age_s=seen.age_s,
        context_tokens=(seen.slot_prompt_tokens + seen.slot_generated_tokens).astype(jnp.float32),
        prefill_left_tokens=seen.slot_prefill_left_tokens.astype(jnp.float32),
        left_tokens=left,
        output_tokens=generated + left,
        new_prompt_tokens=seen.prompt_tokens.astype(jnp.float32),
        new_output_tokens=new_output,
    )


def project(outlook: Outlook) -> Projection:
    """Project completions by the closed form over a whole queue at once (see README.md, rule 11).

    Waiting requests that fit at the next boundary are taken in one prefill iteration; each of the
    others takes the place of the next request to end, FIFO. That is the simulator's own course while
    all fits in the batch (prefill-first; tested), and an estimate where requests wait for room: there
    KV growth, preemption and the token budget are left out, and batching is by iterations.
    """
    profile = outlook.profile
    waiting = outlook.live & ~outlook.running
    prompt = outlook.context_tokens
    prefill = _prefill_s(profile, prompt)
    new_prefill = _prefill_s(profile, outlook.new_prompt_tokens[None, None])[:, 0]
    # Decode iterations each still needs: the prefill itself yields a token.
    needs = jnp.where(waiting, jnp.maximum(outlook.left_tokens - 1.0, 0.0), outlook.left_tokens)
    new_needs = jnp.maximum(outlook.new_output_tokens - 1.0, 0.0)

    live = outlook.live
    rank = prefix_sum(live.astype(jnp.int32))
    footprint = prefix_sum(jnp.where(live, prompt + 1.0, 0.0))
    size = jnp.sum(outlook.running, axis=-1, dtype=jnp.int32)
    capacity = profile.kv_capacity_tokens.astype(jnp.float32) + size.astype(jnp.float32)
    joins = waiting & (rank <= profile.max_running[:, None]) & (footprint <= capacity[:, None])
    queued = waiting & ~joins
    new_joins = (
        ~jnp.any(queued, axis=-1)
        & (rank[:, -1] < profile.max_running)
        & (footprint[:, -1] + outlook.new_prompt_tokens + 1.0 <= capacity)
    )
    order = jnp.where(queued, prefix_sum(queued.astype(jnp.int32)), 0)
    start, free = _start_iterations(order, outlook.running | joins, needs)
    new_start = jnp.where(new_joins, 0.0, free)
    new_start = jnp.where(jnp.isfinite(new_start), new_start, 0.0)

    # Time already committed: the iteration in progress, a half-done prompt, the prefill of who joins.
    partial_s = profile.prefill_per_token_s * jnp.sum(
        jnp.where(outlook.running, outlook.prefill_left_tokens, 0.0), axis=-1
    )
    batch_s = jnp.sum(jnp.where(joins, prefill, 0.0), axis=-1)
    base_s = jnp.where(jnp.any(joins, axis=-1), profile.prefill_base_s, 0.0)
    wait_s = outlook.lead_s + partial_s + batch_s + base_s
    new_joins_s = new_prefill + jnp.where(jnp.any(joins, axis=-1), 0.0, profile.prefill_base_s)
    new_queued_s = new_prefill + profile.prefill_base_s

    last = start + needs
    context = prompt + waiting.astype(jnp.float32)  # the prefill adds a token to who waits
    alone_s = prefill + profile.prefill_base_s[:, None]
    shared_s, held_up_s = _company_s(profile, last, start, needs, context, live, queued, alone_s)
    decode_s = profile.decode_base_s[:, None] * last + shared_s + held_up_s
    # A request whose last token is in the making leaves before any prefill.
    leaves = outlook.running & (outlook.left_tokens <= 0.0)
    entry_s = jnp.where(leaves, outlook.lead_s[:, None], wait_s[:, None])
    latency_s = outlook.age_s + entry_s + decode_s + profile.network_rtt_s[:, None]

    new_last = new_start + new_needs
    new_shared_s = _decode_s(profile, new_last[:, None], start, needs, context, live)[:, 0]
    new_held_up = queued & (start < new_last[:, None])
    new_shared_s = new_shared_s + jnp.sum(jnp.where(new_held_up, alone_s, 0.0), axis=-1)
    new_own_s = _own_decode_s(profile, new_needs, outlook.new_prompt_tokens)
    new_entry_s = jnp.where(new_joins, new_joins_s, new_queued_s)
    new_latency_s = wait_s + profile.network_rtt_s + new_entry_s + new_shared_s + new_own_s

    overlap = jnp.clip(last - new_start[:, None], 0.0, new_needs[:, None])
    shared_s = _own_decode_s(_column(profile), overlap, outlook.new_prompt_tokens[None, None])
    queued_s = jnp.where(new_start[:, None] < last, new_queued_s[:, None], 0.0)
    delay_s = shared_s + jnp.where(new_joins[:, None], new_joins_s[:, None], queued_s)
    delay_s = jnp.where(leaves, 0.0, delay_s)
    return Projection(
        latency_s=latency_s,
        delayed_s=latency_s + delay_s,
        decode_s=decode_s,
        new_latency_s=new_latency_s,
        new_decode_s=new_shared_s + new_own_s,
    )


def _column(profile: FleetProfile) -> FleetProfile:
    """The profile with leaves [N, 1], to stand beside [N, K] arrays."""
    return jax.tree.map(lambda leaf: leaf[:, None], profile)


def _prefill_s(profile: FleetProfile, tokens: jax.Array) -> jax.Array:
    """Seconds a prompt of ``tokens`` ([N, K] or [1, 1]) adds to a prefill iteration: [N, K]."""
    column = _column(profile)
    return tokens * (column.prefill_per_token_s + column.prefill_per_token_sq_s * tokens)


def _own_decode_s(profile: FleetProfile, iterations: jax.Array, context: jax.Array) -> jax.Array:
    """What one request adds to ``iterations`` decode iterations, base left out.

    The iteration that generates token k of them reads context + k - 1 tokens, after its prefill's one.
    """
    return iterations * (
        profile.decode_per_seq_s
        + profile.decode_per_context_token_s * (context + 1.0 + 0.5 * (iterations - 1.0))
    )


def _decode_s(
    profile: FleetProfile,
    until: jax.Array,
    start: jax.Array,
    needs: jax.Array,
    context: jax.Array,
    live: jax.Array,
) -> jax.Array:
    """T(m) of serving/README.md, rule 9, at m = ``until``, each request present from its start for its need.

    Args:
      profile: the fleet, leaves [N].
      until: [N, J] float32, decode iterations from the next boundary.
      start: [N, K] float32, the iteration at which each request joins the batch.
      needs: [N, K] float32, decode iterations each needs.
      context: [N, K] float32, tokens.
      live: [N, K] bool.

    Returns:
      [N, J] float32 seconds.
    """
    present = jnp.clip(until[:, :, None] - start[:, None, :], 0.0, needs[:, None, :])
    present = jnp.where(live[:, None, :], present, 0.0)
    column = _column(_column(profile))
    shared = present * (
        column.decode_per_seq_s
        + column.decode_per_context_token_s * (context[:, None, :] + 0.5 * (present - 1.0))
    )
    return profile.decode_base_s[:, None] * until + jnp.sum(shared, axis=-1)


@whole_batch
def _company_s(
    profile: FleetProfile,
    last: jax.Array,
    start: jax.Array,
    needs: jax.Array,
    context: jax.Array,
    live: jax.Array,
    queued: jax.Array,
    alone_s: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """What all requests of an expert add to the decoding of each of them, itself included.

    Request by request over the slots from the first live one on: with a table [K, K] of all pairs the whole
    projection took twice as long on CPU, where sums along the last axis are not vectorised.

    Args:
      profile: the fleet, leaves [..., N].
      last: [..., N, K] float32, the iteration at which each ends.
      start: [..., N, K] float32, the iteration at which each joins the batch.
      needs: [..., N, K] float32, decode iterations each needs.
      context: [..., N, K] float32, tokens.
      live: [..., N, K] bool.
      queued: [..., N, K] bool, waiting for a place.
      alone_s: [..., N, K] float32, seconds of a prefill iteration of each by itself.

    Returns:
      [..., N, K] float32 seconds by which their presence lengthens the decode iterations until ``last``; and
      [..., N, K] float32 seconds of the prefills until then: a queued request is prefilled in an iteration of
      its own, which holds up all who end later.
    """
    slots = live.shape[-1]
    slot = jnp.arange(slots, dtype=jnp.int32).reshape((1,) * (live.ndim - 1) + (-1,))
    per_seq_s = profile.decode_per_seq_s[..., None]
    per_token_s = profile.decode_per_context_token_s[..., None]

    def body(j: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def of(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(leaf, j, 1, axis=-1)

        present = jnp.clip(last - of(start), 0.0, of(needs))
        present = jnp.where(of(live), present, 0.0)
        shared_s = present * (per_seq_s + per_token_s * (of(context) + 0.5 * (present - 1.0)))
        held_up = of(queued) & ((of(start) < last) | (slot == j))
        return sums[0] + shared_s, sums[1] + jnp.where(held_up, of(alone_s), 0.0)

    first = jnp.min(jnp.where(live, slot, slots))
    return jax.lax.fori_loop(first, jnp.int32(slots), body, (jnp.zeros_like(last), jnp.zeros_like(last)))


@whole_batch
def _start_iterations(order: jax.Array, batch: jax.Array, needs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Iteration at which each queued request joins: the next place to fall free, FIFO.

    One queued request a round, with experts along the last axis: minima along the slots, which a CPU takes
    one by one, took twice as long.

    Args:
      order: [..., N, K] int32, place in the line of those that wait for a place, from 1; 0 outside it.
      batch: [..., N, K] bool, in the batch from the next boundary on.
      needs: [..., N, K] float32, decode iterations each needs.

    Returns:
      [..., N, K] float32, when each in line starts, 0 elsewhere; and [..., N] float32, when the next
      place falls free once all have started, inf if there is none.
    """
    shape = order.shape
    order, batch, needs = (jnp.moveaxis(leaf, -1, 0).reshape(shape[-1], -1) for leaf in (order, batch, needs))
    place = jnp.arange(shape[-1], dtype=jnp.int32)[:, None]

    def body(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        k, start, ends = carry
        mine = order == k
        free = jnp.min(ends, axis=0, keepdims=True)
        first = jnp.min(jnp.where(ends == free, place, shape[-1]), axis=0, keepdims=True)
        need = jnp.max(jnp.where(mine, needs, -1.0), axis=0, keepdims=True)
        ends = jnp.where((place == first) & (need >= 0.0), free + need, ends)
        return k + 1, jnp.where(mine, free, start), ends

    most = jnp.max(order)
    carry = (jnp.int32(1), jnp.zeros_like(needs), jnp.where(batch, needs, jnp.inf))
    _, start, ends = jax.lax.while_loop(lambda carry: carry[0] <= most, body, carry)
    start = jnp.moveaxis(start.reshape(shape[-1], *shape[:-1]), 0, -1)
    return start, jnp.min(ends, axis=0).reshape(shape[:-1])
