"""The state of the edge: experts and the contents of their requests; route a request, let time pass."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.demand import Demand, after_gap, after_request, no_demand
from qos_jax.routing.measured import Measured, after_completions, no_measurements
from qos_jax.serving import (
    FleetProfile,
    PrefixHit,
    PrefixLevel,
    PrefixTable,
    ServiceLimits,
    ServingConfig,
    ServingState,
    advance,
    as_limits,
    assign_slot,
    empty_state,
    empty_table,
    enqueue,
    enqueue_prefix,
    evicted_content,
    insert,
)
from qos_jax.serving.limits import all_kept, limits_kept


@struct.dataclass
class Request:
    """One request, with its true and predicted outcome at each of N experts."""

    prompt_tokens: jax.Array  # [] int32
    output_tokens: jax.Array  # [N] int32, true output length, which no router sees
    quality: jax.Array  # [N] float32 in [0, 1], true quality, which no router sees
    predicted_output_tokens: jax.Array  # [N] float32, the predictor's median
    predicted_quality: jax.Array  # [N] float32 in [0, 1]
    # Shares its first tokens with every earlier request of its group (serving/README.md, rule 20).
    prefix_group: jax.Array | None = None  # [] int32, below 0 = none
    prefix_tokens: jax.Array | None = None  # [] int32
    prefix_path: tuple[PrefixLevel, ...] | None = None  # leaves [], where groups are nested


# What each slot keeps of its request.
_CONTENT = ("prompt_tokens", "output_tokens", "quality", "predicted_output_tokens", "predicted_quality")


@struct.dataclass
class FleetState:
    """N experts with K slots each, and what :class:`Request` says of each slot's request at its expert."""

    serving: ServingState
    prompt_tokens: jax.Array  # [N, K] int32
    output_tokens: jax.Array  # [N, K] int32, true
    quality: jax.Array  # [N, K] float32, true
    predicted_output_tokens: jax.Array  # [N, K] float32
    predicted_quality: jax.Array  # [N, K] float32
    demand: Demand  # recent arrivals
    # [N, K] float32, seconds at a server that is down; None, where no server can go down (see `faults`).
    stuck_s: jax.Array | None = None
    measured: Measured | None = None  # of the answers so far; None where no router reads it
    prefixes: PrefixTable | None = None  # what caches remember beside the slots; None without prefix caching

    @property
    def generated_tokens(self) -> jax.Array:
        """[N, K] int32, tokens generated, at the end of the iteration in progress."""
        return self.serving.context_tokens - self.prompt_tokens


@struct.dataclass
class Outcome:
    """The outcome of a request that completed or failed; every leaf of one shape, [] or [N, K]."""

    request_id: jax.Array  # int32, -1 = no request
    expert: jax.Array  # int32
    ttft_s: jax.Array  # float32, seconds, at the server; -1 = failed
    latency_s: jax.Array  # float32, seconds, E2E, network included; -1 = failed
    preemptions: jax.Array  # int32
    cached_tokens: jax.Array | None = None  # int32, prompt tokens found in the cache, with prefix caching


@struct.dataclass
class Routed:
    """The result of one routing decision."""

    accepted: jax.Array  # [] bool
    rejected: jax.Array  # [] bool, by the full queue of the expert it was sent to
    # [] bool, that expert's KV cache, or its context limit, can never hold it, whatever its queue
    rejected_too_long: jax.Array
    dropped: jax.Array  # [] bool, sent to no expert
    # The outcome that the request overwrote: each completed or failed request is reported once, here or by
    # `remaining_outcomes`, so that the records of a run cost one row a step.
    evicted: Outcome


@struct.dataclass
class Passed:
    """The events and totals of the time that passed."""

    completed: jax.Array  # [N, K] bool, slots whose request completed
    completed_count: jax.Array  # [N] int32
    within_limit: jax.Array  # [N] int32, of these, all limits kept
    qos: jax.Array  # [N] float32, sum of their QoS
    busy_s: jax.Array  # [N] float32, seconds
    kv_token_s: jax.Array  # [N] float32, tokens x seconds
    rounds: jax.Array  # [] int32
    allocated_tokens: jax.Array | None = None  # [N] int32, KV tokens allocated, with prefix caching


def empty_fleet(config: ServingConfig, *, measures: bool = False) -> FleetState:
    """Return N idle experts before any arrival; with ``measures``, answers are measured."""
    shape = (config.num_experts, config.slots)
    return FleetState(
        serving=empty_state(config),
        prompt_tokens=jnp.zeros(shape, jnp.int32),
        output_tokens=jnp.ones(shape, jnp.int32),
        quality=jnp.zeros(shape, jnp.float32),
        predicted_output_tokens=jnp.ones(shape, jnp.float32),
        predicted_quality=jnp.zeros(shape, jnp.float32),
        demand=no_demand(config.num_experts),
        measured=no_measurements(config.num_experts) if measures else None,
        prefixes=empty_table(config),
    )


