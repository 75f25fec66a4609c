"""The error of the synthetic predictor in closed form (quadrature), as a router is allowed to know it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from qos_jax.workload.request_table import PredictionError
from qos_jax.workload.synthetic import capped_log_tokens, posterior_variance, score_residual_std
from qos_jax.workload.synthetic_params import SyntheticParams

NUM_NODES = 32  # midpoints in probability; the cap makes the integrand jump, so not Gauss-Hermite


def predictor_error(params: SyntheticParams) -> PredictionError:
    """Return the error of ``sample_table``'s predictions per expert, for any error level; jittable.

    Returns:
      length_log_std [N], the std of log(true) - log(predicted) output tokens over all tasks (a bias does not
      change it), and quality_std [N], the root mean square of true - predicted quality (a bias adds to it).
    """
    nodes = norm.ppf((jnp.arange(NUM_NODES, dtype=jnp.float32) + 0.5) / NUM_NODES)  # [G]
    weight = params.task_weight[:, None]
    length_mean, length_square = jax.vmap(_length_moments, in_axes=(None, 0, None))(
        params, jnp.arange(params.task_weight.shape[0]), nodes
    )  # [K, N] each
    square = jax.vmap(_quality_square, in_axes=(None, 0, None))(
        params, jnp.arange(params.task_weight.shape[0]), nodes
    )
    mean = jnp.sum(weight * length_mean, axis=0)
    variance = jnp.sum(weight * length_square, axis=0) - mean * mean
    return PredictionError(
        length_log_std=jnp.sqrt(jnp.maximum(variance, 0.0)),
        quality_std=jnp.sqrt(jnp.maximum(jnp.sum(weight * square, axis=0), 0.0)),
    )


def _length_moments(
    params: SyntheticParams, task: jax.Array, nodes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return mean and mean square of log(true) - log(predicted) for one task: [N] each."""
    share = params.length_shared[task]
    residual = share * posterior_variance(params.length_noise * params.error_level) + (
        1 - share
    ) * posterior_variance(params.own_length_noise * params.error_level)
    seen = jnp.sqrt(1 - residual) * nodes  # [G] latent as predicted
    true = seen[:, None] + jnp.sqrt(residual) * nodes[None, :]  # [G, G]

    def log_tokens(latent: jax.Array) -> jax.Array:
        flat = jnp.broadcast_to(latent.reshape(-1, 1), (latent.size, params.num_experts))
        tasks = jnp.full((latent.size,), task)
        return capped_log_tokens(params, tasks, flat).reshape(*latent.shape, params.num_experts)

    miss = log_tokens(true) - log_tokens(seen)[:, None, :]  # [G, G, N]
    return jnp.mean(miss, axis=(0, 1)), jnp.mean(miss * miss, axis=(0, 1))


def _quality_square(params: SyntheticParams, task: jax.Array, nodes: jax.Array) -> jax.Array:
    """Return the mean square of true - predicted quality for one task: [N]."""
    rho = params.quality_shared[task]
    std = score_residual_std(params, rho)
    threshold = params.quality_threshold[task][None, :, :]  # [1, N, 4]
    seen = jnp.sqrt(1 - std * std) * nodes  # [G]
    jittered = seen[:, None] + params.quality_jitter * params.error_level * nodes[None, :]  # [G, G]
    above = norm.cdf((seen[:, None, None] - threshold) / std)  # [G, N, 4], P(quality > q / 4 | seen)
    mean = jnp.mean(above, axis=2)[:, None, :]  # [G, 1, N]
    steps = (2 * jnp.arange(4, dtype=jnp.float32) + 1) / 16  # (q + 1)^2 / 16 - q^2 / 16
    second = jnp.sum(above * steps[None, None, :], axis=2)[:, None, :]
    guess = jnp.mean(norm.cdf((jittered[:, :, None, None] - threshold[None]) / std), axis=3)  # [G, G, N]
    guess = jnp.clip(guess + params.quality_bias[None, None, :], 0.0, 1.0)
    return jnp.mean(second - 2 * guess * mean + guess * guess, axis=(0, 1))
