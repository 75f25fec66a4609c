"""Heterogeneous graph attention (HAN) in flax, for any typed topology: a library piece on its own.

Nodes are arrays by type, edges are sets by ``(sender type, relation, receiver type)``:

>>> import jax
>>> import jax.numpy as jnp
>>> from qos_jax.policies.han import Edges, HANConfig, HANEncoder
>>> nodes = {"author": jnp.ones((2, 5)), "paper": jnp.ones((3, 4))}
>>> masks = {"author": jnp.array([True, True]), "paper": jnp.array([True, True, False])}
>>> wrote = Edges(senders=jnp.array([0, 1, 1]), receivers=jnp.array([0, 0, 2]))
>>> cites = Edges(senders=jnp.array([1]), receivers=jnp.array([0]), features=jnp.ones((1, 2)))
>>> edges = {("author", "wrote", "paper"): wrote, ("paper", "cites", "paper"): cites}
>>> encoder = HANEncoder(HANConfig(layers=1, hidden=16, heads=4), outputs=("paper",))
>>> params = encoder.init(jax.random.key(0), nodes, masks, edges)
>>> encoder.apply(params, nodes, masks, edges)["paper"].shape
(3, 16)

Source: Wang et al., "Heterogeneous Graph Attention Network", WWW 2019, arXiv 1903.07293, in the form of
PyTorch Geometric's HANConv, which one :class:`HANLayer` with ``residual=False`` equals (golden test).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from qos_jax.checks import COUNT, check_range
from qos_jax.errors import input_error
from qos_jax.policies.dense import Dense
from qos_jax.policies.han_attention import (
    Edges,
    EdgeSet,
    GroupedEdges,
    Messages,
    Projected,
    any_edge,
    attend,
    attended_together,
    edge_mask,
    masked_exp,
    share_of,
)

__all__ = ["EdgeSet", "EdgeType", "Edges", "GroupedEdges", "HANConfig", "HANEncoder", "HANLayer"]

EdgeType = tuple[str, str, str]  # sender type, relation, receiver type
_ByNode = Mapping[str, jax.Array]
_ByEdge = Mapping[EdgeType, EdgeSet]


@dataclasses.dataclass(frozen=True)
class HANConfig:
    """Sizes of an encoder; hashable.

    Raises:
      InputError: a size below 1, or heads that do not divide ``hidden``.
    """

    layers: int = 2  # rounds of attention: a node sees so many edges far
    hidden: int = 64  # width of every embedding
    heads: int = 8  # attention heads, of hidden / heads each
    negative_slope: float = 0.2  # of the leaky ReLU on attention scores

    def __post_init__(self) -> None:
        check_range(self, ("layers", "hidden", "heads"), COUNT)
        if self.hidden % self.heads:
            remedy = f"give a multiple of {self.heads}"
            raise input_error(f"{self.hidden} is no multiple of heads", field="hidden", remedy=remedy)


class HANLayer(nn.Module):
    """One round: attention over each edge type (node level), then over the edge types (semantic level).

    For receiver i and edge type r, with x = W_type h + b projected and split into heads,

        score_ij = leaky_relu(a_src . x_j + a_dst . x_i + a_edge . W_e e_ij), softmax over the j of i,
        z_i^r = relu(sum_j softmax(score)_ij (x_j + W_e e_ij)),
        beta^r = softmax over r of q . mean_i tanh(W_k z_i^r + b_k),   h_i' = sum_r beta^r z_i^r [+ x_i].

    Where it differs from PyTorch Geometric's HANConv: edges may have features, which join score and message;
    masked nodes and edges take no part, nor does an edge type of which no edge exists (HANConv lets it
    take a share of the semantic weight, for zeros); ``residual`` adds the receiver's own projection, since
    a node is not its own neighbour here as it is in HAN's meta-paths. No dropout.
    """

    config: HANConfig
    residual: bool = True
    outputs: tuple[str, ...] | None = None  # node types to compute; None = all that edges lead to

    @nn.compact
    def __call__(self, nodes: _ByNode, masks: _ByNode, edges: _ByEdge) -> dict[str, jax.Array]:
        """Return new features by node type.

        Args:
          nodes: by type [..., n, F] float32, F may differ between types; finite where masked, too. Leading
            axes, a batch of graphs, with :class:`GroupedEdges` alone.
          masks: by type [..., n] bool, the node exists.
          edges: by type. :class:`Edges` and :class:`GroupedEdges` of the same graph give the same result with
            the same parameters.

        Returns:
          by type [..., n, hidden] float32: every type in ``outputs``; masked rows are zero.

        Raises:
          ValueError: an output type that no edge leads to, without ``residual``.
        """
        wanted = tuple(dict.fromkeys(kind[2] for kind in edges)) if self.outputs is None else self.outputs
        used = {kind: edge_set for kind, edge_set in edges.items() if kind[2] in wanted}
        missing = set(wanted) - {kind[2] for kind in used}
        if missing and not self.residual:
            fault = f"no edge leads to {', '.join(sorted(missing))}"
            raise ValueError(f"{fault}: nothing to compute without residual")
        needed = {name for kind in used for name in (kind[0], kind[2])} | set(wanted)
        projected = {
            name: self._projected(f"project_{name}", nodes[name]) for name in nodes if name in needed
        }
        gathered: dict[str, list[tuple[jax.Array, jax.Array]]] = {name: [] for name in wanted}
        for kinds in _attended_together(used, nodes):
            sets = [used[kind] for kind in kinds]
            found = [edge_mask(used[kind], masks[kind[0]], masks[kind[2]]) for kind in kinds]
            messages = [
                self._messages("__".join(kind), projected[kind[0]], projected[kind[2]], used[kind].features)
                for kind in kinds
            ]
            outs = attend(sets, found, messages, self.config.negative_slope)
            for kind, edge_set, mask, out in zip(kinds, sets, found, outs, strict=True):
                gathered[kind[2]].append((nn.relu(out), any_edge(edge_set, mask)))
        fuse = _SemanticAttention(self.config.hidden, name="semantic")
        result = {}
        for name, parts in gathered.items():
            own = projected[name].rows()
            fused = fuse(parts, masks[name]) if parts else jnp.zeros_like(own)
            result[name] = jnp.where(masks[name][..., None], fused + own if self.residual else fused, 0.0)
        return result

    def _projected(self, name: str, raw: jax.Array, bias: bool = True) -> Projected:
        shape = (self.config.heads, self.config.hidden // self.config.heads)
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        kernel = self.param(f"{name}_kernel", init, (raw.shape[-1], *shape))
        zeros = nn.initializers.zeros
        return Projected(raw, kernel, self.param(f"{name}_bias", zeros, shape) if bias else jnp.zeros(shape))

    def _messages(
        self, name: str, sent: Projected, received: Projected, features: jax.Array | None
    ) -> Messages:
        shape = (self.config.heads, self.config.hidden // self.config.heads)

        def vector(end: str) -> jax.Array:
            return self.param(f"{name}_a_{end}", nn.initializers.glorot_uniform(), shape)

        edge = None if features is None else self._projected(f"{name}_edge", features, bias=False)
        return Messages(
            sent=sent,
            received=received,
            edge=edge,
            a_src=vector("src"),
            a_dst=vector("dst"),
            a_edge=None if edge is None else vector("edge"),
        )


def _attended_together(edges: _ByEdge, nodes: _ByNode) -> list[list[EdgeType]]:
    """Return the edge types in lists that :func:`attend` takes at once, in their order.

    Those are types whose senders have one array of features, as a slot's request has, running or waiting.
    """
    lists: dict[Any, list[EdgeType]] = {}
    for kind, edge_set in edges.items():
        sender, _, receiver = kind
        alike = (id(nodes[sender]), receiver) if attended_together(edge_set) else kind
        lists.setdefault(alike, []).append(kind)
    return list(lists.values())


class _SemanticAttention(nn.Module):
    """Weigh the edge types that lead to one node type; parameters shared by the node types, as in HANConv."""

    hidden: int

    @nn.compact
    def __call__(self, parts: list[tuple[jax.Array, jax.Array]], mask: jax.Array) -> jax.Array:
        """Fuse ``parts``, of each edge type ([..., n, hidden], [...] bool: it has an edge); mask [..., n]."""
        key = Dense(self.hidden, name="key")
        query = self.param("query", nn.initializers.glorot_uniform(), (1, self.hidden))
        if len(parts) == 1:
            if self.is_initializing():
                key(parts[0][0])
            return parts[0][0]  # the softmax of one
        values = jnp.stack([value for value, _ in parts])
        exists = jnp.stack([some for _, some in parts])
        # The mean over the nodes that exist, so that padding does not change the weights.
        tanh = jnp.where(mask[None, ..., None], jnp.tanh(key(values)), 0.0)
        count = jnp.maximum(jnp.sum(mask, axis=-1, dtype=values.dtype), 1.0)
        scores = jnp.tensordot(jnp.sum(tanh, axis=-2), query[0], 1) / count[None]
        peak = jnp.max(jnp.where(exists, scores, jnp.finfo(scores.dtype).min), axis=0, keepdims=True)
        weights = masked_exp(scores, jax.lax.stop_gradient(peak), exists)
        shares = share_of(weights, jnp.sum(weights, axis=0, keepdims=True))
        weighed = [share[..., None, None] * value for share, (value, _) in zip(shares, parts, strict=True)]
        return sum(
            weighed[1:], weighed[0]
        )  # a sum over a stack's first axis takes ten times as long on a CPU


class HANEncoder(nn.Module):
    """``layers`` rounds of :class:`HANLayer`, each followed by layer normalisation and ReLU.

    The last round computes ``outputs`` alone. Parameters depend on the feature widths and the edge types,
    never on how many nodes or edges there are.
    """

    config: HANConfig
    outputs: tuple[str, ...] | None = None  # node types to embed; None = all that edges lead to

    @nn.compact
    def __call__(self, nodes: _ByNode, masks: _ByNode, edges: _ByEdge) -> dict[str, jax.Array]:
        """Return embeddings by node type, [..., n, hidden] float32, of the input of :class:`HANLayer`."""
        hidden = dict(nodes)
        for k in range(self.config.layers):
            last = k == self.config.layers - 1
            # A type that only sends is carried to the next round by its own projection (residual).
            outputs = self.outputs if last else tuple(hidden)
            new = HANLayer(self.config, outputs=outputs, name=f"layer_{k}")(hidden, masks, edges)
            normed = {name: nn.LayerNorm(name=f"norm_{k}_{name}")(value) for name, value in new.items()}
            hidden = {name: jnp.where(masks[name][..., None], nn.relu(x), 0.0) for name, x in normed.items()}
        return hidden
