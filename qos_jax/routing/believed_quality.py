"""Predicted qualities, calibrated over all experts of a request."""

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
    """Return predicted qualities, [N], with the residual of each expert in this request times ``slope``.

    A predicted quality is the expert's mean, plus an effect of the request (the mean over the experts of
    what exceeds their mean), plus a residual. A predictor whose errors are independent between experts
    overstates the residuals, so the highest prediction is biased upwards. The slope is 1 for a predictor
    calibrated on all experts together, 0 for one that cannot tell them apart; 1 changes no bit.

    Args:
      predicted: [N] float32.
      usual: [N] float32, mean predicted quality of each expert.
      slope: [] float32, the calibration slope (Cox, Biometrika 45, 1958) of the residuals.
      expert_mask: [N] bool, False for rows that only pad the fleet; all exist by default.

    Returns:
      [N] float32.
    """
    exists = jnp.ones(predicted.shape, bool) if expert_mask is None else expert_mask
    beyond = jnp.where(exists, predicted - usual, 0.0)
    count = jnp.maximum(jnp.sum(exists, dtype=jnp.float32), 1.0)
    residual = beyond - jnp.sum(beyond) / count
    return predicted + (slope - 1.0) * jnp.where(exists, residual, 0.0)


def quality_fit(table: RequestTable) -> jax.Array:
    """Fit each expert's true quality by least squares on the rows of ``table``: weights [N, 3]."""
    features = _features(table.predicted_quality)
    square = jnp.einsum("mnf,mng->nfg", features, features, precision=_EXACT)
    square = square + _RIDGE * table.quality.shape[0] * jnp.eye(3)[None]
    both = jnp.einsum("mnf,mn->nf", features, table.quality, precision=_EXACT)
    return jnp.linalg.solve(square, both[..., None])[..., 0]


def expected_quality(fit: jax.Array, predicted: jax.Array) -> jax.Array:
    """Return the expected true qualities, given all predicted ones of a request, [..., N] float32.

    They are linear in the predictions, so they may leave [0, 1] a little.

    Args:
      fit: [N, 3] float32, of :func:`quality_fit`.
      predicted: [..., N] float32.
    """
    return jnp.einsum("...nf,nf->...n", _features(predicted), fit, precision=_EXACT)


def _features(predicted: jax.Array) -> jax.Array:
    """Return the regressors, [..., N, 3]: 1, the expert's predicted quality, the mean of all experts."""
    mean = jnp.broadcast_to(jnp.mean(predicted, axis=-1, keepdims=True), predicted.shape)
    return jnp.stack([jnp.ones_like(predicted), predicted, mean], axis=-1)
