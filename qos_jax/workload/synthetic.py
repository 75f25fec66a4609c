"""Sample synthetic request tables whose qualities, lengths and predictions follow those of a real table.

The model (per task k, expert i; every latent standard normal):

    score latent   z_i = sqrt(rho_k) d + sqrt(1 - rho_k) e_i        d: difficulty, shared by the experts
    length latent  x_i = l_k g + sqrt(1 - l_k^2) h_i                g: length, shared by the experts
    (g, d, prompt length) correlated per task; e_i correlated with h_i (an expert that fails rambles)
    quality_i = 0.25 * #{thresholds of (k, i) below z_i};  log tokens_i = mu_ki + sigma_ki x_i,
    a runaway answer, x_i above its threshold, hits the cap.

The predictor knows the task and sees each latent through noise, tau = noise x error_level: from
s = latent + tau * noise it uses the posterior mean s / (1 + tau^2). So error level 0 is perfect, 1 is as bad
as a real predictor of text, more is worse, and predictions stay calibrated, but for ``quality_jitter``:
unshrunk noise per expert, which real predictors have and which hides the little they know of which expert is
better.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.workload.request_table import RequestTable
from qos_jax.workload.synthetic_params import SyntheticParams

MAX_TOKENS = 2.0**24  # whole numbers up to here are exact in float32


@struct.dataclass
class _Latents:
    """Latents of M requests: true ones, or the predictor's posterior means."""

    length: jax.Array  # [M] g
    difficulty: jax.Array  # [M] d
    own_length: jax.Array  # [M, N] h
    own_quality: jax.Array  # [M, N] e


def sample_table(key: jax.Array, params: SyntheticParams, num_rows: int) -> RequestTable:
    """Sample requests and the answers of N experts; jittable.

    Args:
      key: random key.
      params: parameters of K tasks, N experts and the predictor.
      num_rows: M, static.

    Returns:
      A table with M = num_rows; ``predicted_output_tokens`` is the predictor's median.
    """
    task_key, shared_key, own_key, noise_key = jax.random.split(key, 4)
    task = _tasks(task_key, params, num_rows)
    shared = jax.random.normal(shared_key, (num_rows, 3), jnp.float32)
    mixed = jnp.einsum("mij,mj->mi", params.shared_factor[task], shared)  # [M, 3]: g, d, prompt
    true = _own_latents(own_key, params, task, mixed[:, 0], mixed[:, 1])
    seen = _observe(noise_key, params, true, params.length_noise)
    prompt = jnp.exp(params.prompt_log_mean[task] + params.prompt_log_std[task] * mixed[:, 2])
    return RequestTable(
        prompt_tokens=_whole(prompt).astype(jnp.int32),
        quality=_quality(params, task, true),
        output_tokens=_tokens(params, task, true, jnp.zeros(())).astype(jnp.int32),
        predicted_quality=_predicted_quality(jax.random.fold_in(noise_key, 1), params, task, seen),
        predicted_output_tokens=_tokens(params, task, seen, params.length_bias_log),
    )


def table_for_trace(
    key: jax.Array, params: SyntheticParams, prompt_tokens: jax.Array, output_tokens: jax.Array
) -> RequestTable:
    """Sample the answers of N experts to recorded requests of the lengths recorded.

    The recorded output tokens are taken as the *geometric mean over the experts*; each expert's log length
    deviates from it by its own offset and spread of a drawn task (no cap: the record has its own tail). The
    arithmetic mean over experts is therefore somewhat longer. The standardised log length (over the M given
    requests) plays the shared length latent, so long requests are more often answered wrongly, as in the real
    table. Task and difficulty are drawn. The predictor sees the typical length through
    ``typical_length_noise`` and the deviations as in :func:`sample_table`.

    Args:
      key: random key.
      params: parameters of N experts.
      prompt_tokens: [M] int32, >= 1.
      output_tokens: [M] int32, >= 1.

    Returns:
      A table of M requests and N experts.
    """
    task_key, shared_key, own_key, noise_key = jax.random.split(key, 4)
    num_rows = prompt_tokens.shape[0]
    task = _tasks(task_key, params, num_rows)
    log_typical = jnp.log(jnp.asarray(output_tokens, jnp.float32))  # [M]
    spread = jnp.std(log_typical)
    length = (log_typical - jnp.mean(log_typical)) / jnp.maximum(spread, 1e-6)
    factor = params.shared_factor[task]
    difficulty = factor[:, 1, 0] * length + factor[:, 1, 1] * jax.random.normal(
        shared_key, (num_rows,), jnp.float32
    )
    true = _own_latents(own_key, params, task, length, difficulty)
    seen = _observe(noise_key, params, true, params.typical_length_noise)
    predicted_typical = log_typical + spread * (seen.length - length)
    true_log = log_typical[:, None] + _deviation(params, task, true)
    predicted_log = predicted_typical[:, None] + _deviation(params, task, seen)
    return RequestTable(
        prompt_tokens=jnp.asarray(prompt_tokens, jnp.int32),
        quality=_quality(params, task, true),
        output_tokens=_whole(jnp.exp(true_log)).astype(jnp.int32),
        predicted_quality=_predicted_quality(jax.random.fold_in(noise_key, 1), params, task, seen),
        predicted_output_tokens=_whole(jnp.exp(predicted_log + params.length_bias_log[None, :])),
    )


