"""The observation as a star-shaped graph: typed, normalised node and edge features in dense arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.impact import Impact
from qos_jax.routing.observation import Observation, relative_length
from qos_jax.routing.outlook import tokens_left
from qos_jax.serving.profile import decode_law

# What each column holds. l1p(x) = log(1 + x); L the latency limit, or where it is infinite the pace that
# other limits allow; p the prompt and d[n] the predicted output tokens of the arrived request. Every quantity
# is a pure number: tokens over tokens, seconds over seconds; only where a token count itself matters is it
# l1p(tokens) / 8, which is 1 at 3,000 tokens.
ARRIVED_FEATURES = (
    "prompt",  # l1p(p) / 8
    "mean_output",  # l1p(mean of d over the experts) / 8
    "best_quality",  # largest predicted quality
    "mean_quality",  # mean predicted quality
    "fleet_load",  # l1p(requests in flight / sum of max_running)
    "load_short",  # l1p(arrival rate / capacity for such requests), over a window of 8 arrivals
    "load_long",  # the same over 64 arrivals; both are 0 where nothing arrived before
)
EXPERT_FEATURES = (
    "batch_share",  # number running / max_running
    "queue_share",  # number waiting / max_waiting
    "kv_share",  # tokens of context of those running / kv_capacity_tokens
    "kv_committed",  # l1p((context + tokens left of all in flight) / kv_capacity_tokens)
    "lead",  # l1p(lead_s / L) / 2
    "work",  # l1p(tokens left of all in flight / d) / 4
    "pace_now",  # l1p(duration of a decode iteration of those in flight and the newcomer / L)
    "pace_alone",  # l1p(duration of a decode iteration of the newcomer alone / L)
    "pace_full",  # l1p(duration of a decode iteration of a full batch, KV cache full / L)
    "prefill",  # l1p(prefill of the newcomer alone / (L d))
    "network",  # l1p(network_rtt_s / (L d))
    "length_log_std",  # std of log(true / predicted) output tokens
    "batch_size",  # l1p(max_running) / 8
    "crowding",  # l1p((number in flight / max_running)^3), the base of the price of crowding
    "available",  # 1 if it can take the newcomer, else 0
)
SLOT_FEATURES = (
    "left",  # l1p(tokens left, given that it got so far) / 8
    "done",  # generated / (generated + left)
    "spent",  # l1p(age_s / (L (generated + left))): share of its latency budget that is spent
    "slack",  # x / (1 + |x|), x = (L (generated + left) - age_s) / (L left): pace it can afford, in L
    "age",  # l1p(age_s / L) / 8
    "prompt",  # l1p(prompt tokens) / 8
    "kv_share",  # (prompt + generated) / kv_capacity_tokens
    "prefill_left",  # prompt tokens still to prefill / prompt tokens
    "quality",  # predicted quality
)
PAIR_FEATURES = (
    "quality",  # predicted quality
    "output",  # l1p(d) / 8
    "length",  # log(d / mean of d over recent arrivals), clipped to [-3, 3]; 0 before any arrived
    "own_chance",  # chance to keep the limits, projected
    "own_qos",  # predicted quality x that chance
    "pushed",  # l1p(expected number of requests pushed past a limit)
    "penalty",  # l1p(expected QoS those lose)
    "net",  # own_qos - expected QoS those lose, clipped to [-4, 4]
    "latency",  # log(projected latency per token / L), clipped to [-4, 4]
)


@struct.dataclass
class GraphFeatures:
    """An :class:`Observation` as a star-shaped graph: N experts, K slots each; all float32 finite, O(1).

    The columns are listed, each with its formula, in ``ARRIVED_FEATURES`` ... ``PAIR_FEATURES``. A slot
    of the observation is one ``running`` and one ``waiting`` node, of which the masks let at most one
    exist. Masked features are zero.
    """

    arrived: jax.Array  # [len(ARRIVED_FEATURES)] float32, the request to be routed
    expert: jax.Array  # [N, len(EXPERT_FEATURES)] float32
    slot: jax.Array  # [N, K, len(SLOT_FEATURES)] float32, of the request there, running or waiting
    pair: jax.Array  # [N, len(PAIR_FEATURES)] float32, of the edges arrived - expert, both ways
    expert_mask: jax.Array  # [N] bool, the expert exists (False pads a smaller fleet)
    running_mask: jax.Array  # [N, K] bool
    waiting_mask: jax.Array  # [N, K] bool
    available: jax.Array  # [N] bool, it exists and can take the request: the action mask

    @property
    def running(self) -> jax.Array:
        """Features of the running nodes, [N, K, len(SLOT_FEATURES)] float32, masked."""
        return masked(self.slot, self.running_mask)

    @property
    def waiting(self) -> jax.Array:
        """Features of the waiting nodes, [N, K, len(SLOT_FEATURES)] float32, masked."""
        return masked(self.slot, self.waiting_mask)


def graph_features(seen: Observation, impact: Impact, expert_mask: jax.Array | None = None) -> GraphFeatures:
    """Return the graph features of an observation.

    Args:
      seen: the observation, of one environment; ``jax.vmap`` it over many.
      impact: of routing the arrived request to each expert, as :func:`projected_impact` gives it.
      expert_mask: [N] bool, False for rows that only pad the fleet; all exist by default.
    """
    exists = jnp.ones_like(seen.available) if expert_mask is None else expert_mask
    live = seen.live & exists[:, None]
    running_mask, waiting_mask = live & seen.running, live & ~seen.running
    generated = seen.slot_generated_tokens.astype(jnp.float32)
    left = tokens_left(seen)
    slot = _slot_features(seen, generated, left)
    return GraphFeatures(
        arrived=_arrived_features(seen, exists, live),
        expert=masked(_expert_features(seen, running_mask, waiting_mask, left), exists),
        slot=masked(slot, live),
        pair=masked(_pair_features(seen, impact), exists),
        expert_mask=exists,
        running_mask=running_mask,
        waiting_mask=waiting_mask,
        available=seen.available & exists,
    )


def masked(features: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the features, 0 where the mask is False."""
    return jnp.where(mask[..., None], features, 0.0)


