"""Estimate what prefix caches hold that a router does not see: an index of the prefixes it sent to each."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from qos_jax.routing.fleet_state import Request
from qos_jax.routing.observation import SeenPrefixes
from qos_jax.serving import FleetProfile, PrefixTable, ServingConfig, ServingState
from qos_jax.serving.prefix import ENDLESS, in_common, reaches, shareable_tokens, whole_blocks
from qos_jax.serving.reference_cache import WORTH_LOADING
from qos_jax.serving.scheduler import BY_NAME
from qos_jax.serving.state import NO_LIFE, PrefixSlots, empty_table, end_of

_NEWEST = ENDLESS - 1  # life at first of what host memory keeps, which requests count down by one


def no_prefixes(config: ServingConfig) -> PrefixTable | None:
    """Return the index before any request, [N, slots + prefix_entries]: servers remember as many."""
    if config.prefix_entries == 0:
        return None
    return empty_table(dataclasses.replace(config, prefix_entries=config.prefix_entries + config.slots))


def expected_at(config: ServingConfig, index: PrefixTable, request: Request) -> jax.Array:
    """Return the tokens of a request's prompt that the index expects in each expert's cache, [N] int32.

    Args:
      config: static sizes and the scheduler.
      index: what was sent; its order within an expert means nothing.
      request: the request, with its prefix fields.
    """
    expected: jax.Array = whole_blocks(config.scheduler, jnp.max(_found(config, index, request), axis=-1))
    return expected


def see_sent(
    config: ServingConfig, index: PrefixTable | None, serving: ServingState, request: Request
) -> SeenPrefixes | None:
    """Return what a router expects of prefix caches when ``request`` arrives; None without prefix caching.

    Args:
      config: static sizes and the scheduler.
      index: what it sent.
      serving: the experts as it believes them to be.
      request: the arrived request.
    """
    if index is None or serving.prefix is None or request.prefix_group is None:
        return None
    return SeenPrefixes(
        group=request.prefix_group,
        cached_tokens=expected_at(config, index, request),
        slot_cached_tokens=jnp.where(serving.waiting, serving.prefix.cached_tokens, 0),
    )


def after_sending(
    config: ServingConfig,
    profile: FleetProfile,
    index: PrefixTable,
    request: Request,
    expert: jax.Array,
    accepted: jax.Array,
    own_share: jax.Array,
) -> PrefixTable:
    """Enter a request into the index of its expert: least recently used prefixes are forgotten, by tokens.

    A server's memory is taken to be as many tokens of the latest requests as its KV cache holds, those of
    other routers by this one's share of the load.

    Args:
      config: static sizes and the scheduler.
      profile: the fleet, leaves [N].
      index: what was sent before.
      request: the request, with its prefix fields; of its answer the predicted length is read.
      expert: [] int32, where it went.
      accepted: [] bool; the index stays as it is if False.
      own_share: [] float32 in (0, 1], estimated share of the load that is the router's own.
    """
    at = jnp.clip(expert, 0, index.group.shape[0] - 1)
    group, _ = _prefix_of(config, request)
    row = jax.tree.map(lambda leaf: leaf[at], index)
    length = request.prompt_tokens + jnp.round(request.predicted_output_tokens[at]).astype(jnp.int32)
    tokens = whole_blocks(config.scheduler, length - 1)
    known = (row.group == group) & (group >= 0)
    if row.path is not None and request.prefix_path is not None:
        known = known & (end_of(row.path) <= end_of(request.prefix_path))
    if BY_NAME[config.scheduler].splits_memory:
        allocated, life = jnp.int32(1), jnp.int32(_NEWEST)
    else:
        found = _found(config, row, request)
        used = jnp.max(found)
        new = (length - used).astype(jnp.float32) / own_share
        # What is used again is the latest used: what was used after it before comes that much sooner.
        ahead = jnp.max(jnp.where((found == used) & (used > 0), row.life_tokens, NO_LIFE))
        sooner = jnp.where((row.life_tokens > ahead) & (used > 0), used, 0)
        allocated, life = jnp.ceil(new).astype(jnp.int32) + sooner, profile.kv_capacity_tokens[at]
        tokens = jnp.maximum(tokens, jnp.max(jnp.where(known, row.tokens, 0)))
    fewer = jnp.maximum(row.life_tokens - allocated, NO_LIFE)
    evicted = jnp.where(jnp.any(known), jnp.argmax(known), jnp.argmin(fewer))
    entered = (jnp.arange(row.group.shape[0]) == evicted) & (group >= 0)
    new_row = jax.tree.map(
        lambda new, old: jnp.where(entered, new, old),
        PrefixTable(group, tokens, life, request.prefix_path),
        dataclasses.replace(row, life_tokens=fewer),
    )
    return jax.tree.map(
        lambda whole, new, old: whole.at[at].set(jnp.where(accepted, new, old)), index, new_row, row
    )


def without_caches_of(index: PrefixTable | None, down: jax.Array) -> PrefixTable | None:
    """Return the index without what servers held that are known to be down, ``down`` [N] bool."""
    if index is None:
        return None
    return dataclasses.replace(index, life_tokens=jnp.where(down[:, None], NO_LIFE, index.life_tokens))


def slots_of_request(
    config: ServingConfig, index: PrefixTable | None, serving: ServingState, request: Request
) -> PrefixSlots | None:
    """Return the prefix of a request as a slot of each believed expert keeps it, leaves [N].

    Args:
      config: static sizes and the scheduler.
      index: what was sent before it; None without prefix caching.
      serving: the experts as they are believed to be, before the request is among them.
      request: the request, with its prefix fields.
    """
    if index is None or serving.prefix is None:
        return None
    group, most = _prefix_of(config, request)
    each = jnp.zeros(index.group.shape[:1], jnp.int32)
    shared = each
    if not BY_NAME[config.scheduler].splits_memory:
        ours, common = in_common(serving.prefix, group, request.prefix_path)
        among = most if common is None else jnp.minimum(most, common)
        held = whole_blocks(config.scheduler, jnp.minimum(serving.context_tokens, among))
        shared = jnp.max(jnp.where(ours & serving.live, held, 0), axis=-1)
    return PrefixSlots(
        group=each + group,
        prefix_tokens=each + most,
        cached_tokens=jnp.maximum(expected_at(config, index, request), shared),
        life_tokens=each + ENDLESS,
        shared_tokens=shared,
        hit_tokens=each - 1,
        path=jax.tree.map(lambda leaf: each + leaf, request.prefix_path),
    )


def of_nobody(slots: PrefixSlots) -> PrefixSlots:
    """Return prefixes of requests of which it is not known what they share, all leaves of one shape."""
    path = slots.path and tuple(
        dataclasses.replace(level, group=jnp.full_like(level.group, -1)) for level in slots.path
    )
    return dataclasses.replace(
        slots,
        group=jnp.full_like(slots.group, -1),
        life_tokens=jnp.full_like(slots.life_tokens, ENDLESS),
        path=path,
    )


def _found(config: ServingConfig, index: PrefixTable, request: Request) -> jax.Array:
    """Return the tokens of a prompt that each entry of the index is expected to spare, [..., C] int32."""
    group, most = _prefix_of(config, request)
    ours, common = in_common(index, group, request.prefix_path)
    if common is not None:
        most = jnp.minimum(most, common)
    found = jnp.where(ours, jnp.clip(jnp.minimum(index.tokens, index.life_tokens), 0, most), 0)
    if BY_NAME[config.scheduler].splits_memory:
        found = jnp.where(reaches(found, WORTH_LOADING, index.tokens), found, 0)
    return found


def _prefix_of(config: ServingConfig, request: Request) -> tuple[jax.Array, jax.Array]:
    """Return the group of a request, and how many tokens of its prompt a cache could hold, [] int32 both."""
    if request.prefix_group is None or request.prefix_tokens is None:
        raise ValueError("prefix caching needs requests with prefix_group and prefix_tokens")
    return request.prefix_group, shareable_tokens(config, request.prefix_tokens, request.prompt_tokens)
