"""What a router measures of each expert from the answers that pass through it; no profile is read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

WINDOWS = (8, 64)  # completions at an expert that a mean looks back over
# Completions that the slope of pace over concurrency is shrunk by: few, or all at one load, tell none.
_SLOPE_PRIOR = 2.0


@struct.dataclass
class Measured:
    """Exponentially weighted sums over the completions of each of N experts, of W windows.

    Divided by ``seen``, the sum of the weights, they are means.
    """

    seen: jax.Array  # [N, W] float32 in [0, 1), weight of the completions so far
    latency_per_token_s: jax.Array  # [N, W] float32, E2E latency / output tokens
    pace_s: jax.Array  # [N, W] float32, seconds per output token after the first
    ttft_s: jax.Array  # [N, W] float32, seconds
    kept: jax.Array  # [N, W] float32, 1 = kept every limit
    length_log: jax.Array  # [N, W] float32, log(true / predicted) output tokens
    concurrency: jax.Array  # [N, W] float32, requests in flight at the expert when it completed, itself too
    concurrency_sq: jax.Array  # [N, W] float32
    pace_by_concurrency_s: jax.Array  # [N, W] float32, their product


def no_measurements(num_experts: int) -> Measured:
    """Return what is measured before anything completed."""
    none = jnp.zeros((num_experts, len(WINDOWS)), jnp.float32)
    return Measured(**{field.name: none for field in dataclasses.fields(Measured)})


def after_completions(
    measured: Measured,
    completed: jax.Array,
    in_flight: jax.Array,
    latency_s: jax.Array,
    ttft_s: jax.Array,
    output_tokens: jax.Array,
    predicted_output_tokens: jax.Array,
    kept: jax.Array,
) -> Measured:
    """Add the requests that completed since the last decision, those of one expert with equal weight.

    Args:
      measured: the sums so far.
      completed: [N, K] bool.
      in_flight: [N] float32, requests at each expert before they completed.
      latency_s: [N, K] float32, E2E.
      ttft_s: [N, K] float32.
      output_tokens: [N, K] float32, true: known once the answer has passed.
      predicted_output_tokens: [N, K] float32.
      kept: [N, K] bool, every limit.
    """
    count = jnp.sum(completed, axis=-1, dtype=jnp.float32)
    share = 1.0 / jnp.maximum(count, 1.0)

    def mean(value: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(completed, value, 0.0), axis=-1) * share

    tokens = jnp.maximum(output_tokens, 1.0)
    pace_s = mean((latency_s - ttft_s) / jnp.maximum(tokens - 1.0, 1.0))
    # Halfway through, half of them have gone.
    concurrency = in_flight - 0.5 * jnp.maximum(count - 1.0, 0.0)
    values = {
        "seen": jnp.ones_like(count),
        "latency_per_token_s": mean(latency_s / tokens),
        "pace_s": pace_s,
        "ttft_s": mean(ttft_s),
        "kept": mean(kept.astype(jnp.float32)),
        "length_log": mean(jnp.log(tokens / jnp.maximum(predicted_output_tokens, 1.0))),
        "concurrency": concurrency,
        "concurrency_sq": jnp.square(concurrency),
        "pace_by_concurrency_s": pace_s * concurrency,
    }
    stays = (1.0 - 1.0 / jnp.array([WINDOWS], jnp.float32)) ** count[:, None]
    return Measured(
        **{
            name: stays * getattr(measured, name) + (1.0 - stays) * value[:, None]
            for name, value in values.items()
        }
    )


def means(measured: Measured) -> Measured:
    """Return the sums as means, 0 before any completion; ``seen`` stays the weight."""
    seen = jnp.where(measured.seen > 0.0, measured.seen, 1.0)
    mean = jax.tree.map(lambda total: total / seen, measured)
    return dataclasses.replace(mean, seen=measured.seen)


def pace_at(measured: Measured, concurrency: jax.Array) -> jax.Array:
    """Return the pace expected with so many requests in flight, by a line through what was measured.

    Args:
      measured: the sums; the longest window is read.
      concurrency: [N] float32, requests in flight.

    Returns:
      [N] float32, seconds per output token; 0 before any completion.
    """
    mean = jax.tree.map(lambda leaf: leaf[:, -1], means(measured))
    spread = jnp.maximum(mean.concurrency_sq - jnp.square(mean.concurrency), 0.0)
    joint = mean.pace_by_concurrency_s - mean.pace_s * mean.concurrency
    # More requests slow nobody down by less than nothing.
    slope = jnp.maximum(joint, 0.0) / (spread + _SLOPE_PRIOR)
    line_s = mean.pace_s + slope * (concurrency - mean.concurrency)
    return jnp.maximum(line_s, 0.25 * mean.pace_s)