def _tokens(count: jax.Array) -> jax.Array:
    return jnp.log1p(count.astype(jnp.float32)) / 8.0


def _arrived_features(seen: Observation, exists: jax.Array, live: jax.Array) -> jax.Array:
    experts = jnp.maximum(jnp.sum(exists, dtype=jnp.float32), 1.0)
    batch_slots = jnp.sum(jnp.where(exists, seen.profile.max_running, 0), dtype=jnp.float32)
    quality = jnp.where(exists, seen.predicted_quality, 0.0)
    output = jnp.where(exists, seen.predicted_output_tokens, 0.0)
    columns = {
        "prompt": _tokens(seen.prompt_tokens),
        "mean_output": _tokens(jnp.sum(output) / experts),
        "best_quality": jnp.max(quality),
        "mean_quality": jnp.sum(quality) / experts,
        "fleet_load": jnp.log1p(jnp.sum(live, dtype=jnp.float32) / jnp.maximum(batch_slots, 1.0)),
        "load_short": jnp.log1p(seen.offered_load[0]),
        "load_long": jnp.log1p(seen.offered_load[1]),
    }
    return jnp.stack([columns[name] for name in ARRIVED_FEATURES])


def _expert_features(seen: Observation, running: jax.Array, waiting: jax.Array, left: jax.Array) -> jax.Array:
    profile = seen.profile
    limit_s = seen.limits.pace_s
    prompt = seen.prompt_tokens.astype(jnp.float32)
    output = jnp.maximum(seen.predicted_output_tokens, 1.0)
    capacity = profile.kv_capacity_tokens.astype(jnp.float32)
    max_running = profile.max_running.astype(jnp.float32)
    max_waiting = jnp.maximum(profile.max_waiting, 1).astype(jnp.float32)
    context = (seen.slot_prompt_tokens + seen.slot_generated_tokens).astype(jnp.float32)

    def total(mask: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, value, 0.0), axis=-1)

    live = running | waiting
    size, queue = total(running, jnp.ones_like(left)), total(waiting, jnp.ones_like(left))

    def pace(batch: jax.Array, tokens: jax.Array) -> jax.Array:
        fixed_s, per_token_s = decode_law(profile, batch)
        return jnp.log1p((fixed_s + per_token_s * tokens) / limit_s)

    prefill_s = profile.prefill_base_s + prompt * (
        profile.prefill_per_token_s + profile.prefill_per_token_sq_s * prompt
    )
    # The batch the newcomer would decode in.
    batch = jnp.minimum(size + queue + 1.0, max_running)
    columns = {
        "batch_share": size / max_running,
        "queue_share": queue / max_waiting,
        "kv_share": total(running, context) / capacity,
        "kv_committed": jnp.log1p(total(live, context + left) / capacity),
        "lead": jnp.log1p(seen.lead_s / limit_s) / 2.0,
        "work": jnp.log1p(total(live, left) / output) / 4.0,
        "pace_now": pace(batch, jnp.minimum(total(live, context) + prompt, capacity)),
        "pace_alone": pace(jnp.ones_like(size), jnp.broadcast_to(prompt, size.shape)),
        "pace_full": pace(max_running, capacity),
        "prefill": jnp.log1p(prefill_s / (limit_s * output)),
        "network": jnp.log1p(profile.network_rtt_s / (limit_s * output)),
        "length_log_std": seen.length_log_std,
        "batch_size": _tokens(profile.max_running),
        "crowding": jnp.log1p(((size + queue) / max_running) ** 3),
        "available": seen.available.astype(jnp.float32),
    }
    return jnp.stack([columns[name] for name in EXPERT_FEATURES], axis=-1)


