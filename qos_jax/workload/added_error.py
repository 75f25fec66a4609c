"""Add traced bias and noise to a table's predictions, to sweep over how bad predictions are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.workload.request_table import RequestTable
from qos_jax.workload.synthetic import MAX_TOKENS


@struct.dataclass
class AddedError:
    """Error added to predictions; every leaf is traced, so ``jax.vmap`` sweeps over it.

    The four are scalars, or arrays [N] for errors that differ by expert.
    """

    length_bias_log: jax.Array | float = 0.0  # [], added to the log of the predicted output tokens
    length_noise_log: jax.Array | float = 0.0  # [] >= 0, std of a log-normal error of it
    quality_bias: jax.Array | float = 0.0  # [], added to the predicted quality
    quality_noise: jax.Array | float = 0.0  # [] >= 0, std of a normal error of it


def with_prediction_error(key: jax.Array, table: RequestTable, error: AddedError) -> RequestTable:
    """Return a table, synthetic or real, with its predictions made worse and its truths unchanged; jittable.

    Every request and expert gets a draw of its own. The noise is not shrunk: unlike those of a higher
    ``SyntheticParams.error_level``, the predictions do not stay calibrated. The same key gives the same
    draws at every error, so results of a sweep are paired. No error leaves the table as it is.

    Args:
      key: random key.
      table: leaves [M] and [M, N].
      error: how much.

    Returns:
      The table; predicted qualities kept within [0, 1], predicted tokens within [1, 2^24].
    """
    length_key, quality_key = jax.random.split(key)
    tokens = jnp.asarray(table.predicted_output_tokens, jnp.float32)
    quality = jnp.asarray(table.predicted_quality, jnp.float32)

    def miss(key: jax.Array, bias: jax.Array | float, noise: jax.Array | float) -> jax.Array:
        drawn = jax.random.normal(key, tokens.shape)
        return jnp.broadcast_to(bias, tokens.shape) + jnp.broadcast_to(noise, tokens.shape) * drawn

    shift = miss(length_key, error.length_bias_log, error.length_noise_log)
    moved = miss(quality_key, error.quality_bias, error.quality_noise)
    least = jnp.minimum(tokens, 1.0)  # a prediction below 1 that was given may stay
    return dataclasses.replace(
        table,
        predicted_output_tokens=jnp.clip(tokens * jnp.exp(shift), least, MAX_TOKENS),
        predicted_quality=jnp.clip(quality + moved, 0.0, 1.0),
    )


def known_log_std(length_log_std: jax.typing.ArrayLike, error: AddedError) -> jax.Array:
    """Return the std of log(true) - log(predicted) output tokens after added error: [N] float32.

    Routers are given it. The noise counts, since whoever operates a predictor measures its spread; a bias
    leaves this std as it is, as an error that nobody has noticed.

    Args:
      length_log_std: [N] float32, that of the predictions as they were.
      error: what was added.
    """
    return jnp.sqrt(jnp.square(length_log_std) + jnp.square(jnp.asarray(error.length_noise_log)))
