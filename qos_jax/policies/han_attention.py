"""Node-level attention over one edge type: edges as lists (jraph) or as dense groups, with equal results."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import jraph
from flax import linen as nn
from flax import struct

from qos_jax.policies.dense import product


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
    Nodes, masks and features may have further leading axes: a batch of graphs of equal shape.
    """

    groups: int = struct.field(pytree_node=False)  # G
    mask: jax.Array | None = None  # [..., G, R, S] bool, the edge exists; None = all do
    features: jax.Array | None = None  # [..., G, R, S, Fe] float32, finite where masked, too


EdgeSet = Edges | GroupedEdges

# Scores are clipped to this, so that no exponential overflows and none of a live edge is 0: the softmax needs
# no maximum over the senders.
_LARGEST_SCORE = 60.0


@struct.dataclass
class Projected:
    """Features and their projection to H heads of D each, computed only where it is needed."""

    raw: jax.Array  # [..., F] float32
    kernel: jax.Array  # [F, H, D] float32
    bias: jax.Array  # [H, D] float32

    def rows(self) -> jax.Array:
        """Return the projection, [..., H D] float32."""
        bias = self.bias.reshape((1,) * (self.raw.ndim - 1) + (-1,))
        return product(self.raw, self.kernel.reshape(self.raw.shape[-1], -1)) + bias

    def scorer(self, vector: jax.Array) -> jax.Array:
        """Return the matrix [F, H] that takes raw features to ``vector`` ([H, D]) times their projection.

        As (vector W) . raw, scores take H columns of products instead of H D. The bias is left out.
        """
        return jnp.einsum("fhd,hd->fh", self.kernel, vector)

    def scores(self, vector: jax.Array) -> jax.Array:
        """Return ``vector`` ([H, D]) times the projection, by head: [..., H] float32."""
        bias = jnp.sum(self.bias * vector, axis=-1).reshape((1,) * (self.raw.ndim - 1) + (-1,))
        return product(self.raw, self.scorer(vector)) + bias


@struct.dataclass
class Messages:
    """The operands of attention over one edge type."""

    sent: Projected  # leading shape [..., n_senders]
    received: Projected  # leading shape [..., n_receivers]
    edge: Projected | None  # leading shape of the edges; its bias is zero
    a_src: jax.Array  # [H, D] float32, scores the sender's projection
    a_dst: jax.Array  # [H, D] float32, the receiver's
    a_edge: jax.Array | None  # [H, D] float32, the edge's


def attend(
    edges: Sequence[EdgeSet], masks: Sequence[jax.Array], messages: Sequence[Messages], slope: float
) -> list[jax.Array]:
    """Return attention over the incoming edges of each receiver, [..., n_receivers, H D]; 0 without any.

    Args:
      edges: of each of T edge types. Several have the same senders and receivers, in groups without features.
      masks: of each, [E] or [..., G, R, S] bool, see :func:`edge_mask`.
      messages: of each, scores and values.
      slope: of the leaky ReLU on scores.

    Returns:
      One array for each edge type.
    """
    if isinstance(edges[0], Edges):
        return [_attend_sparse(edges[0], masks[0], messages[0], slope)]
    if masks[0].shape[-1] == 1:
        return [_attend_single(mask, message) for mask, message in zip(masks, messages, strict=True)]
    return _attend_grouped(masks, messages, slope)


def attended_together(edges: EdgeSet) -> bool:
    """Return whether :func:`attend` takes such edges of several types at once."""
    return isinstance(edges, GroupedEdges) and edges.features is None


def edge_mask(edges: EdgeSet, sender_mask: jax.Array, receiver_mask: jax.Array) -> jax.Array:
    """Return the edges that exist and whose two ends do: [E], or [..., G, R, S] bool."""
    if isinstance(edges, Edges):
        ends = sender_mask[edges.senders] & receiver_mask[edges.receivers]
    else:
        groups = (*sender_mask.shape[:-1], edges.groups)
        ends = sender_mask.reshape(*groups, 1, -1) & receiver_mask.reshape(*groups, -1, 1)
    return ends if edges.mask is None else ends & edges.mask


def any_edge(edges: EdgeSet, mask: jax.Array) -> jax.Array:
    """Return whether a graph has an edge of this type, [...] bool, of its :func:`edge_mask`."""
    return jnp.any(mask, axis=-1 if isinstance(edges, Edges) else (-3, -2, -1))


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
    received = messages.received.scores(messages.a_dst)
    count, heads = received.shape
    scores = messages.sent.scores(messages.a_src)[edges.senders] + received[edges.receivers]
    values = messages.sent.rows()[edges.senders]
    if messages.edge is not None and messages.a_edge is not None:
        scores = scores + messages.edge.scores(messages.a_edge)
        values = values + messages.edge.rows()
    scores = jnp.clip(nn.leaky_relu(scores, slope), -_LARGEST_SCORE, _LARGEST_SCORE)
    here = jnp.broadcast_to(mask[:, None], scores.shape)
    lowest = jnp.finfo(scores.dtype).min
    peak = jraph.segment_max(jnp.where(here, scores, lowest), edges.receivers, count)
    parts = masked_exp(scores, jax.lax.stop_gradient(peak)[edges.receivers], here)
    total = jraph.segment_sum(parts, edges.receivers, count)
    weights = share_of(parts, total[edges.receivers])
    values = weights[..., None] * values.reshape(len(weights), heads, -1)
    return jraph.segment_sum(values.reshape(len(weights), -1), edges.receivers, count)


