"""Heuristic routers: the baselines, from random to greedy by the net gain."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qos_jax.policies.greedy_params import GreedyParams
from qos_jax.policies.measured_price import measured_price
from qos_jax.policies.net_gain import impact_of_each, net_gain, queue_length
from qos_jax.routing.impact import paper_impact, projected_impact
from qos_jax.routing.measured import means, pace_at
from qos_jax.routing.normal import normal_cdf
from qos_jax.routing.observation import Observation
from qos_jax.routing.outlook import tokens_left


def best_of(scores: jax.Array, drop_below: jax.Array) -> jax.Array:
    """Return the index of the highest of [N] scores, the first on ties; N (drop) below ``drop_below``."""
    best = jnp.max(scores)
    return jnp.where(best < drop_below, jnp.int32(scores.shape[0]), _first(~(scores < best)))


def _least(key: jax.Array, cost: jax.Array) -> jax.Array:
    """Return the index of the lowest of [N] costs, ties drawn uniformly."""
    tie = jnp.where(cost == jnp.min(cost), jax.random.uniform(key, cost.shape, jnp.float32), jnp.inf)
    return _first(tie == jnp.min(tie))


def _first(mask: jax.Array) -> jax.Array:
    """Return the index of the first True of [N], [] int32; N if there is none.

    On a CPU a minimum is many times as fast as ``jnp.argmax``, which XLA reduces pair by pair.
    """
    count = mask.shape[0]
    return jnp.min(jnp.where(mask, jnp.arange(count, dtype=jnp.int32), count))


def random(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to an expert drawn uniformly."""
    return jax.random.randint(key, (), 0, seen.num_experts, jnp.int32)


def round_robin(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to each expert in turn."""
    return seen.step % seen.num_experts


def shortest_queue(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to the expert with the fewest requests waiting and running, ties drawn."""
    return _least(key, queue_length(seen))


def least_work(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to the expert with the fewest expected output tokens left, ties drawn."""
    return _least(key, jnp.sum(jnp.where(seen.live, tokens_left(seen), 0.0), axis=-1))


def power_of_two(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to the shorter queue of two experts drawn uniformly (Mitzenmacher 2001)."""
    pair_key, tie_key = jax.random.split(key)
    drawn = jax.random.uniform(pair_key, (seen.num_experts,), jnp.float32)
    rank = jnp.sum(drawn[:, None] > drawn[None, :], axis=-1)
    return _least(tie_key, jnp.where(rank < 2, queue_length(seen), jnp.iinfo(jnp.int32).max))


def best_quality(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to the highest predicted quality, whatever the load (the paper's "BERT router")."""
    return jnp.argmax(seen.predicted_quality).astype(jnp.int32)


def measured_greedy(params: GreedyParams, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to the highest predicted quality times chance by measured latency, less a price of crowding.

    An expert of which nothing is measured yet is taken to keep the limits.
    """
    size = queue_length(seen).astype(jnp.float32)
    score = seen.predicted_quality
    if seen.measured is not None:
        output = jnp.maximum(seen.predicted_output_tokens, 1.0)
        pace_s = means(seen.measured).ttft_s[:, 0] / output + pace_at(seen.measured, size + 1.0)
        slack = jnp.log(seen.limits.pace_s / jnp.maximum(pace_s, 1e-9))
        known = seen.measured.seen[:, -1] > 0.0
        score = score * jnp.where(known, normal_cdf(slack / params.margin), 1.0)
    score = score - measured_price(params, seen)
    return best_of(jnp.where(seen.available, score, -jnp.inf), params.drop_below)


def quality_within_limit(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to the highest predicted quality of those projected to keep the limits, else to the quickest."""
    impact = projected_impact(seen, jnp.float32(0.0))
    per_token_s = impact.latency_per_token_s
    meets = impact.keeps_limits & seen.available
    by_quality = jnp.argmax(jnp.where(meets, seen.predicted_quality, -1.0))
    quickest = jnp.argmin(jnp.where(seen.available, per_token_s, jnp.inf))
    return jnp.where(jnp.any(meets), by_quality, quickest).astype(jnp.int32)


def impact_greedy(params: GreedyParams, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to the highest predicted quality less the weighted impact penalty of the paper."""
    net = seen.predicted_quality - params.impact_weight * paper_impact(seen)
    return best_of(jnp.where(seen.available, net, -jnp.inf), params.drop_below)


def projected_greedy(params: GreedyParams, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to the highest net gain: expected own QoS less QoS lost by others and price of crowding."""
    return best_of(net_gain(params, seen, impact_of_each(params, seen)), params.drop_below)


def load_aware_greedy(params: GreedyParams, key: jax.Array, seen: Observation) -> jax.Array:
    """Route to the highest net gain, its price of crowding following load and length."""
    return projected_greedy(params, key, seen)


def assigned(params: jax.Array, key: jax.Array, seen: Observation) -> jax.Array:
    """Route each request to the expert given with it: ``params`` is [T] int32, by order of arrival."""
    return params[seen.step]
