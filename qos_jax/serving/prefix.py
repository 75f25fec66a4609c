"""Prefix caches in closed form: what each expert remembers of earlier prompts (README.md, rules 20 to 25)."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.serving.arrive import SlotAssignment, assign_slot, evicted_content, insert
from qos_jax.serving.profile import FleetProfile
from qos_jax.serving.reference_cache import BLOCK_TOKENS, WORTH_KEEPING, WORTH_LOADING
from qos_jax.serving.scheduler import BY_NAME, Batch, masked_sum
from qos_jax.serving.state import NO_LIFE, Path, PrefixSlots, PrefixTable, ServingConfig, ServingState, end_of

ENDLESS = 2**30  # life that does not run out: a live request holds the blocks; more tokens than any has


@struct.dataclass
class PrefixHit:
    """What an expert's cache holds of a newcomer's prompt, at the instant of its arrival."""

    cached_tokens: jax.Array  # [] int32
    life_tokens: jax.Array  # [] int32, KV tokens to be allocated until nothing of it is left
    group: jax.Array  # [] int32
    prefix_tokens: jax.Array  # [] int32, most that it could share
    scheduler: str = struct.field(pytree_node=False)  # of its expert
    path: Path | None = None  # leaves [], its groups from the root, where they are nested


class CachedAt(NamedTuple):
    """What the caches of N experts hold of one prompt."""

    cached_tokens: jax.Array  # [N] int32
    held_tokens: jax.Array  # [N] int32, of these, those that live requests hold
    life_tokens: jax.Array  # [N] int32, of the others, see :class:`PrefixHit`
    source: jax.Array  # [N] int32, whose they are: a dead slot, 0..K-1, or an entry of the table behind them


def shareable_tokens(config: ServingConfig, prefix_tokens: jax.Array, prompt_tokens: jax.Array) -> jax.Array:
    """Return the tokens of a prompt that a cache could hold: whole blocks, all but its last token (rule 21).

    Args:
      config: static sizes and the scheduler.
      prefix_tokens: [...] int32, shared with earlier requests.
      prompt_tokens: [...] int32.
    """
    return whole_blocks(config.scheduler, jnp.minimum(prefix_tokens, prompt_tokens - 1))


def cached_tokens_at(
    config: ServingConfig,
    profile: FleetProfile,
    state: ServingState,
    table: PrefixTable,
    group: jax.Array,
    prefix_tokens: jax.Array,
    path: Path | None = None,
) -> CachedAt:
    """Return what each expert's cache would spare a request of a group that arrives now.

    Args:
      config: static sizes and the scheduler.
      profile: the fleet, leaves [N].
      state: the experts now, with prefix caches.
      table: what they remember of requests that have left their slots.
      group: [] int32, below 0 = none.
      prefix_tokens: [] int32, most tokens that can be shared, :func:`shareable_tokens`.
      path: leaves [], the groups from the root to this one, where groups are nested.

    Returns:
      Of each expert, the tokens cached and their source.
    """
    slots = _slots_of(state)
    ours, common = in_common(slots, group, path)
    remembered, common_there = in_common(table, group, path)
    live = ours & state.live & _will_share(config, profile, state)
    whole = whole_blocks(config.scheduler, state.context_tokens - 1)
    computed = computed_tokens(config.scheduler, state)
    # Entries side by side: the dead slots, then the table.
    known = jnp.concatenate([ours & ~state.live, remembered], axis=-1)
    life = jnp.concatenate([slots.life_tokens, table.life_tokens], axis=-1)
    length = jnp.concatenate([whole, table.tokens], axis=-1)
    most = prefix_tokens
    if common is not None and common_there is not None:
        most = jnp.minimum(most, jnp.concatenate([common, common_there], axis=-1))
    found = jnp.where(known, jnp.clip(jnp.minimum(length, life), 0, most), 0)
    if BY_NAME[config.scheduler].splits_memory:
        found = jnp.where(reaches(found, WORTH_LOADING, length), found, 0)
    dead = jnp.max(found, axis=-1)
    # The one of them that stays longest.
    source = jnp.argmax(jnp.where(known & (found == dead[:, None]), life, NO_LIFE - 1), axis=-1)
    life = jnp.take_along_axis(life, source[:, None], axis=-1)[:, 0]
    most = prefix_tokens if common is None else jnp.minimum(prefix_tokens, common)
    held = jnp.max(jnp.where(live, jnp.minimum(whole_blocks(config.scheduler, computed), most), 0), -1)
    cached = whole_blocks(config.scheduler, jnp.maximum(dead, held))
    return CachedAt(
        cached, jnp.minimum(whole_blocks(config.scheduler, held), cached), life, source.astype(jnp.int32)
    )


def computed_tokens(scheduler: str, state: ServingState) -> jax.Array:
    """Return the tokens of live requests that one admitted at the next boundary could hit, [N, K] int32.

    Where an iteration both decodes and prefills, what it decodes counts.
    """
    return state.context_tokens if BY_NAME[scheduler].splits_prompts else state.context_tokens - 1


def recall(
    config: ServingConfig,
    profile: FleetProfile,
    state: ServingState,
    table: PrefixTable,
    expert: jax.Array,
    group: jax.Array,
    prefix_tokens: jax.Array,
    prompt_tokens: jax.Array,
    output_tokens: jax.Array,
    path: Path | None = None,
) -> tuple[ServingState, PrefixTable, PrefixHit]:
    """Look a newcomer's prefix up at its expert; the outcome that it will overwrite goes into the table.

    To be called with all K slots, before the newcomer is enqueued.

    Args:
      config: static sizes and the scheduler.
      profile: the fleet, leaves [N].
      state: the experts at the instant of arrival.
      table: what they remember besides.
      expert: [] int32; another number than 0..N-1 leaves everything as it is.
      group: [] int32, below 0 = none.
      prefix_tokens: [] int32, tokens that it shares with every earlier request of its group.
      prompt_tokens: [] int32.
      output_tokens: [N] int32.
      path: leaves [], the groups from the root to this one, where groups are nested.

    Returns:
      The experts, the table, and what of the prompt is cached.
    """
    assignment = assign_slot(profile, state, expert, prompt_tokens, output_tokens)
    slots, at = _slots_of(state), assignment.expert
    shareable = shareable_tokens(config, prefix_tokens, prompt_tokens)
    found = cached_tokens_at(config, profile, state, table, group, shareable, path)
    cached, held, ahead, source = jax.tree.map(lambda leaf: leaf[at], found)
    revived = jnp.where(assignment.accepted & (cached > held), cached - held, 0)

    def revive(life_tokens: jax.Array, tokens: jax.Array, dead: jax.Array, first: int) -> jax.Array:
        """Move up those behind the revived blocks in the queue of free ones; llama.cpp uses the source up."""
        row = life_tokens[at]
        if BY_NAME[config.scheduler].splits_memory:
            # What a slot has to give up most of is saved first.
            used = (revived > 0) & reaches(revived, WORTH_KEEPING, tokens)
            used = used & (first + jnp.arange(row.shape[0]) == source)
            return life_tokens.at[at].set(jnp.where(used, NO_LIFE, row))
        return life_tokens.at[at].set(jnp.where(dead & (row > ahead), row - revived, row))

    num_slots, whole = state.live.shape[-1], whole_blocks(config.scheduler, state.context_tokens - 1)
    slots = dataclasses.replace(slots, life_tokens=revive(slots.life_tokens, whole[at], ~state.live[at], 0))
    life = revive(table.life_tokens, table.tokens[at], jnp.bool_(True), num_slots)
    table = dataclasses.replace(table, life_tokens=life)
    gone = PrefixTable(slots.group, whole, slots.life_tokens, slots.path)
    table = _pushed(config, assignment, table, evicted_content(assignment, gone))
    hit = PrefixHit(
        cached_tokens=cached,
        life_tokens=jnp.where(held >= cached, ENDLESS, ahead),
        group=group,
        prefix_tokens=shareable,
        scheduler=config.scheduler,
        path=path,
    )
    return dataclasses.replace(state, prefix=slots), table, hit


def enqueue_prefix(assignment: SlotAssignment, state: ServingState, hit: PrefixHit) -> ServingState:
    """Enter a newcomer's prefix into its slot, after it was enqueued; share what others of its group hold."""
    slots = _slots_of(state)
    newcomer = PrefixSlots(
        group=hit.group,
        prefix_tokens=hit.prefix_tokens,
        cached_tokens=hit.cached_tokens,
        life_tokens=hit.life_tokens,
        shared_tokens=jnp.int32(0),
        hit_tokens=jnp.int32(-1),
        path=hit.path,
    )
    slots = insert(assignment, slots, newcomer)
    if not BY_NAME[hit.scheduler].splits_memory:
        at = assignment.expert
        group, live, running = slots.group[at], state.live[at], state.running[at]
        order = jnp.arange(group.shape[0])
        # [K, K]: row j shares with column i, an earlier live one of its group.
        earlier = live[None] & (order[:, None] > order[None])
        common = jnp.minimum(
            slots.prefix_tokens[at][:, None], computed_tokens(hit.scheduler, state)[at][None]
        )
        if slots.path is None:
            ours = (group[:, None] == group[None]) & (group >= 0)[None] & earlier
        else:
            levels = jax.tree.map(lambda leaf: leaf[at], slots.path)
            rows, columns = (jax.tree.map(lambda leaf, k=k: jnp.expand_dims(leaf, k), levels) for k in (1, 0))
            among = _along(rows, columns)
            ours, common = (among > 0) & earlier, jnp.minimum(common, among)
        shared = jnp.where(live, whole_blocks(hit.scheduler, jnp.max(jnp.where(ours, common, 0), axis=-1)), 0)
        # Those ahead may have computed more since it came.
        more = ~running & (shared > slots.cached_tokens[at])
        slots = dataclasses.replace(
            slots,
            shared_tokens=slots.shared_tokens.at[at].set(shared),
            cached_tokens=slots.cached_tokens.at[at].set(jnp.where(more, shared, slots.cached_tokens[at])),
            life_tokens=slots.life_tokens.at[at].set(jnp.where(more & live, ENDLESS, slots.life_tokens[at])),
        )
    return dataclasses.replace(state, prefix=slots)


