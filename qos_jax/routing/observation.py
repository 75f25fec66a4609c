"""What a router may see, and what only an oracle may: two types, so that no router reads the truth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.demand import mean_gap_s, mean_output_tokens, mean_quality, offered_load
from qos_jax.routing.fleet_state import FleetState, Request
from qos_jax.routing.measured import Measured
from qos_jax.serving import FleetProfile, ServiceLimits, ServingConfig
from qos_jax.serving.prefix import cached_tokens_at, shareable_tokens


@struct.dataclass
class KnownFleet:
    """What is known of a fleet of N experts beforehand, the same at every decision."""

    profile: FleetProfile  # leaves [N]
    limits: ServiceLimits  # leaves [] float32, seconds
    length_log_std: jax.Array  # [N] float32, std of log(true) - log(predicted) output tokens


@struct.dataclass
class BeliefNotes:
    """What a router that acts on a belief knows beside the queues that it believes in."""

    scrape_age_s: jax.Array  # [] float32, seconds since the last scrape
    pace: jax.Array  # [N] float32, estimated pace; 1 = as the profile says, more is slower
    foreign_load: jax.Array  # [] float32, requests of other routers for each of its own
    up: jax.Array  # [N] bool, not known to be down


@struct.dataclass
class SeenPrefixes:
    """What a router knows of prefix caches: it knows which prefixes it sent where."""

    group: jax.Array  # [] int32, of the arrived request, below 0 = none
    cached_tokens: jax.Array  # [N] int32, of its prompt, expected in each expert's cache
    slot_cached_tokens: jax.Array  # [N, K] int32, likewise of each slot's request where it waits


@struct.dataclass
class Observation:
    """What a router sees when a request arrives: predictions, queues, profiles; no true outcome.

    N experts with K slots each; a slot is live if its request is waiting or running.
    """

    step: jax.Array  # [] int32, requests that arrived before this one
    prompt_tokens: jax.Array  # [] int32, of the arrived request
    predicted_output_tokens: jax.Array  # [N] float32, the predictor's median
    predicted_quality: jax.Array  # [N] float32 in [0, 1]
    limits: ServiceLimits  # leaves [] float32, seconds
    length_log_std: jax.Array  # [N] float32, std of log(true) - log(predicted) output tokens
    profile: FleetProfile  # leaves [N]
    offered_load: jax.Array  # [W] float32, recent arrival rate / capacity, by the windows of demand.py
    mean_output_tokens: jax.Array  # [N] float32, mean predicted, recent arrivals; 0 before any
    mean_quality: jax.Array  # [N] float32, mean predicted, recent arrivals; 0 before any
    mean_gap_s: jax.Array  # [W] float32, seconds between recent arrivals, by the same windows; 0 before any
    available: jax.Array  # [N] bool, fewer than max_waiting wait, and the expert can hold the prompt
    lead_s: jax.Array  # [N] float32, seconds to the end of the iteration in progress
    live: jax.Array  # [N, K] bool, waiting or running
    running: jax.Array  # [N, K] bool
    age_s: jax.Array  # [N, K] float32, seconds since arrival
    slot_prompt_tokens: jax.Array  # [N, K] int32
    slot_generated_tokens: jax.Array  # [N, K] int32, at the end of the iteration in progress
    slot_prefill_left_tokens: jax.Array  # [N, K] int32, of a partly prefilled prompt
    slot_predicted_output_tokens: jax.Array  # [N, K] float32
    slot_predicted_quality: jax.Array  # [N, K] float32
    slot_ttft_s: jax.Array  # [N, K] float32, seconds from arrival to first token; -1 = none yet
    belief: BeliefNotes | None = None  # where the queues are believed, not seen
    measured: Measured | None = None  # of the answers so far, where they are measured
    prefix: SeenPrefixes | None = None  # with prefix caching

    @property
    def latency_limit_s(self) -> jax.Array:
        """[] float32, L, seconds per output token."""
        return self.limits.latency_limit_s

    @property
    def num_experts(self) -> int:
        """Number of experts N."""
        return int(self.live.shape[-2])

    @property
    def waiting(self) -> jax.Array:
        """[N, K] bool: queued, and not in the batch."""
        return self.live & ~self.running


@struct.dataclass
class TrueObservation:
    """An observation with true lengths and qualities, for oracles."""

    seen: Observation
    output_tokens: jax.Array  # [N] int32, true answer length of the arrived request
    quality: jax.Array  # [N] float32, true quality
    slot_output_tokens: jax.Array  # [N, K] int32, true
    slot_quality: jax.Array  # [N, K] float32, true


def observe(
    known: KnownFleet,
    state: FleetState,
    request: Request,
    step: jax.Array,
    prefix: SeenPrefixes | None = None,
) -> Observation:
    """Return what the router sees of ``state`` when ``request`` arrives as number ``step``.

    Args:
      known: profile, limits and length error of the fleet.
      state: the fleet at the instant of arrival.
      request: the arrived request.
      step: [] int32, requests that arrived before.
      prefix: what is known of prefix caches, if there are any; see :func:`see_prefixes`.
    """
    serving, profile = state.serving, known.profile
    waiting = jnp.sum(serving.waiting, axis=-1, dtype=jnp.int32)
    return Observation(
        step=step,
        prompt_tokens=request.prompt_tokens,
        predicted_output_tokens=request.predicted_output_tokens,
        predicted_quality=request.predicted_quality,
        limits=known.limits,
        length_log_std=known.length_log_std,
        profile=profile,
        offered_load=offered_load(profile, state.demand, known.length_log_std),
        mean_output_tokens=mean_output_tokens(state.demand),
        mean_quality=mean_quality(state.demand),
        mean_gap_s=mean_gap_s(state.demand),
        available=(waiting < profile.max_waiting) & (request.prompt_tokens < profile.request_capacity_tokens),
        lead_s=serving.lead_s,
        live=serving.live,
        running=serving.running,
        age_s=serving.age_s,
        slot_prompt_tokens=state.prompt_tokens,
        slot_generated_tokens=state.generated_tokens,
        slot_prefill_left_tokens=serving.prefill_left_tokens,
        slot_predicted_output_tokens=state.predicted_output_tokens,
        slot_predicted_quality=state.predicted_quality,
        slot_ttft_s=jnp.where(serving.live, serving.ttft_s, -1.0),
        measured=state.measured,
        prefix=prefix,
    )


def see_prefixes(
    config: ServingConfig, profile: FleetProfile, state: FleetState, request: Request
) -> SeenPrefixes | None:
    """Return what a router knows of prefix caches when ``request`` arrives; None without prefix caching.

    A router that sees all requests can follow the caches by their rules, as those of llm-d and Dynamo do.

    Args:
      config: static sizes and the scheduler.
      profile: the fleet, leaves [N].
      state: the fleet at the instant of arrival.
      request: the arrived request.
    """
    slots, table = state.serving.prefix, state.prefixes
    if slots is None or table is None or request.prefix_group is None or request.prefix_tokens is None:
        return None
    shareable = shareable_tokens(config, request.prefix_tokens, request.prompt_tokens)
    found = cached_tokens_at(
        config, profile, state.serving, table, request.prefix_group, shareable, request.prefix_path
    )
    return SeenPrefixes(
        group=request.prefix_group,
        cached_tokens=found.cached_tokens,
        slot_cached_tokens=jnp.where(state.serving.waiting, slots.cached_tokens, 0),
    )


def relative_length(seen: Observation, tokens: jax.Array) -> jax.Array:
    """Return tokens over the mean predicted output of recent arrivals, [N] float32; 1 before any."""
    known = seen.mean_output_tokens > 0.0
    mean = jnp.where(known, seen.mean_output_tokens, 1.0)
    return jnp.where(known, jnp.maximum(tokens, 1.0) / jnp.maximum(mean, 1.0), 1.0)


def reveal(seen: Observation, state: FleetState, request: Request) -> TrueObservation:
    """Return the observation with the true lengths and qualities that an oracle may see."""
    return TrueObservation(
        seen=seen,
        output_tokens=request.output_tokens,
        quality=request.quality,
        slot_output_tokens=state.output_tokens,
        slot_quality=state.quality,
    )
