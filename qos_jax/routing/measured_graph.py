"""The star-shaped graph of a router that knows predictions and what it measures, but no profile."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qos_jax.routing.graph import GraphFeatures, masked
from qos_jax.routing.measured import Measured, means, no_measurements, pace_at
from qos_jax.routing.observation import Observation, relative_length
from qos_jax.routing.outlook import tokens_left

# What each column holds, in the notation of graph.py; every quantity comes from predictions, the latency
# limit, the router's own list of requests, and the answers that passed through it. "Short" and "long" are
# means over the last 8 and 64 completions of the expert, 0 before any.
ARRIVED_FEATURES = (
    "prompt",  # l1p(p) / 8
    "mean_output",  # l1p(mean of d over the experts) / 8
    "best_quality",  # largest predicted quality
    "mean_quality",  # mean predicted quality
    "in_flight",  # l1p(requests in flight) / 4
    "due_short",  # l1p(requests that arrive while an answer of mean length may take, L d) / 4, 8 arrivals
    "due_long",  # the same over 64 arrivals; both are 0 where nothing arrived before
)
EXPERT_FEATURES = (
    "running",  # l1p(number running) / 3
    "waiting",  # l1p(number waiting) / 3
    "context",  # l1p(tokens of context of all in flight) / 10
    "work",  # l1p(tokens left of all in flight) / 10
    "work_share",  # l1p(tokens left of all in flight / d) / 4
    "length_log_std",  # known std of log(true / predicted) output tokens
    "available",  # 1 if it takes requests, else 0
    "known",  # weight of what was measured, long
    "pace_short",  # l1p(seconds per output token after the first / L)
    "pace_long",
    "pace_here",  # the same as a line over concurrency gives it with the newcomer in flight
    "pace_now",  # of those running that have two tokens or more, so far
    "latency_short",  # log(E2E latency per token / L), clipped to [-3, 3]
    "latency_long",
    "kept_short",  # share that kept every limit
    "kept_long",
    "first_short",  # l1p(time to first token / (L d))
    "first_long",
    "length_long",  # mean of log(true / predicted) output tokens
    "concurrency_long",  # l1p(requests in flight when one completed) / 3
    "oldest_wait",  # l1p(age of the oldest waiting / (L d))
)
SLOT_FEATURES = (
    "left",  # l1p(tokens left, given that it got so far) / 8
    "done",  # generated / (generated + left)
    "spent",  # l1p(age_s / (L (generated + left))): share of its latency budget that is spent
    "slack",  # x / (1 + |x|), x = (L (generated + left) - age_s) / (L left): pace it can afford, in L
    "age",  # l1p(age_s / L) / 8
    "prompt",  # l1p(prompt tokens) / 8
    "pace",  # l1p(seconds per token after the first, so far / L); 0 before it has two
    "outlook",  # log((age + tokens left x pace_here) / (L (generated + left))), clipped to [-3, 3]
    "quality",  # predicted quality
)
PAIR_FEATURES = (
    "quality",  # predicted quality
    "output",  # l1p(d) / 8
    "length",  # log(d / mean of d over recent arrivals), clipped to [-3, 3]; 0 before any arrived
    "outlook",  # log((time to first token, short + pace_here x d) / (L d)), clipped to [-3, 3]
)


def measured_features(seen: Observation, expert_mask: jax.Array | None = None) -> GraphFeatures:
    """Return the graph features of an observation without reading its profile.

    Args:
      seen: the observation, of one environment, with ``measured``; ``jax.vmap`` it over many.
      expert_mask: [N] bool, False for rows that only pad the fleet; all exist by default.
    """
    exists = jnp.ones_like(seen.available) if expert_mask is None else expert_mask
    live = seen.live & exists[:, None]
    generated = seen.slot_generated_tokens.astype(jnp.float32)
    left = tokens_left(seen)
    given = no_measurements(seen.num_experts) if seen.measured is None else seen.measured
    size = jnp.sum(live, axis=-1, dtype=jnp.float32)
    pace_here_s = pace_at(given, size + 1.0)
    return GraphFeatures(
        arrived=_arrived(seen, exists, live),
        expert=masked(_expert(seen, given, live, generated, left, pace_here_s), exists),
        slot=masked(_slot(seen, generated, left, pace_here_s), live),
        pair=masked(_pair(seen, given, pace_here_s), exists),
        expert_mask=exists,
        running_mask=live & seen.running,
        waiting_mask=live & ~seen.running,
        available=seen.available & exists,
    )


def _l1p(value: jax.Array, unit: float = 1.0) -> jax.Array:
    return jnp.log1p(value) / unit


def _log_ratio(value: jax.Array) -> jax.Array:
    """Return log(value), clipped to [-3, 3]; 0 where nothing was measured."""
    return jnp.where(value > 0.0, jnp.clip(jnp.log(jnp.maximum(value, 1e-9)), -3.0, 3.0), 0.0)


def _arrived(seen: Observation, exists: jax.Array, live: jax.Array) -> jax.Array:
    experts = jnp.maximum(jnp.sum(exists, dtype=jnp.float32), 1.0)
    quality = jnp.where(exists, seen.predicted_quality, 0.0)
    output = jnp.sum(jnp.where(exists, seen.predicted_output_tokens, 0.0)) / experts
    usual = jnp.sum(jnp.where(exists, seen.mean_output_tokens, 0.0)) / experts
    gap_s = seen.mean_gap_s
    due = jnp.where(gap_s > 0.0, seen.limits.pace_s * usual / jnp.maximum(gap_s, 1e-6), 0.0)
    columns = {
        "prompt": _l1p(seen.prompt_tokens.astype(jnp.float32), 8.0),
        "mean_output": _l1p(output, 8.0),
        "best_quality": jnp.max(quality),
        "mean_quality": jnp.sum(quality) / experts,
        "in_flight": _l1p(jnp.sum(live, dtype=jnp.float32), 4.0),
        "due_short": _l1p(due[0], 4.0),
        "due_long": _l1p(due[1], 4.0),
    }
    return jnp.stack([columns[name] for name in ARRIVED_FEATURES])


def _pace_so_far_s(seen: Observation, generated: jax.Array) -> jax.Array:
    """Return seconds per token after the first of each in flight, [N, K]; 0 before it has two."""
    begun = seen.live & (seen.slot_ttft_s >= 0.0) & (generated >= 2.0)
    pace_s = jnp.maximum(seen.age_s - seen.slot_ttft_s, 0.0) / jnp.maximum(generated - 1.0, 1.0)
    return jnp.where(begun, pace_s, 0.0)


def _expert(
    seen: Observation,
    given: Measured,
    live: jax.Array,
    generated: jax.Array,
    left: jax.Array,
    pace_here_s: jax.Array,
) -> jax.Array:
    limit_s = seen.limits.pace_s
    output = jnp.maximum(seen.predicted_output_tokens, 1.0)
    context = (seen.slot_prompt_tokens + seen.slot_generated_tokens).astype(jnp.float32)

    def total(mask: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, value, 0.0), axis=-1)

    ones, waiting = jnp.ones_like(left), live & ~seen.running
    pace_s = _pace_so_far_s(seen, generated)
    begun = total(live, (pace_s > 0.0).astype(jnp.float32))
    mean = means(given)
    work = total(live, left)
    columns = {
        "running": _l1p(total(live & seen.running, ones), 3.0),
        "waiting": _l1p(total(waiting, ones), 3.0),
        "context": _l1p(total(live, context), 10.0),
        "work": _l1p(work, 10.0),
        "work_share": _l1p(work / output, 4.0),
        "length_log_std": seen.length_log_std,
        "available": seen.available.astype(jnp.float32),
        "known": given.seen[:, -1],
        "pace_short": _l1p(mean.pace_s[:, 0] / limit_s),
        "pace_long": _l1p(mean.pace_s[:, 1] / limit_s),
        "pace_here": _l1p(pace_here_s / limit_s),
        "pace_now": _l1p(total(live, pace_s) / jnp.maximum(begun, 1.0) / limit_s),
        "latency_short": _log_ratio(mean.latency_per_token_s[:, 0] / limit_s),
        "latency_long": _log_ratio(mean.latency_per_token_s[:, 1] / limit_s),
        "kept_short": mean.kept[:, 0],
        "kept_long": mean.kept[:, 1],
        "first_short": _l1p(mean.ttft_s[:, 0] / (limit_s * output)),
        "first_long": _l1p(mean.ttft_s[:, 1] / (limit_s * output)),
        "length_long": mean.length_log[:, 1],
        "concurrency_long": _l1p(mean.concurrency[:, 1], 3.0),
        "oldest_wait": _l1p(jnp.max(jnp.where(waiting, seen.age_s, 0.0), axis=-1) / (limit_s * output)),
    }
    return jnp.stack([columns[name] for name in EXPERT_FEATURES], axis=-1)


def _slot(seen: Observation, generated: jax.Array, left: jax.Array, pace_here_s: jax.Array) -> jax.Array:
    limit_s = seen.limits.pace_s
    budget_s = limit_s * (generated + left)
    slack = (budget_s - seen.age_s) / (limit_s * left)
    columns = {
        "left": _l1p(left, 8.0),
        "done": generated / (generated + left),
        "spent": _l1p(seen.age_s / budget_s),
        "slack": slack / (1.0 + jnp.abs(slack)),
        "age": _l1p(seen.age_s / limit_s, 8.0),
        "prompt": _l1p(seen.slot_prompt_tokens.astype(jnp.float32), 8.0),
        "pace": _l1p(_pace_so_far_s(seen, generated) / limit_s),
        "outlook": _log_ratio((seen.age_s + left * pace_here_s[:, None]) / budget_s),
        "quality": seen.slot_predicted_quality,
    }
    return jnp.stack([columns[name] for name in SLOT_FEATURES], axis=-1)


def _pair(seen: Observation, given: Measured, pace_here_s: jax.Array) -> jax.Array:
    output = jnp.maximum(seen.predicted_output_tokens, 1.0)
    first_s = means(given).ttft_s[:, 0]
    columns = {
        "quality": seen.predicted_quality,
        "output": _l1p(seen.predicted_output_tokens, 8.0),
        "length": jnp.clip(jnp.log(relative_length(seen, seen.predicted_output_tokens)), -3.0, 3.0),
        "outlook": _log_ratio((first_s / output + pace_here_s) / seen.limits.pace_s),
    }
    return jnp.stack([columns[name] for name in PAIR_FEATURES], axis=-1)