def after_gap(
    config: ServingConfig, profile: FleetProfile, before: ServingState, batch: Batch
) -> tuple[PrefixSlots, jax.Array]:
    """Return the slots' prefixes at the end of a gap, and the KV tokens newly allocated in it, [N] int32.

    Args:
      config: static sizes and the scheduler.
      profile: the fleet, leaves [N].
      before: the experts at the start of the gap.
      batch: the slots at its end.
    """
    slots, now = _slots_of(before), batch.prefix
    assert now is not None
    completed = before.live & ~batch.live
    context_before = before.context_tokens
    held_before = jnp.where(before.running, context_before - slots.cached_tokens, 0)
    held = jnp.where(batch.running | completed, batch.context_tokens - now.cached_tokens, 0)
    allocated = jnp.sum(jnp.maximum(held - held_before, 0), axis=-1, dtype=jnp.int32)
    if BY_NAME[config.scheduler].splits_memory:  # host memory keeps all
        life = jnp.where(completed, ENDLESS, now.life_tokens)
        return dataclasses.replace(now, life_tokens=life), jnp.zeros_like(allocated)
    # Its blocks are the last in the queue of free ones, the first of them the very last. What was allocated
    # in this gap is subtracted from all in `forget`.
    free = profile.kv_capacity_tokens - masked_sum(batch.running, batch.own_tokens)
    life = jnp.where(completed, (free + allocated)[:, None], now.life_tokens)
    return dataclasses.replace(now, life_tokens=life), allocated


