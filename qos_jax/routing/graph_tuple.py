"""The graph observation as a jraph graph of static shape."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from qos_jax.routing.graph import GraphFeatures

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


@dataclasses.dataclass(frozen=True)
class GraphLayout:
    """Rows of each node and edge type in the arrays of the jraph graph: static, from the sizes alone."""

    num_experts: int  # N
    slots: int  # K

    @property
    def nodes(self) -> dict[str, slice]:
        """Rows of each node type; slots lie expert by expert."""
        num_slots = self.num_experts * self.slots
        return dict(zip(NODE_TYPES, _blocks((1, self.num_experts, num_slots, num_slots)), strict=True))

    @property
    def edges(self) -> dict[tuple[str, str, str], slice]:
        """Rows of each edge type."""
        num_slots = self.num_experts * self.slots
        sizes = (self.num_experts,) * 2 + (num_slots,) * 4
        return dict(zip(EDGE_TYPES, _blocks(sizes), strict=True))

    def ends(self, edge_type: tuple[str, str, str]) -> tuple[np.ndarray, np.ndarray]:
        """Senders and receivers of a type, int32, each counted within its own node type."""
        sender, _, receiver = edge_type
        experts = np.arange(self.num_experts, dtype=np.int32)
        hub = np.zeros_like(experts)
        slots = np.arange(self.num_experts * self.slots, dtype=np.int32)
        of_slots = (slots, slots // self.slots)
        leaves = {"arrived": (hub, experts), "running": of_slots, "waiting": of_slots}
        inward = receiver == "expert"
        leaf, expert = leaves[sender if inward else receiver]
        return (leaf, expert) if inward else (expert, leaf)


def _blocks(sizes: tuple[int, ...]) -> list[slice]:
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def to_graphs_tuple(features: GraphFeatures) -> jraph.GraphsTuple:
    """Return the graph as a ``jraph.GraphsTuple`` whose shape depends on N and K alone (see GraphLayout).

    V = 1 + N + 2 N K nodes, E = 2 N + 4 N K edges. ``nodes`` is a dict: ``features`` [V, F] float32, each
    type's columns first and zeros behind; ``type`` [V] int32, index into ``NODE_TYPES``; ``mask`` [V] bool.
    ``edges`` likewise: ``features`` [E, P], zero but on arrived - expert; ``type`` [E], into ``EDGE_TYPES``;
    ``mask`` [E], both ends exist. Nodes that do not exist are masked, so no padding graph is needed.
    """
    layout = GraphLayout(*features.running_mask.shape)
    num_slots = layout.num_experts * layout.slots
    blocks = {
        "arrived": (features.arrived[None], jnp.ones((1,), bool)),
        "expert": (features.expert, features.expert_mask),
        "running": (features.running.reshape(num_slots, -1), features.running_mask.reshape(num_slots)),
        "waiting": (features.waiting.reshape(num_slots, -1), features.waiting_mask.reshape(num_slots)),
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
    bare = jnp.zeros((4 * num_slots, features.pair.shape[-1]), jnp.float32)
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
