"""Node-level attention over one edge type: edges as lists (jraph) or as dense groups, with equal results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jraph
from flax import linen as nn
from flax import struct


@struct.dataclass
class Edges:
    """E edges of one type between any nodes: the general form, computed by jraph's segment operations."""

    senders: jax.Array  # [E] int32, row of the sender within its type
    receivers: jax.Array  # [E] int32, row of the receiver within its type
    mask: jax.Array | None = None  # [E] bool, the edge exists; None = all do
    features: jax.Array | None = None  # [E, Fe] float32, finite where masked, too


@struct.dataclass
class GroupedEdges:
    """All edges inside each of G groups of S senders and R receivers: dense, so no gather or scatter.

    Rows of senders are taken as [G, S] and rows of receivers as [G, R]; stars are groups with S or R = 1.
    """

    groups: int = struct.field(pytree_node=False)  # G
    mask: jax.Array | None = None  # [G, R, S] bool, the edge exists; None = all do
    features: jax.Array | None = None  # [G, R, S, Fe] float32, finite where masked, too


EdgeSet = Edges | GroupedEdges


@struct.dataclass
class Projected:
    """Features and their projection to H heads of D each, computed only where it is needed."""

    raw: jax.Array  # [..., F] float32
    kernel: jax.Array  # [F, H, D] float32
    bias: jax.Array  # [H, D] float32

    def rows(self) -> jax.Array:
        """Return the projection, [..., H D] float32."""
        bias = self.bias.reshape((1,) * (self.raw.ndim - 1) + (-1,))
        return self.raw @ self.kernel.reshape(self.raw.shape[-1], -1) + bias

    def scores(self, vector: jax.Array) -> jax.Array:
        """Return ``vector`` ([H, D]) times the projection, by head: [..., H] float32.

        As (vector W) . raw, it takes H columns of products instead of H D.
        """
        bias = jnp.sum(self.bias * vector, axis=-1).reshape((1,) * (self.raw.ndim - 1) + (-1,))
        return self.raw @ jnp.einsum("fhd,hd->fh", self.kernel, vector) + bias


@struct.dataclass
class Messages:
    """The operands of attention over one edge type."""

    sent: Projected  # leading shape [n_senders]
    sent_score: jax.Array  # [n_senders, H] float32, a_src . sender
    received_score: jax.Array  # [n_receivers, H] float32, a_dst . receiver
    edge: Projected | None  # leading shape of the edges; its bias is zero
    edge_score: jax.Array | None  # [..., H] float32, a_edge . edge


def attend(edges: EdgeSet, mask: jax.Array, messages: Messages, slope: float) -> jax.Array:
    """Return attention over the incoming edges of each receiver, [n_receivers, H D]; 0 without any.

    Args:
      edges: the edges.
      mask: [E] or [G, R, S] bool, see :func:`edge_mask`.
      messages: scores and values.
      slope: of the leaky ReLU on scores.
    """
    if isinstance(edges, Edges):
        return _attend_sparse(edges, mask, messages, slope)
    return _attend_grouped(mask, messages, slope)


def edge_mask(edges: EdgeSet, sender_mask: jax.Array, receiver_mask: jax.Array) -> jax.Array:
    """Return the edges that exist and whose two ends do: [E], or [G, R, S] bool."""
    if isinstance(edges, Edges):
        ends = sender_mask[edges.senders] & receiver_mask[edges.receivers]
    else:
        senders = sender_mask.reshape(edges.groups, 1, -1)
        ends = senders & receiver_mask.reshape(edges.groups, -1, 1)
    return ends if edges.mask is None else ends & edges.mask


def masked_exp(scores: jax.Array, peak: jax.Array, mask: jax.Array) -> jax.Array:
    """Return exponentials of a softmax, 0 where masked; ``peak`` keeps them <= 1.

    Masked scores are replaced before the exponential: a mask after it would still give NaN gradients
    where exp overflows.
    """
    return jnp.where(mask, jnp.exp(jnp.where(mask, scores - peak, 0.0)), 0.0)


def share_of(parts: jax.Array, total: jax.Array) -> jax.Array:
    """Return parts over their total; 0 where nothing is attended to, instead of 0 / 0."""
    return parts / jnp.where(total > 0.0, total, 1.0)


def _attend_sparse(edges: Edges, mask: jax.Array, messages: Messages, slope: float) -> jax.Array:
    """Return :func:`attend` of edge lists, [n_receivers, H D], by segment operations; mask [E]."""
    count, heads = messages.received_score.shape
    scores = messages.sent_score[edges.senders] + messages.received_score[edges.receivers]
    values = messages.sent.rows()[edges.senders]
    if messages.edge is not None and messages.edge_score is not None:
        scores = scores + messages.edge_score
        values = values + messages.edge.rows()
    scores = nn.leaky_relu(scores, slope)
    here = jnp.broadcast_to(mask[:, None], scores.shape)
    lowest = jnp.finfo(scores.dtype).min
    peak = jraph.segment_max(jnp.where(here, scores, lowest), edges.receivers, count)
    parts = masked_exp(scores, jax.lax.stop_gradient(peak)[edges.receivers], here)
    total = jraph.segment_sum(parts, edges.receivers, count)
    weights = share_of(parts, total[edges.receivers])
    values = weights[..., None] * values.reshape(len(weights), heads, -1)
    return jraph.segment_sum(values.reshape(len(weights), -1), edges.receivers, count)


def _attend_grouped(mask: jax.Array, messages: Messages, slope: float) -> jax.Array:
    """Return :func:`attend` of grouped edges, [n_receivers, H D], by dense arrays; mask [G, R, S]."""
    groups, received, sent = mask.shape
    heads = messages.sent_score.shape[-1]
    if sent == 1:
        # The softmax of one is 1, whatever its score, which then need not be computed.
        values = messages.sent.rows().reshape(groups, 1, -1)
        if messages.edge is not None:
            values = values + messages.edge.rows()[:, :, 0]
        return jnp.where(mask, values, 0.0).reshape(groups * received, -1)
    scores = messages.sent_score.reshape(groups, 1, sent, heads)
    scores = scores + messages.received_score.reshape(groups, received, 1, heads)
    if messages.edge_score is not None:
        scores = scores + messages.edge_score
    scores = nn.leaky_relu(scores, slope)
    here = jnp.broadcast_to(mask[..., None], scores.shape)
    lowest = jnp.finfo(scores.dtype).min
    peak = jnp.max(jnp.where(here, scores, lowest), axis=2, keepdims=True)
    parts = masked_exp(scores, jax.lax.stop_gradient(peak), here)
    weights = share_of(parts, jnp.sum(parts, axis=2, keepdims=True))
    # Attention is linear in the senders: weigh first and project the sums, H of them a receiver, instead
    # of projecting every sender. XLA then drops the projection of a type that only sends.
    raw = messages.sent.raw.reshape(groups, sent, -1)
    out = jnp.einsum("grhf,fhd->grhd", jnp.einsum("grsh,gsf->grhf", weights, raw), messages.sent.kernel)
    out = out + jnp.einsum("grh,hd->grhd", jnp.sum(weights, axis=2), messages.sent.bias)
    if messages.edge is not None:
        edge = jnp.einsum("grsh,grsf->grhf", weights, messages.edge.raw)
        out = out + jnp.einsum("grhf,fhd->grhd", edge, messages.edge.kernel)
    return out.reshape(groups * received, -1)