def _slot_features(seen: Observation, generated: jax.Array, left: jax.Array) -> jax.Array:
    budget_s = seen.limits.pace_s * (generated + left)
    slack = (budget_s - seen.age_s) / (seen.limits.pace_s * left)
    prompt = seen.slot_prompt_tokens.astype(jnp.float32)
    capacity = seen.profile.kv_capacity_tokens.astype(jnp.float32)
    columns = {
        "left": _tokens(left),
        "done": generated / (generated + left),
        "spent": jnp.log1p(seen.age_s / budget_s),
        "slack": slack / (1.0 + jnp.abs(slack)),
        "age": jnp.log1p(seen.age_s / seen.limits.pace_s) / 8.0,
        "prompt": _tokens(prompt),
        "kv_share": (prompt + generated) / capacity[:, None],
        "prefill_left": seen.slot_prefill_left_tokens.astype(jnp.float32) / jnp.maximum(prompt, 1.0),
        "quality": seen.slot_predicted_quality,
    }
    return jnp.stack([columns[name] for name in SLOT_FEATURES], axis=-1)


def _pair_features(seen: Observation, impact: Impact) -> jax.Array:
    ratio = jnp.maximum(impact.latency_per_token_s, 1e-9) / seen.limits.pace_s
    columns = {
        "quality": seen.predicted_quality,
        "output": _tokens(seen.predicted_output_tokens),
        "length": jnp.clip(jnp.log(relative_length(seen, seen.predicted_output_tokens)), -3.0, 3.0),
        "own_chance": impact.own_chance,
        "own_qos": impact.own_qos,
        "pushed": jnp.log1p(impact.pushed),
        "penalty": jnp.log1p(impact.penalty),
        "net": jnp.clip(impact.own_qos - impact.penalty, -4.0, 4.0),
        "latency": jnp.clip(jnp.log(ratio), -4.0, 4.0),
    }
    return jnp.stack([columns[name] for name in PAIR_FEATURES], axis=-1)