def _tasks(key: jax.Array, params: SyntheticParams, num_rows: int) -> jax.Array:
    """Draw the task of each request: [M] int32."""
    return jax.random.categorical(key, jnp.log(params.task_weight), shape=(num_rows,))


def _own_latents(
    key: jax.Array, params: SyntheticParams, task: jax.Array, length: jax.Array, difficulty: jax.Array
) -> _Latents:
    length_key, quality_key = jax.random.split(key)
    shape = (task.shape[0], params.num_experts)
    own_length = jax.random.normal(length_key, shape, jnp.float32)
    corr = params.own_correlation[task][:, None]
    own_quality = corr * own_length + jnp.sqrt(1 - corr**2) * jax.random.normal(
        quality_key, shape, jnp.float32
    )
    return _Latents(length, difficulty, own_length, own_quality)


def _observe(key: jax.Array, params: SyntheticParams, true: _Latents, length_noise: jax.Array) -> _Latents:
    """Return the predictor's posterior means of the latents."""
    keys = jax.random.split(key, 4)
    taus = (length_noise, params.difficulty_noise, params.own_length_noise, params.own_quality_noise)
    latents = (true.length, true.difficulty, true.own_length, true.own_quality)

    def one(key: jax.Array, tau: jax.Array, latent: jax.Array) -> jax.Array:
        tau = tau * params.error_level
        return (latent + tau * jax.random.normal(key, latent.shape, jnp.float32)) / (1 + tau * tau)

    return _Latents(*[one(*arguments) for arguments in zip(keys, taus, latents, strict=True)])


def _score_latent(params: SyntheticParams, task: jax.Array, latents: _Latents) -> jax.Array:
    rho = params.quality_shared[task][:, None]
    return jnp.sqrt(rho) * latents.difficulty[:, None] + jnp.sqrt(1 - rho) * latents.own_quality


def _length_latent(params: SyntheticParams, task: jax.Array, latents: _Latents) -> jax.Array:
    share = params.length_shared[task][:, None]
    return jnp.sqrt(share) * latents.length[:, None] + jnp.sqrt(1 - share) * latents.own_length


def _quality(params: SyntheticParams, task: jax.Array, true: _Latents) -> jax.Array:
    above = _score_latent(params, task, true)[:, :, None] > params.quality_threshold[task]
    return jnp.mean(above.astype(jnp.float32), axis=2)


def _predicted_quality(key: jax.Array, params: SyntheticParams, task: jax.Array, seen: _Latents) -> jax.Array:
    """Return the expected quality given what the predictor saw: [M, N] in [0, 1]."""
    rho = params.quality_shared[task][:, None]
    mean = _score_latent(params, task, seen)
    jitter = params.quality_jitter * params.error_level
    mean = mean + jitter * jax.random.normal(key, mean.shape, jnp.float32)
    std = _score_residual_std(params, rho)
    expected = jnp.mean(
        jax.scipy.stats.norm.cdf((mean[:, :, None] - params.quality_threshold[task]) / std[:, :, None]),
        axis=2,
    )
    return jnp.clip(expected + params.quality_bias[None, :], 0.0, 1.0)


def _score_residual_std(params: SyntheticParams, rho: jax.Array) -> jax.Array:
    """Return the std of the score latent given what the predictor saw, same shape as ``rho``; never 0."""
    shared = _posterior_variance(params.difficulty_noise * params.error_level)
    own = _posterior_variance(params.own_quality_noise * params.error_level)
    return jnp.sqrt(jnp.maximum(rho * shared + (1 - rho) * own, 1e-18))


def _posterior_variance(tau: jax.Array) -> jax.Array:
    """Return the variance left of a standard normal latent seen through noise of std ``tau``."""
    return tau * tau / (1 + tau * tau)


def _tokens(params: SyntheticParams, task: jax.Array, latents: _Latents, log_bias: jax.Array) -> jax.Array:
    """Return whole output tokens [M, N] float32, runaway answers at the cap."""
    latent = _length_latent(params, task, latents)
    log_cap = jnp.log(params.cap_tokens[task])
    body = jnp.minimum(params.length_log_mean[task] + params.length_log_std[task] * latent, log_cap)
    log_tokens = jnp.where(latent > params.runaway_threshold[task], log_cap, body)
    return _whole(jnp.exp(log_tokens + jnp.broadcast_to(log_bias, log_tokens.shape)))


def _deviation(params: SyntheticParams, task: jax.Array, latents: _Latents) -> jax.Array:
    """Return each expert's log length less the experts' mean: [M, N], rows sum to 0."""
    latent = _length_latent(params, task, latents)
    log_tokens = params.length_log_mean[task] + params.length_log_std[task] * latent
    return log_tokens - jnp.mean(log_tokens, axis=1, keepdims=True)


def _whole(tokens: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(tokens), 1.0, MAX_TOKENS)