def forget(
    state: ServingState, table: PrefixTable, allocated_tokens: jax.Array
) -> tuple[ServingState, PrefixTable]:
    """Let what was allocated push the prefixes that are longest unused out of the caches.

    To be called with all K slots.

    Args:
      state: the experts.
      table: what they remember besides.
      allocated_tokens: [N] int32, KV tokens allocated since.
    """
    slots = _slots_of(state)

    def less(life_tokens: jax.Array) -> jax.Array:
        return jnp.where(
            life_tokens < ENDLESS, jnp.maximum(life_tokens - allocated_tokens[:, None], NO_LIFE), life_tokens
        )

    prefix = dataclasses.replace(slots, life_tokens=less(slots.life_tokens))
    table = dataclasses.replace(table, life_tokens=less(table.life_tokens))
    return dataclasses.replace(state, prefix=prefix), table


def in_common(
    kept: PrefixSlots | PrefixTable, group: jax.Array, path: Path | None
) -> tuple[jax.Array, jax.Array | None]:
    """Return which entries have a beginning in common with a prompt, and of nested groups how many tokens."""
    if kept.path is None or path is None:
        return (kept.group == group) & (group >= 0), None
    common = _along(kept.path, path)
    return common > 0, common


def _along(one: Path, other: Path) -> jax.Array:
    """Return the tokens up to which two requests follow the same groups, by broadcasting."""
    common = jnp.int32(0)
    for mine, theirs in zip(one, other, strict=True):
        same = (mine.group == theirs.group) & (mine.group >= 0)
        common = jnp.maximum(common, jnp.where(same, jnp.minimum(mine.end_tokens, theirs.end_tokens), 0))
    return common


