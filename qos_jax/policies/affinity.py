"""Routers that follow prefix caches: by session, and by cached tokens against load."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qos_jax.policies.heuristics import shortest_queue
from qos_jax.policies.net_gain import queue_length
from qos_jax.routing.observation import Observation

BOUND = 1.25  # most requests of an expert over the mean of all
_HASH_KEY = 5


def session_affinity(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Route a prefix group to the first expert of its hash order whose queue is within the bound of the mean.

    A request of no group goes to the shortest queue. Source: Mirrokni, Thorup, Zadimoghaddam, "Consistent
    hashing with bounded loads", SODA 2018, here with rendezvous hashing.
    """
    elsewhere = shortest_queue(params, key, seen)
    if seen.prefix is None:
        return elsewhere
    group = seen.prefix.group
    order = jax.random.uniform(
        jax.random.fold_in(jax.random.key(_HASH_KEY), jnp.maximum(group, 0)), (seen.num_experts,), jnp.float32
    )
    size = queue_length(seen)
    most = jnp.ceil(BOUND * (jnp.sum(size) + 1).astype(jnp.float32) / seen.num_experts)
    hashed = jnp.argmax(jnp.where(size.astype(jnp.float32) < most, order, -1.0)).astype(jnp.int32)
    return jnp.where(group >= 0, hashed, elsewhere)


def prefix_load(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to the expert with the fewest tokens to prefill and to hold: what is cached against the load.

    The cost of ai-dynamo's router at its default weight of 1: prompt tokens still to prefill there, with the
    newcomer's own that are not cached, plus the context of all that are there. Like it, it takes the experts
    for equals.
    """
    context = seen.slot_prompt_tokens + seen.slot_generated_tokens
    cached, slot_cached = jnp.zeros_like(seen.lead_s, jnp.int32), jnp.zeros_like(context)
    if seen.prefix is not None:
        cached, slot_cached = seen.prefix.cached_tokens, seen.prefix.slot_cached_tokens
    waiting = jnp.where(seen.waiting, context - slot_cached, 0)
    partial = jnp.where(seen.running, seen.slot_prefill_left_tokens, 0)
    held = jnp.where(seen.live, context, 0)
    cost = jnp.sum(waiting + partial + held, axis=-1, dtype=jnp.int32) + seen.prompt_tokens - cached
    return jnp.argmin(jnp.where(seen.available, cost, jnp.iinfo(jnp.int32).max)).astype(jnp.int32)
