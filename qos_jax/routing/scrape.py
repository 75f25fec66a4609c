"""Correct a router's belief by a scrape: every request as it is, or counts alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from qos_jax.routing.belief import (
    FOREIGN,
    Belief,
    assumed_length,
    room_tokens,
    with_progress,
)
from qos_jax.routing.fleet_state import FleetState
from qos_jax.routing.ghosts import typical_newcomer
from qos_jax.routing.newcomers import add_each
from qos_jax.routing.sent_prefixes import of_nobody
from qos_jax.routing.telemetry import TelemetryConfig
from qos_jax.serving import FleetProfile
from qos_jax.serving.scheduler import count, masked_sum, prefix_sum

SHARE_MEMORY = 0.8  # weight of the earlier scrapes in the estimate of one's share, per scrape
# Share of its answer that a request has on average when a scrape finds it running.
_SHARE_DONE = 0.5


def as_seen_by(telemetry: TelemetryConfig, router: jax.Array, truth: FleetState) -> FleetState:
    """Return the fleet with the ids of all but the router's own requests negative."""
    tag = truth.serving.request_id
    own = (tag >= 0) & (tag % telemetry.routers == router)
    ids = jnp.where(own, tag, jnp.where(tag < 0, -1, FOREIGN - tag))
    return dataclasses.replace(truth, serving=dataclasses.replace(truth.serving, request_id=ids))


def after_scrape(
    telemetry: TelemetryConfig,
    profile: FleetProfile,
    length_log_std: jax.Array,
    pace: jax.Array,
    belief: Belief,
    truth: FleetState,
) -> Belief:
    """Correct the belief by a scrape of the fleet as it is now.

    Args:
      telemetry: what a scrape shows.
      profile: the fleet as the router knows it, leaves [N].
      length_log_std: [N] float32, known error of the predicted lengths.
      pace: [N] float32, the believed pace.
      belief: brought to now.
      truth: the fleet now, ids as the router sees them; no true length or quality is read.
    """
    live = truth.serving.live
    own = live & (truth.serving.request_id >= 0)
    belief = dataclasses.replace(
        belief,
        scrape_age_s=jnp.zeros_like(belief.scrape_age_s),
        own_in_flight=SHARE_MEMORY * belief.own_in_flight + jnp.sum(own, dtype=jnp.float32),
        all_in_flight=SHARE_MEMORY * belief.all_in_flight + jnp.sum(live, dtype=jnp.float32),
        ghost_credit=jnp.zeros_like(belief.ghost_credit),
    )
    if telemetry.scraped == "counts":
        running = truth.serving.running & live
        kv_tokens = masked_sum(running, truth.serving.context_tokens)
        return after_counts(telemetry, pace, belief, count(running), count(live), kv_tokens)
    return _after_snapshot(telemetry, profile, length_log_std, pace, belief, truth)


def _after_snapshot(
    telemetry: TelemetryConfig,
    profile: FleetProfile,
    length_log_std: jax.Array,
    pace: jax.Array,
    belief: Belief,
    truth: FleetState,
) -> Belief:
    """Take over every request as it is, with its believed length, and compare progress on the way."""
    generated, serving = truth.generated_tokens, truth.serving
    if telemetry.advances:
        mine = belief.fleet.serving
        same = mine.request_id[:, :, None] == serving.request_id[:, None, :]
        same = same & mine.live[:, :, None] & serving.live[:, None, :]
        now = jnp.sum(jnp.where(same, generated[:, None, :] + 1, 0), axis=-1, dtype=jnp.int32) - 1
        belief = with_progress(belief, pace, (now >= 0) & (belief.fleet.generated_tokens > 0), now)
    length = assumed_length(truth.predicted_output_tokens, generated, length_log_std[:, None])
    room = room_tokens(profile, truth.prompt_tokens + generated)
    left = jnp.minimum(length - generated, room)
    if telemetry.observes_own:
        left = jnp.where(serving.request_id >= 0, room, left)
    fleet = dataclasses.replace(
        truth,
        serving=dataclasses.replace(
            serving, left_tokens=left, prefix=serving.prefix and of_nobody(serving.prefix)
        ),
        output_tokens=generated + left,
        quality=truth.predicted_quality,
        demand=belief.fleet.demand,
        stuck_s=None,
        prefixes=None,
    )
    return dataclasses.replace(belief, fleet=fleet, synced_tokens=generated)


def after_counts(
    telemetry: TelemetryConfig,
    pace: jax.Array,
    belief: Belief,
    running: jax.Array,
    total: jax.Array,
    kv_tokens: jax.Array,
) -> Belief:
    """Make the belief agree with how many requests run, how many there are, and the KV tokens in use.

    Args:
      telemetry: what a scrape shows.
      pace: [N] float32, the believed pace.
      belief: brought to now.
      running: [N] int32, requests in the batch.
      total: [N] int32, requests in the batch or waiting.
      kv_tokens: [N] int32, tokens in the KV cache; negative = not published.
    """
    fleet, serving = belief.fleet, belief.fleet.serving
    # Assumed requests that are too many end, the oldest first; then own ones that nobody sees end.
    excess = count(serving.live) - total
    assumed = serving.live & (serving.request_id < 0)
    ends = assumed & (prefix_sum(assumed.astype(jnp.int32)) <= excess[:, None])
    if not telemetry.observes_own:
        excess = excess - count(ends)
        own = serving.live & (serving.request_id >= 0)
        ends = ends | (own & (prefix_sum(own.astype(jnp.int32)) <= excess[:, None]))
    serving = dataclasses.replace(serving, live=serving.live & ~ends, running=serving.running & ~ends)
    belief = dataclasses.replace(belief, fleet=dataclasses.replace(fleet, serving=serving))
    missing = jnp.maximum(total - count(serving.live), 0)
    believed = (belief.fleet, belief.synced_tokens)
    fleet, synced = add_each(believed, missing, typical_newcomer(belief, _SHARE_DONE))
    belief = dataclasses.replace(belief, fleet=fleet, synced_tokens=synced)
    serving = fleet.serving
    rank = prefix_sum(serving.live.astype(jnp.int32))
    runs = serving.live & (rank <= running[:, None])
    generated = serving.context_tokens - fleet.prompt_tokens
    generated = jnp.where(runs, jnp.maximum(generated, 1), generated)
    # What the KV cache holds more or less than believed is spread evenly over those that run.
    believed_kv = masked_sum(runs, fleet.prompt_tokens + generated)
    size = jnp.maximum(count(runs), 1)
    difference = jnp.where(kv_tokens >= 0, kv_tokens - believed_kv, 0)
    share = jnp.round(difference.astype(jnp.float32) / size.astype(jnp.float32)).astype(jnp.int32)
    corrected = jnp.where(runs, jnp.maximum(generated + share[:, None], 1), generated)
    all_known = (count(serving.live & (serving.request_id < 0)) == 0) & (count(serving.running) == running)
    belief = with_progress(belief, pace, runs & serving.running & all_known[:, None], corrected)
    room = serving.context_tokens + serving.left_tokens - fleet.prompt_tokens
    serving = dataclasses.replace(
        serving,
        running=runs,
        context_tokens=fleet.prompt_tokens + corrected,
        left_tokens=jnp.maximum(room - corrected, 1),
        prefill_left_tokens=jnp.where(runs & serving.running, serving.prefill_left_tokens, 0),
    )
    synced = jnp.where(runs, corrected, belief.synced_tokens)
    return dataclasses.replace(
        belief, fleet=dataclasses.replace(fleet, serving=serving), synced_tokens=synced
    )
