"""The observation as a graph: typed, normalised node and edge features, dense or as a jraph graph."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import struct

from qos_jax.routing.impact import projected_impact
from qos_jax.routing.observation import Observation
from qos_jax.routing.projection import left_given_survival

NODE_TYPES = ("arrived", "expert", "running", "waiting")
# (sender, relation, receiver), in the order of the edge type ids; each relation goes both ways.
EDGE_TYPES = (
    ("arrived", "asks", "expert"),
    ("expert", "offers", "arrived"),
    ("running", "loads", "expert"),
    ("expert", "runs", "running"),
    ("waiting", "queues_at", "expert"),
    ("expert", "holds", "waiting"),
)

# What each column holds. l1p(x) = log(1 + x); L the latency limit; p the prompt and d[n] the predicted
# output tokens of the arrived request. Every quantity is a pure number: tokens over tokens, seconds over
# seconds; only where a token count itself matters is it l1p(tokens) / 8, which is 1 at 3,000 tokens.
ARRIVED_FEATURES = (
    "prompt",  # l1p(p) / 8
    "mean_output",  # l1p(mean of d over the experts) / 8
    "best_quality",  # largest predicted quality
    "mean_quality",  # mean predicted quality
    "fleet_load",  # l1p(requests in flight / sum of max_running)
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
    "available",  # 1 if it can take the newcomer, else 0
)
SLOT_FEATURES = (
    "left",  # l1p(tokens left, given that it got so far) / 8
    "done",  # generated / (generated + left)
    "spent",  # l1p(age_s / (L (generated + left))): share of its latency budget that is gone
    "slack",  # x / (1 + |x|), x = (L (generated + left) - age_s) / (L left): pace it can afford, in L
    "age",  # l1p(age_s / L) / 8
    "prompt",  # l1p(prompt tokens) / 8
    "kv_share",  # (prompt + generated) / kv_capacity_tokens
    "prefill_left",  # tokens of a partly prefilled prompt to come / prompt tokens
    "quality",  # predicted quality
)
PAIR_FEATURES = (
    "quality",  # predicted quality
    "output",  # l1p(d) / 8
    "own_chance",  # chance to meet L, projected
    "own_qos",  # predicted quality x that chance
    "pushed",  # l1p(expected number of requests pushed past L)
    "penalty",  # l1p(expected QoS those lose)
    "net",  # own_qos - expected QoS those lose, clipped to [-4, 4]
    "latency",  # log(projected latency per token / L), clipped to [-4, 4]
)


@struct.dataclass
class GraphFeatures:
    """An :class:`Observation` as a star-shaped graph: N experts, K slots each; all float32 finite, O(1).

    The columns are listed, each with its formula, in ``ARRIVED_FEATURES`` ... ``PAIR_FEATURES``. One
    slot of the observation is one ``running`` node and one ``waiting`` node, of which the masks let at
    most one exist. What a mask hides is zero.
    """

    arrived: jax.Array  # [len(ARRIVED_FEATURES)] float32, the request to be routed
    expert: jax.Array  # [N, len(EXPERT_FEATURES)] float32
    running: jax.Array  # [N, K, len(SLOT_FEATURES)] float32
    waiting: jax.Array  # [N, K, len(SLOT_FEATURES)] float32
    pair: jax.Array  # [N, len(PAIR_FEATURES)] float32, of the edges arrived - expert, both ways
    expert_mask: jax.Array  # [N] bool, the expert exists (False pads a smaller fleet)
    running_mask: jax.Array  # [N, K] bool
    waiting_mask: jax.Array  # [N, K] bool
    available: jax.Array  # [N] bool, it exists and can take the request: the action mask


@dataclasses.dataclass(frozen=True)
class GraphLayout:
    """Where each type lies in the arrays of the jraph graph: static, from the sizes alone."""

    num_experts: int  # N
    slots: int  # K

    @property
    def nodes(self) -> dict[str, slice]:
        """Rows of each node type; slots lie expert by expert."""
        places = self.num_experts * self.slots
        return dict(zip(NODE_TYPES, _blocks((1, self.num_experts, places, places)), strict=True))

    @property
    def edges(self) -> dict[tuple[str, str, str], slice]:
        """Rows of each edge type."""
        places = self.num_experts * self.slots
        sizes = (self.num_experts,) * 2 + (places,) * 4
        return dict(zip(EDGE_TYPES, _blocks(sizes), strict=True))

    def ends(self, edge_type: tuple[str, str, str]) -> tuple[np.ndarray, np.ndarray]:
        """Senders and receivers of a type, int32, each counted within its own node type."""
        sender, _, receiver = edge_type
        experts = np.arange(self.num_experts, dtype=np.int32)
        hub = np.zeros_like(experts)
        leaves = {
            "arrived": (hub, experts),
            "running": (
                slots := np.arange(self.num_experts * self.slots, dtype=np.int32),
                slots // self.slots,
            ),
            "waiting": (slots, slots // self.slots),
        }
        inward = receiver == "expert"
        leaf, expert = leaves[sender if inward else receiver]
        return (leaf, expert) if inward else (expert, leaf)


def _blocks(sizes: tuple[int, ...]) -> list[slice]:
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def graph_features(
    seen: Observation, margin: jax.Array, expert_mask: jax.Array | None = None
) -> GraphFeatures:
    """Return the features of what a router sees.

    Args:
      seen: the observation, of one environment; ``jax.vmap`` it over many.
      margin: [] float32 >= 0, see :func:`projected_impact`.
      expert_mask: [N] bool, False for rows that only pad the fleet; all exist by default.
    """
    exists = jnp.ones_like(seen.available) if expert_mask is None else expert_mask
    live = seen.live & exists[:, None]
    running_mask, waiting_mask = live & seen.running, live & ~seen.running
    generated = seen.slot_generated_tokens.astype(jnp.float32)
    left = left_given_survival(seen.slot_predicted_output_tokens, generated, seen.length_log_std[:, None])
    slot = _slot_features(seen, generated, left)
    return GraphFeatures(
        arrived=_arrived_features(seen, exists, live),
        expert=_shown(_expert_features(seen, running_mask, waiting_mask, left), exists),
        running=_shown(slot, running_mask),
        waiting=_shown(slot, waiting_mask),
        pair=_shown(_pair_features(seen, margin), exists),
        expert_mask=exists,
        running_mask=running_mask,
        waiting_mask=waiting_mask,
        available=seen.available & exists,
    )


def _shown(features: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask[..., None], features, 0.0)


def _tokens(count: jax.Array) -> jax.Array:
    return jnp.log1p(count.astype(jnp.float32)) / 8.0


def _arrived_features(seen: Observation, exists: jax.Array, live: jax.Array) -> jax.Array:
    experts = jnp.maximum(jnp.sum(exists, dtype=jnp.float32), 1.0)
    places = jnp.sum(jnp.where(exists, seen.profile.max_running, 0), dtype=jnp.float32)
    quality = jnp.where(exists, seen.predicted_quality, 0.0)
    output = jnp.where(exists, seen.predicted_output_tokens, 0.0)
    columns = {
        "prompt": _tokens(seen.prompt_tokens),
        "mean_output": _tokens(jnp.sum(output) / experts),
        "best_quality": jnp.max(quality),
        "mean_quality": jnp.sum(quality) / experts,
        "fleet_load": jnp.log1p(jnp.sum(live, dtype=jnp.float32) / jnp.maximum(places, 1.0)),
    }
    return jnp.stack([columns[name] for name in ARRIVED_FEATURES])


def _expert_features(seen: Observation, running: jax.Array, waiting: jax.Array, left: jax.Array) -> jax.Array:
    profile = seen.profile
    limit_s = seen.latency_limit_s
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
        decode_s = (
            profile.decode_base_s
            + profile.decode_per_seq_s * batch
            + profile.decode_per_context_token_s * tokens
        )
        return jnp.log1p(decode_s / limit_s)

    prefill_s = profile.prefill_base_s + prompt * (
        profile.prefill_per_token_s + profile.prefill_per_token_sq_s * prompt
    )
    # The batch the newcomer would decode in: as many as have room.
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
        "available": seen.available.astype(jnp.float32),
    }
    return jnp.stack([columns[name] for name in EXPERT_FEATURES], axis=-1)


def _slot_features(seen: Observation, generated: jax.Array, left: jax.Array) -> jax.Array:
    budget_s = seen.latency_limit_s * (generated + left)
    slack = (budget_s - seen.age_s) / (seen.latency_limit_s * left)
    prompt = seen.slot_prompt_tokens.astype(jnp.float32)
    capacity = seen.profile.kv_capacity_tokens.astype(jnp.float32)
    columns = {
        "left": _tokens(left),
        "done": generated / (generated + left),
        "spent": jnp.log1p(seen.age_s / budget_s),
        "slack": slack / (1.0 + jnp.abs(slack)),
        "age": jnp.log1p(seen.age_s / seen.latency_limit_s) / 8.0,
        "prompt": _tokens(prompt),
        "kv_share": (prompt + generated) / capacity[:, None],
        "prefill_left": seen.slot_prefill_left_tokens.astype(jnp.float32) / jnp.maximum(prompt, 1.0),
        "quality": seen.slot_predicted_quality,
    }
    return jnp.stack([columns[name] for name in SLOT_FEATURES], axis=-1)


def _pair_features(seen: Observation, margin: jax.Array) -> jax.Array:
    impact = projected_impact(seen, margin)
    ratio = jnp.maximum(impact.latency_per_token_s, 1e-9) / seen.latency_limit_s
    columns = {
        "quality": seen.predicted_quality,
        "output": _tokens(seen.predicted_output_tokens),
        "own_chance": impact.own_chance,
        "own_qos": impact.own_qos,
        "pushed": jnp.log1p(impact.pushed),
        "penalty": jnp.log1p(impact.penalty),
        "net": jnp.clip(impact.own_qos - impact.penalty, -4.0, 4.0),
        "latency": jnp.clip(jnp.log(ratio), -4.0, 4.0),
    }
    return jnp.stack([columns[name] for name in PAIR_FEATURES], axis=-1)


def to_graphs_tuple(features: GraphFeatures) -> jraph.GraphsTuple:
    """Return the graph as jraph has it, of a shape that depends on N and K alone (see GraphLayout).

    V = 1 + N + 2 N K nodes, E = 2 N + 4 N K edges. ``nodes`` is a dict: ``features`` [V, F] float32, each
    type's columns first and zeros behind; ``type`` [V] int32, index into ``NODE_TYPES``; ``mask`` [V] bool.
    ``edges`` likewise: ``features`` [E, P], zero but on arrived - expert; ``type`` [E], into ``EDGE_TYPES``;
    ``mask`` [E], both ends exist. What does not exist stays in place, masked: no padding graph is needed.
    """
    layout = GraphLayout(*features.running_mask.shape)
    places = layout.num_experts * layout.slots
    blocks = {
        "arrived": (features.arrived[None], jnp.ones((1,), bool)),
        "expert": (features.expert, features.expert_mask),
        "running": (features.running.reshape(places, -1), features.running_mask.reshape(places)),
        "waiting": (features.waiting.reshape(places, -1), features.waiting_mask.reshape(places)),
    }
    width = max(block.shape[-1] for block, _ in blocks.values())
    nodes = layout.nodes
    mask = jnp.concatenate([blocks[name][1] for name in NODE_TYPES])
    ends = [layout.ends(edge_type) for edge_type in EDGE_TYPES]
    senders = np.concatenate(
        [sent + nodes[src].start for (sent, _), (src, _, _) in zip(ends, EDGE_TYPES, strict=True)]
    )
    receivers = np.concatenate(
        [got + nodes[dst].start for (_, got), (_, _, dst) in zip(ends, EDGE_TYPES, strict=True)]
    )
    bare = jnp.zeros((4 * places, features.pair.shape[-1]), jnp.float32)
    return jraph.GraphsTuple(
        nodes={
            "features": jnp.concatenate(
                [
                    jnp.pad(blocks[name][0], ((0, 0), (0, width - blocks[name][0].shape[-1])))
                    for name in NODE_TYPES
                ]
            ),
            "type": _type_ids(list(nodes.values())),
            "mask": mask,
        },
        edges={
            "features": jnp.concatenate([features.pair, features.pair, bare]),
            "type": _type_ids(list(layout.edges.values())),
            "mask": mask[senders] & mask[receivers],
        },
        senders=jnp.asarray(senders, jnp.int32),
        receivers=jnp.asarray(receivers, jnp.int32),
        globals=None,
        n_node=jnp.array([mask.shape[0]], jnp.int32),
        n_edge=jnp.array([len(senders)], jnp.int32),
    )


def _type_ids(blocks: list[slice]) -> jax.Array:
    return jnp.asarray(np.repeat(np.arange(len(blocks)), [b.stop - b.start for b in blocks]), jnp.int32)
