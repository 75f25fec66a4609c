"""What predicted qualities are worth, all of a request's taken together."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qos_jax.workload.request_table import RequestTable

# Added to the squares of what is regressed on: a constant prediction then explains nothing.
_RIDGE = 1e-6
_EXACT = jax.lax.Precision.HIGHEST  # accelerators would round to 11 bits


def believed_quality(
    predicted: jax.Array, usual: jax.Array, slope: jax.Array, expert_mask: jax.Array | None = None
) -> jax.Array:
    """Predicted qualities, [N], with what tells the experts apart in this very request times ``slope``.

    A predicted quality is the expert's usual one, plus what is particular to the request (the mean over the
    experts of what exceeds their usual), plus a rest. A predictor with errors of its own for each expert is
    right on the first two and overstates the rest, so whoever takes the highest is disappointed. The slope
    is 1 for a predictor calibrated on all experts together, 0 for one that cannot tell them apart; 1 changes
    no bit.

    Args:
      predicted: [N] float32.
      usual: [N] float32, mean predicted quality of each expert.
      slope: [] float32, the calibration slope (Cox, Biometrika 45, 1958) of the rest.
      expert_mask: [N] bool, False for rows that only pad the fleet; all exist by default.
    """
    exists = jnp.ones(predicted.shape, bool) if expert_mask is None else expert_mask
    beyond = jnp.where(exists, predicted - usual, 0.0)
    count = jnp.maximum(jnp.sum(exists, dtype=jnp.float32), 1.0)
    rest = beyond - jnp.sum(beyond) / count
    return predicted + (slope - 1.0) * jnp.where(exists, rest, 0.0)


def quality_fit(table: RequestTable) -> jax.Array:
    """Least-squares weights of each expert's true quality on what :func:`expected_quality` reads, [N, 3]."""
    told = _told(table.predicted_quality)
    square = jnp.einsum("mnf,mng->nfg", told, told, precision=_EXACT)
    square = square + _RIDGE * table.quality.shape[0] * jnp.eye(3)[None]
    both = jnp.einsum("mnf,mn->nf", told, table.quality, precision=_EXACT)
    return jnp.linalg.solve(square, both[..., None])[..., 0]


def expected_quality(fit: jax.Array, predicted: jax.Array) -> jax.Array:
    """Qualities that all predicted ones of a request let expect, [..., N]; they may leave [0, 1] a little.

    Args:
      fit: [N, 3] float32, of :func:`quality_fit`.
      predicted: [..., N] float32.
    """
    return jnp.einsum("...nf,nf->...n", _told(predicted), fit, precision=_EXACT)


def _told(predicted: jax.Array) -> jax.Array:
    """What the expectation is linear in, [..., N, 3]: 1, the expert's predicted quality, the mean of all."""
    mean = jnp.broadcast_to(jnp.mean(predicted, axis=-1, keepdims=True), predicted.shape)
    return jnp.stack([jnp.ones_like(predicted), predicted, mean], axis=-1)
