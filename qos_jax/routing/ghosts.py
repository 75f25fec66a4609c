"""Assume the requests of other routers that nobody reported: ghosts in a belief."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from qos_jax.routing.belief import GHOST, Belief, assumed_length, room_tokens
from qos_jax.routing.demand import mean_output_tokens, mean_quality
from qos_jax.routing.newcomers import Newcomer, add_each
from qos_jax.routing.sent_prefixes import of_nobody
from qos_jax.serving import FleetProfile
from qos_jax.serving.state import PrefixSlots

MAX_GHOSTS = 32  # assumed at each expert at once, at most
# An inverse of an exponentially weighted mean over 8 gaps, some 15 of equal weight, is too large by 1 / 15.
_UNBIASED = 14.0 / 15.0


def with_ghosts(
    profile: FleetProfile, length_log_std: jax.Array, belief: Belief, elapsed_s: jax.Array
) -> Belief:
    """Assume the requests that other routers sent since this one decided last.

    They are as many as the router's own rate and its share of the load say, go where its own requests
    recently went, and are like the last of them there.

    Args:
      profile: the fleet, leaves [N].
      length_log_std: [N] float32, known error of the predicted lengths.
      belief: brought to now.
      elapsed_s: [] float32, seconds since the router's last decision.
    """
    demand, last = belief.fleet.demand, belief.last
    own_per_s = _UNBIASED * demand.seen[0] / jnp.maximum(demand.gap_s[0], 1e-6)
    others = own_per_s * elapsed_s * (1.0 - belief.own_share) / belief.own_share
    known = last.prompt_tokens > 0
    flow = jnp.where(known, belief.flow, 0.0)
    share = flow / jnp.maximum(jnp.sum(flow), 1e-6)
    credit = jnp.minimum(belief.ghost_credit + others * share, MAX_GHOSTS)
    number = jnp.floor(credit).astype(jnp.int32)
    assumed = assumed_length(last.predicted_output_tokens, last.generated_tokens, length_log_std)
    ghost = dataclasses.replace(
        last,
        request_id=jnp.full_like(last.request_id, GHOST),
        output_tokens=jnp.minimum(assumed, room_tokens(profile, last.prompt_tokens)),
        age_s=jnp.full_like(last.age_s, 0.5 * elapsed_s),
        prefix=last.prefix and of_nobody(last.prefix),
    )
    fleet, synced = add_each((belief.fleet, belief.synced_tokens), number, ghost)
    return dataclasses.replace(
        belief, fleet=fleet, synced_tokens=synced, ghost_credit=credit - number.astype(jnp.float32)
    )


def typical_newcomer(belief: Belief, share_done: float) -> Newcomer:
    """Return a request like the recent ones for each expert, part of its answer generated, as a ghost.

    Args:
      belief: the belief.
      share_done: of its answer, in [0, 1).
    """
    demand = belief.fleet.demand
    seen = jnp.where(demand.seen[-1] > 0.0, demand.seen[-1], 1.0)
    predicted = jnp.maximum(mean_output_tokens(demand), 1.0)
    num_experts = predicted.shape[0]
    prompt = jnp.maximum(demand.prompt_tokens[-1] / seen, 1.0).astype(jnp.int32)
    return Newcomer(
        request_id=jnp.full((num_experts,), GHOST, jnp.int32),
        prompt_tokens=jnp.broadcast_to(prompt, (num_experts,)),
        output_tokens=predicted.astype(jnp.int32) + 1,
        generated_tokens=(share_done * predicted).astype(jnp.int32),
        predicted_output_tokens=predicted,
        predicted_quality=mean_quality(demand),
        age_s=jnp.zeros((num_experts,), jnp.float32),
        prefix=belief.last.prefix and _within(of_nobody(belief.last.prefix), prompt),
    )


def _within(prefix: PrefixSlots, prompt_tokens: jax.Array) -> PrefixSlots:
    """Return the prefixes of prompts that have ``prompt_tokens``, []: the last one is always computed."""
    most = jnp.maximum(prompt_tokens - 1, 0)
    return dataclasses.replace(
        prefix,
        cached_tokens=jnp.minimum(prefix.cached_tokens, most),
        shared_tokens=jnp.minimum(prefix.shared_tokens, most),
    )
