"""Recent arrivals: running means of gaps and requests, and the load offered (see README.md, rule 13)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.serving import FleetProfile
from qos_jax.workload.capacity import capacity_of_means_per_s

WINDOWS = (8, 64)  # arrivals that a mean looks back over: bursts, and the time of day
MAX_LOAD = 50.0  # bound of an offered load, since arrivals at one instant have no finite rate


@struct.dataclass
class Demand:
    """Exponentially weighted sums over the arrivals so far, of W windows and N experts; routers may see it.

    Divided by ``seen``, the sum of the weights, they are means.
    """

    seen: jax.Array  # [W] float32 in [0, 1), weight of the arrivals so far
    gap_s: jax.Array  # [W] float32, seconds from an arrival to the next
    prompt_tokens: jax.Array  # [W] float32
    prompt_tokens_sq: jax.Array  # [W] float32, squares of prompt tokens
    predicted_output_tokens: jax.Array  # [N, W] float32
    predicted_quality: jax.Array  # [N] float32, by the longest window


def no_demand(num_experts: int) -> Demand:
    """Return the demand before any arrival."""
    none = jnp.zeros((len(WINDOWS),), jnp.float32)
    of_each = jnp.zeros((num_experts, len(WINDOWS)), jnp.float32)
    return Demand(none, none, none, none, of_each, of_each[:, -1])


def after_request(
    demand: Demand, prompt_tokens: jax.Array, predicted_output_tokens: jax.Array, predicted_quality: jax.Array
) -> Demand:
    """Add a request to the sums; :func:`after_gap` adds the gap that follows it.

    Args:
      demand: the sums so far.
      prompt_tokens: [] int32.
      predicted_output_tokens: [N] float32.
      predicted_quality: [N] float32.
    """
    prompt = prompt_tokens.astype(jnp.float32)
    return dataclasses.replace(
        demand,
        prompt_tokens=_updated(demand.prompt_tokens, prompt),
        prompt_tokens_sq=_updated(demand.prompt_tokens_sq, prompt * prompt),
        predicted_output_tokens=_updated(demand.predicted_output_tokens, predicted_output_tokens[:, None]),
        predicted_quality=_updated(demand.predicted_quality[:, None], predicted_quality[:, None])[:, -1],
    )


def after_gap(demand: Demand, gap_s: jax.Array) -> Demand:
    """Add the gap to the next arrival, [] seconds; an infinite one (no next arrival) changes nothing."""
    last = ~jnp.isfinite(gap_s)
    return dataclasses.replace(
        demand,
        seen=jnp.where(last, demand.seen, _updated(demand.seen, jnp.float32(1.0))),
        gap_s=jnp.where(last, demand.gap_s, _updated(demand.gap_s, jnp.where(last, 0.0, gap_s))),
    )


def offered_load(profile: FleetProfile, demand: Demand, length_log_std: jax.Array) -> jax.Array:
    """Return the arrival rate as a share of the fleet's capacity for such requests, [W] float32.

    Capacity is that of ``workload.capacity``, on the means over the window. Predicted lengths are medians
    of log-normals, whose means are exp(std^2 / 2) times as large.

    Args:
      profile: the fleet, leaves [N].
      demand: the arrivals so far.
      length_log_std: [N] float32, known error of the predicted lengths.

    Returns:
      [W] float32, at most ``MAX_LOAD``; 0 before any gap.
    """
    seen = jnp.where(demand.seen > 0.0, demand.seen, 1.0)[None]
    output = demand.predicted_output_tokens / seen * jnp.exp(0.5 * jnp.square(length_log_std))[:, None]
    prompt, prompt_sq = demand.prompt_tokens[None] / seen, demand.prompt_tokens_sq[None] / seen
    column = jax.tree.map(lambda leaf: leaf[:, None], profile)
    capacity_per_s = jnp.sum(capacity_of_means_per_s(column, prompt, prompt_sq, output), axis=0)
    served_in_gap = demand.gap_s / seen[0] * capacity_per_s
    # Requests that take no time make the capacity infinite, and arrivals at one instant the gap 0.
    served_in_gap = jnp.where(demand.gap_s > 0.0, served_in_gap, 0.0)
    return jnp.where(demand.seen > 0.0, 1.0 / jnp.maximum(served_in_gap, 1.0 / MAX_LOAD), 0.0)


def mean_output_tokens(demand: Demand) -> jax.Array:
    """Return the mean predicted output tokens over the longest window, [N] float32; 0 before any arrival."""
    return _over_longest(demand, demand.predicted_output_tokens[:, -1])


def mean_quality(demand: Demand) -> jax.Array:
    """Return the mean predicted quality over the longest window, [N] float32; 0 before any arrival."""
    return _over_longest(demand, demand.predicted_quality)


def mean_gap_s(demand: Demand) -> jax.Array:
    """Return the mean seconds between arrivals, [W] float32; 0 before any gap."""
    return jnp.where(demand.seen > 0.0, demand.gap_s / jnp.where(demand.seen > 0.0, demand.seen, 1.0), 0.0)


def _over_longest(demand: Demand, total: jax.Array) -> jax.Array:
    """Divide a sum over the longest window, [N], by its weight; 0 before any arrival."""
    seen = demand.seen[-1]
    return jnp.where(seen > 0.0, total / jnp.where(seen > 0.0, seen, 1.0), 0.0)


def _updated(mean: jax.Array, value: jax.Array) -> jax.Array:
    """Return exponentially weighted sums, [..., W], with one more value."""
    share = 1.0 / jnp.array(WINDOWS, jnp.float32)
    share = share.reshape((1,) * (mean.ndim - 1) + (-1,))
    return mean + share * (value - mean)