def _attend_single(mask: jax.Array, messages: Messages) -> jax.Array:
    """Return :func:`attend` of groups of one sender: the softmax of one is 1, whatever its score."""
    *lead, groups, received, _ = mask.shape
    values = messages.sent.rows().reshape(*lead, groups, 1, -1)
    if messages.edge is not None:
        values = values + messages.edge.rows()[..., 0, :]
    return jnp.where(mask, values, 0.0).reshape(*lead, groups * received, -1)


def _attend_grouped(
    masks: Sequence[jax.Array], messages: Sequence[Messages], slope: float
) -> list[jax.Array]:
    """Return :func:`attend` of T types of grouped edges with the same senders; masks are [..., G, R, S]."""
    *lead, groups, received, sent = masks[0].shape
    first = messages[0]
    raw = first.sent.raw.reshape(*lead, groups, 1, sent, -1)
    raw = jnp.broadcast_to(raw, (*masks[0].shape, raw.shape[-1]))
    kernels = [message.sent.kernel for message in messages]
    scorers = [message.sent.scorer(message.a_src) for message in messages]
    if first.edge is not None and first.a_edge is not None:  # projections of sender and edge are summed
        raw = jnp.concatenate([raw, first.edge.raw], -1)
        kernels = [jnp.concatenate([kernels[0], first.edge.kernel])]
        scorers = [jnp.concatenate([scorers[0], first.edge.scorer(first.a_edge)])]
    width, heads, size = kernels[0].shape
    # The senders of each receiver: their features, and a 1 that takes what a receiver's senders share.
    senders = jnp.swapaxes(raw.reshape(-1, sent, width), 1, 2)
    senders = jnp.concatenate([senders, jnp.ones_like(senders[:, :1])], 1)
    shared = [
        message.received.scores(message.a_dst).reshape(-1, heads)
        + jnp.sum(message.sent.bias * message.a_src, axis=-1)[None]
        for message in messages
    ]
    rows, all_heads = len(shared[0]), len(messages) * heads
    of_heads = jnp.broadcast_to(jnp.concatenate(scorers, -1).T, (rows, all_heads, width))
    of_heads = jnp.concatenate([of_heads, jnp.concatenate(shared, -1)[..., None]], -1)
    mask = jnp.stack([mask.reshape(-1, sent) for mask in masks], 1)
    means = _weighted_means(of_heads, senders, mask, slope)
    # Attention is linear in the senders: weigh first and project the means, H of them a receiver, instead of
    # projecting every sender; by one matrix, in which no head reads another's mean.
    projections = [
        jnp.concatenate([kernel, message.sent.bias[None]])
        for kernel, message in zip(kernels, messages, strict=True)
    ]
    projection = jnp.einsum(
        "fhd,hg->hfgd", jnp.concatenate(projections, 1), jnp.eye(all_heads, dtype=raw.dtype)
    )
    out = means.reshape(rows, -1) @ projection.reshape(-1, all_heads * size)
    parts = jnp.split(out, len(messages), axis=-1)
    return [part.reshape(*lead, groups * received, -1) for part in parts]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _weighted_means(scorers: jax.Array, senders: jax.Array, mask: jax.Array, slope: float) -> jax.Array:
    """Return the means of the senders' features by weights exp(score), [L, H, F]; 0 without any sender.

    Its gradient is written by hand: every sum over senders is a product of small matrices, since XLA does
    not vectorise sums along the last axis on a CPU.

    Args:
      scorers: [L, H, F] float32, score = leaky ReLU of scorer . sender.
      senders: [L, F, S] float32, of which the last feature is 1.
      mask: [L, T, S] bool, of each T-th part of the heads.
      slope: of the leaky ReLU.
    """
    return _means_and_weights(scorers, senders, mask, slope)[0]


def _means_and_weights(
    scorers: jax.Array, senders: jax.Array, mask: jax.Array, slope: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return the means, and what their gradient reads."""
    scores = jnp.einsum("lhf,lfs->lhs", scorers, senders)
    bent = jnp.clip(jnp.where(scores > 0.0, scores, slope * scores), -_LARGEST_SCORE, _LARGEST_SCORE)
    by_type = bent.reshape(*mask.shape[:2], -1, mask.shape[-1])
    weights = jnp.exp(jnp.where(mask[:, :, None], by_type, -jnp.inf)).reshape(bent.shape)
    sums = jnp.einsum("lhs,lfs->lhf", weights, senders)
    total = sums[..., -1:]
    means = share_of(sums, total)
    return means, (scorers, senders, scores, weights, total, means)


def _means_gradient(
    slope: float, kept: tuple[jax.Array, ...], of_means: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    """Return the gradients of scorers and senders from that of the means."""
    scorers, senders, scores, weights, total, means = kept
    of_sums = share_of(of_means, total)
    both = jnp.sum(of_sums * means, axis=-1, keepdims=True)  # by the total, the sum of the last feature
    of_weights = jnp.concatenate([of_sums[..., :-1], of_sums[..., -1:] - both], -1)
    bent = jnp.where(scores > 0.0, scores, slope * scores)
    steepness = jnp.where(jnp.abs(bent) < _LARGEST_SCORE, jnp.where(scores > 0.0, 1.0, slope), 0.0)
    of_scores = jnp.einsum("lhf,lfs->lhs", of_weights, senders) * weights * steepness
    of_senders = jnp.einsum("lhf,lhs->lfs", of_sums, weights) + jnp.einsum("lhf,lhs->lfs", scorers, of_scores)
    return jnp.einsum("lhs,lfs->lhf", of_scores, senders), of_senders, None


_weighted_means.defvjp(_means_and_weights, _means_gradient)
