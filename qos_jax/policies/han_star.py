"""The HAN on the router's star graph: from graph features to embeddings of experts and request."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jraph
from flax import linen as nn
from flax import struct

from qos_jax.policies.han import EdgeType, HANConfig, HANEncoder
from qos_jax.policies.han_attention import Edges, EdgeSet, GroupedEdges
from qos_jax.routing.graph import ARRIVED_FEATURES, EXPERT_FEATURES, SLOT_FEATURES, GraphFeatures
from qos_jax.routing.graph_tuple import EDGE_TYPES, NODE_TYPES, GraphLayout

# Columns of the generic form: without those that a belief adds behind them, which the structured form has.
WIDTHS = {
    "arrived": len(ARRIVED_FEATURES),
    "expert": len(EXPERT_FEATURES),
    "running": len(SLOT_FEATURES),
    "waiting": len(SLOT_FEATURES),
}


@struct.dataclass
class TypedGraph:
    """The input of :class:`HANEncoder`."""

    nodes: dict[str, jax.Array]  # by type [..., n, F] float32
    masks: dict[str, jax.Array]  # by type [..., n] bool
    edges: dict[EdgeType, EdgeSet]


@struct.dataclass
class StarEmbedding:
    """Embeddings of N experts and of the arrived request: the input of actor and critic heads."""

    arrived: jax.Array  # [..., hidden] float32
    expert: jax.Array  # [..., N, hidden] float32, zero where the expert does not exist


def star_graph(features: GraphFeatures) -> TypedGraph:
    """Return the structured form: stars as dense groups, node rows in the order of GraphLayout."""
    *lead, experts, slots = features.running_mask.shape
    rows = (*lead, experts * slots)
    slot, pair = features.slot.reshape(*rows, -1), features.pair
    nodes = {
        "arrived": features.arrived[..., None, :],
        "expert": features.expert,
        "running": slot,
        "waiting": slot,
    }
    asks = {
        "expert": GroupedEdges(groups=1, features=pair[..., None, :, None, :]),
        "arrived": GroupedEdges(groups=1, features=pair[..., None, None, :, :]),
    }
    return TypedGraph(
        nodes=nodes,
        masks={
            "arrived": jnp.ones((*lead, 1), bool),
            "expert": features.expert_mask,
            "running": features.running_mask.reshape(rows),
            "waiting": features.waiting_mask.reshape(rows),
        },
        edges={
            kind: GroupedEdges(groups=experts) if "arrived" not in kind else asks[kind[2]]
            for kind in EDGE_TYPES
        },
    )


def graph_by_type(graph: jraph.GraphsTuple, layout: GraphLayout) -> TypedGraph:
    """Return the generic form: one observation's graph of ``to_graphs_tuple`` by type, edges as lists."""
    nodes, edges = layout.nodes, layout.edges
    typed: dict[EdgeType, EdgeSet] = {}
    for kind, rows in edges.items():
        sender, _, receiver = kind
        typed[kind] = Edges(
            senders=graph.senders[rows] - nodes[sender].start,
            receivers=graph.receivers[rows] - nodes[receiver].start,
            mask=graph.edges["mask"][rows],
            features=graph.edges["features"][rows] if "arrived" in kind else None,
        )
    return TypedGraph(
        nodes={name: graph.nodes["features"][nodes[name], : WIDTHS[name]] for name in NODE_TYPES},
        masks={name: graph.nodes["mask"][nodes[name]] for name in NODE_TYPES},
        edges=typed,
    )


class StarEncoder(nn.Module):
    """The router's HAN. One set of parameters serves any number of experts and slots, and both forms.

    Call it with :class:`GraphFeatures` (structured, the default: faster), or with the
    :class:`TypedGraph` of :func:`graph_by_type` (generic, the reference). The structured form may have
    leading axes; the generic one is of one observation: ``jax.vmap`` it over more.
    """

    config: HANConfig = HANConfig()

    @nn.compact
    def __call__(self, graph: GraphFeatures | TypedGraph) -> StarEmbedding:
        """Return the embeddings of the arrived request and of each expert."""
        typed = star_graph(graph) if isinstance(graph, GraphFeatures) else graph
        encoder = HANEncoder(self.config, outputs=("arrived", "expert"), name="han")
        embedded = encoder(typed.nodes, typed.masks, typed.edges)
        return StarEmbedding(arrived=embedded["arrived"][..., 0, :], expert=embedded["expert"])