def _pushed(
    config: ServingConfig, assignment: SlotAssignment, table: PrefixTable, gone: PrefixTable
) -> PrefixTable:
    """Return the table with an entry at the end: that of its group joins it, or the next to be taken goes."""
    at = assignment.expert
    known, covered = table.group[at] == gone.group, jnp.bool_(False)
    if table.path is not None and gone.path is not None:
        # Its requests may follow a group to different ends: one joins another that reaches and lasts as far.
        end, end_of_gone = end_of(jax.tree.map(lambda leaf: leaf[at], table.path)), end_of(gone.path)
        life = table.life_tokens[at]
        covered = jnp.any(known & (end >= end_of_gone) & (life >= gone.life_tokens))
        known = known & (end <= end_of_gone) & (life <= gone.life_tokens)
    # Of llama.cpp each is a copy of its own.
    held = jnp.any(known) & (not BY_NAME[config.scheduler].splits_memory)
    evicted = jnp.where(held, jnp.argmax(known), jnp.argmin(table.life_tokens[at]))
    # Slots are not used again in the order of completion, so the later one may be in the table already.
    joined = PrefixTable(
        group=gone.group,
        tokens=jnp.maximum(gone.tokens, jnp.where(held, table.tokens[at, evicted], 0)),
        life_tokens=jnp.maximum(gone.life_tokens, jnp.where(held, table.life_tokens[at, evicted], NO_LIFE)),
        path=gone.path,
    )
    pushes = assignment.accepted & (gone.group >= 0) & (gone.life_tokens > 0) & ~covered
    moved = pushes & (jnp.arange(table.group.shape[-1]) >= evicted)
    return insert(dataclasses.replace(assignment, moved=moved), table, joined)


def _will_share(config: ServingConfig, profile: FleetProfile, state: ServingState) -> jax.Array:
    """Return which live requests' blocks a newcomer will find computed when it is admitted, [N, K] bool.

    In vLLM all: those ahead of it are admitted before it. In llama.cpp only those whose slot is free by
    then, about the first in the order of arrival.
    """
    if not BY_NAME[config.scheduler].splits_memory:
        return state.live
    rank = jnp.cumsum(state.live, axis=-1, dtype=jnp.int32)
    done = rank[:, -1] - profile.max_running + 1
    return state.live & (rank <= done[:, None])


def block_tokens(scheduler: str) -> int:
    """Return the tokens of a block; caches hold whole ones."""
    return 1 if BY_NAME[scheduler].splits_memory else BLOCK_TOKENS


def whole_blocks(scheduler: str, tokens: Any) -> Any:
    """Return the tokens of whole blocks."""
    return jnp.maximum(tokens, 0) // block_tokens(scheduler) * block_tokens(scheduler)


def reaches(tokens: jax.Array, share: float, of_tokens: jax.Array) -> jax.Array:
    """Return where ``tokens`` are at least that share of ``of_tokens``."""
    return tokens.astype(jnp.float32) >= share * of_tokens.astype(jnp.float32)


def _slots_of(state: ServingState) -> PrefixSlots:
    if state.prefix is None:
        raise ValueError("prefix caches need ServingConfig.prefix_entries > 0")
    return state.prefix