def route(
    profile: FleetProfile,
    state: FleetState,
    request: Request,
    request_id: jax.Array,
    action: jax.Array,
    age_s: jax.Array | float = 0.0,
    hit: PrefixHit | None = None,
) -> tuple[FleetState, Routed]:
    """Send ``request`` to expert ``action``; N, or any other number outside 0..N-1, drops it.

    Args:
      profile: the fleet, leaves [N].
      state: the edge at the instant of arrival.
      request: the request.
      request_id: [] int32, counts up with arrivals.
      action: [] int32.
      age_s: [] float32, seconds since it first arrived, above 0 for one that is routed again.
      hit: what the expert's cache holds of its prompt, with prefix caching.

    Returns:
      The edge with the request in a slot, if an expert accepted it, and the result of the decision.
    """
    num_experts = state.prompt_tokens.shape[0]
    serving = state.serving
    assignment = assign_slot(profile, serving, action, request.prompt_tokens, request.output_tokens)
    evicted = evicted_content(assignment, _slot_outcomes(serving))
    evicted = dataclasses.replace(evicted, request_id=jnp.where(assignment.accepted, evicted.request_id, -1))
    newcomer = {name: getattr(request, name) for name in _CONTENT}
    if state.stuck_s is not None:
        newcomer["stuck_s"] = jnp.float32(0.0)
    content = insert(assignment, {name: getattr(state, name) for name in newcomer}, newcomer)
    serving = enqueue(assignment, serving, request_id, request.prompt_tokens, request.output_tokens, age_s)
    routed_state = FleetState(
        serving=serving if hit is None else enqueue_prefix(assignment, serving, hit),
        prefixes=state.prefixes,
        **content,
        demand=after_request(
            state.demand, request.prompt_tokens, request.predicted_output_tokens, request.predicted_quality
        ),
        measured=state.measured,
    )
    dropped = (action < 0) | (action >= num_experts)
    return routed_state, Routed(
        accepted=assignment.accepted,
        rejected=~(assignment.accepted | assignment.too_long | dropped),
        rejected_too_long=assignment.too_long,
        dropped=dropped,
        evicted=evicted,
    )


def pass_time(
    config: ServingConfig,
    profile: FleetProfile,
    state: FleetState,
    gap_s: jax.Array,
    limits: ServiceLimits | jax.Array,
) -> tuple[FleetState, Passed]:
    """Let ``gap_s`` seconds pass (``inf`` drains) and score what completed against the limits.

    Args:
      config: static sizes and the scheduler.
      profile: the fleet, leaves [N].
      state: the edge now.
      gap_s: [] float32, seconds.
      limits: the service levels; an array is L alone, [] float32 seconds per output token.

    Returns:
      The edge ``gap_s`` later, and the events and totals of the time that passed.
    """
    serving, progress = advance(config, profile, state.serving, gap_s)
    kept = limits_kept(
        as_limits(limits),
        serving.latency_s,
        serving.ttft_s,
        state.output_tokens.astype(jnp.float32),
        profile.network_rtt_s[:, None],
    )
    good = progress.completed & all_kept(kept)
    reached = dataclasses.replace(state, serving=serving, demand=after_gap(state.demand, gap_s))
    if state.measured is not None:
        measured = after_completions(
            state.measured,
            progress.completed,
            jnp.sum(state.serving.live, axis=-1, dtype=jnp.float32),
            serving.latency_s,
            serving.ttft_s,
            state.output_tokens.astype(jnp.float32),
            state.predicted_output_tokens,
            all_kept(kept),
        )
        reached = dataclasses.replace(reached, measured=measured)
    return reached, Passed(
        completed=progress.completed,
        completed_count=jnp.sum(progress.completed, axis=-1, dtype=jnp.int32),
        within_limit=jnp.sum(good, axis=-1, dtype=jnp.int32),
        qos=jnp.sum(jnp.where(good, state.quality, 0.0), axis=-1),
        busy_s=progress.busy_s,
        kv_token_s=progress.kv_token_s,
        rounds=progress.rounds,
        allocated_tokens=progress.allocated_tokens,
    )


def remaining_outcomes(state: FleetState) -> Outcome:
    """Return the outcomes still in the slots, [N, K]; ``request_id`` -1 where there is none.

    Together with the evicted ones of every :func:`route` these are those of all requests that completed or
    failed, each once.
    """
    outcomes = _slot_outcomes(state.serving)
    return dataclasses.replace(outcomes, request_id=jnp.where(state.serving.live, -1, outcomes.request_id))


def _slot_outcomes(serving: ServingState) -> Outcome:
    """Return what each slot records of its request, [N, K]; an outcome only where the slot is dead."""
    num_experts, slots = serving.request_id.shape
    return Outcome(
        request_id=serving.request_id,
        expert=jnp.broadcast_to(jnp.arange(num_experts, dtype=jnp.int32)[:, None], (num_experts, slots)),
        ttft_s=serving.ttft_s,
        latency_s=serving.latency_s,
        preemptions=serving.preemptions,
        cached_tokens=None if serving.prefix is None else serving.prefix.hit_tokens,
    )
