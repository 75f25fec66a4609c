"""The head without parameters: the average answers to the k most similar prompts of the fit."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qos_jax.predictors.encoders import unit
from qos_jax.predictors.networks import Targets

_PRIOR_WEIGHT = 1.0  # neighbours' worth of the expert's mean that is mixed in, so that no probability is 0


@struct.dataclass
class Neighbours:
    """The rows of the fit and their answers, NumPy or JAX arrays."""

    embedding: Any  # [R, D] float32, of length 1
    targets: Targets  # of the R rows
    mean_quality: Any  # [N] float32, of the R rows
    bucket_share: Any  # [N, B] float32, of the R rows


def fit_neighbours(embedding: np.ndarray, targets: Targets, train: np.ndarray, buckets: int) -> Neighbours:
    """Keep the rows ``train`` of embeddings [M, D] and targets."""
    kept: Targets = jax.tree.map(lambda leaf: np.asarray(leaf)[train], targets)
    known = np.maximum(kept.quality_weight.sum(0), 1)
    each = np.eye(buckets, dtype=np.float32)[kept.bucket] * np.asarray(kept.bucket_weight)[..., None]
    share = each.sum(0) + 0.1
    return Neighbours(
        embedding=unit(embedding[train]),
        targets=kept,
        mean_quality=((kept.quality * kept.quality_weight).sum(0) / known).astype(np.float32),
        bucket_share=(share / share.sum(-1, keepdims=True)).astype(np.float32),
    )


@functools.partial(jax.jit, static_argnums=0)
def apply_neighbours(k: int, fitted: Neighbours, embedding: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Average over the k rows of highest cosine similarity, an expert's missing answers left out.

    Args:
      k: neighbours, at most R.
      fitted: the rows.
      embedding: [M, D], rows of length 1.

    Returns:
      Quality [M, N] and the probabilities of length buckets [M, N, B].
    """
    _, nearest = jax.lax.top_k(embedding @ fitted.embedding.T, k)
    near: Targets = jax.tree.map(lambda leaf: leaf[nearest], fitted.targets)  # leaves [M, k, N]
    known = near.quality_weight.sum(1) + _PRIOR_WEIGHT
    total = (near.quality * near.quality_weight).sum(1) + _PRIOR_WEIGHT * fitted.mean_quality[None]
    buckets = fitted.bucket_share.shape[-1]
    each = jax.nn.one_hot(near.bucket, buckets, dtype=jnp.float32) * near.bucket_weight[..., None]
    count = each.sum(1) + _PRIOR_WEIGHT * fitted.bucket_share[None]
    return total / known, count / count.sum(-1, keepdims=True)
