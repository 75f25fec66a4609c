"""A router's belief about the fleet, its digital twin: how time, own requests and their ends change it.

All leaves are of one router; ``routers.py`` keeps R beliefs. Requests have tags, request_id * R + router, so
that an id says whose it is. Within a belief the ids of all but own requests are negative.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.demand import after_gap, after_request
from qos_jax.routing.fleet_state import FleetState, Request, empty_fleet
from qos_jax.routing.newcomers import Newcomer, add_each, no_newcomer
from qos_jax.routing.outlook import left_given_survival
from qos_jax.routing.sent_prefixes import no_prefixes, of_nobody
from qos_jax.routing.telemetry import TelemetryConfig
from qos_jax.serving import FleetProfile, PrefixTable, ServingConfig, ServingState, advance
from qos_jax.serving.profile import slowed
from qos_jax.serving.scheduler import masked_sum, prefix_sum
from qos_jax.serving.state import PrefixSlots

GHOST = -2  # id of a request that is assumed: another router's, which nobody reported
FOREIGN = -3  # ids of reported requests of other routers: this minus the tag
PACE_MEMORY_S = 6.0  # seconds over which the evidence of a pace fades by a factor of e
PACE_PRIOR_TOKENS = 50.0  # tokens of evidence that the profile counts for
FLOW_MEMORY = 0.5  # weight of the earlier own requests in where others' are taken to go, per own request
MAX_PACE = 8.0  # bound of an estimated pace, and of its inverse
# What a proxy saw of an own request in flight; a number from 0 is the length of the answer that ended.
NO_TOKEN, BEGUN, UNSEEN = -1, -2, -3  # no token yet, its first token came, answered in one piece
# An own request counts as evidence of a slow server by the tokens it should have beyond this many std of
# its log length: silence tells, too.
SILENCE_STD = 1.5


@struct.dataclass
class Belief:
    """What one router believes; its ``fleet`` holds believed lengths and qualities in place of true ones."""

    fleet: FleetState
    synced_tokens: jax.Array  # [N, K] int32, tokens generated as last known for certain
    behind_s: jax.Array  # [] float32, seconds that have passed since the belief was brought up to date
    since_request_s: jax.Array  # [] float32, seconds from the last own request until then
    scrape_age_s: jax.Array  # [] float32, seconds since the last scrape, when it was
    next_scrape_s: jax.Array  # [] float32, seconds from then until the next is due
    own_in_flight: jax.Array  # [] float32, own requests in flight, summed over recent scrapes
    all_in_flight: jax.Array  # [] float32, all requests in flight, likewise
    ghost_credit: jax.Array  # [N] float32, requests of others expected and not assumed yet
    flow: jax.Array  # [N] float32, own requests recently routed to each expert
    last: Newcomer  # the own request last routed to each expert
    expected_tokens: jax.Array  # [N] float32, recent tokens that the profile let expect
    observed_tokens: jax.Array  # [N] float32, recent tokens that came
    sent: PrefixTable | None = None  # own prefixes that each expert is expected to hold, with prefix caching

    @property
    def own_share(self) -> jax.Array:
        """[] float32 in (0, 1], estimated share of the requests in flight that are the router's own."""
        return jnp.clip((self.own_in_flight + 1.0) / (self.all_in_flight + 1.0), 1e-3, 1.0)


def no_belief(config: ServingConfig, next_scrape_s: jax.Array) -> Belief:
    """Return the belief in an empty fleet that is true to its profile, with the first scrape to come."""
    zeros = jnp.zeros((config.num_experts,), jnp.float32)
    zero = jnp.float32(0.0)
    fleet = dataclasses.replace(empty_fleet(config), prefixes=None)
    nobody = fleet.serving.prefix and jax.tree.map(lambda leaf: leaf[:, 0], of_nobody(fleet.serving.prefix))
    return Belief(
        fleet=fleet,
        synced_tokens=jnp.zeros((config.num_experts, config.slots), jnp.int32),
        behind_s=zero,
        since_request_s=zero,
        scrape_age_s=zero,
        next_scrape_s=next_scrape_s,
        own_in_flight=zero,
        all_in_flight=zero,
        ghost_credit=zeros,
        flow=zeros,
        last=no_newcomer(config.num_experts, nobody),
        expected_tokens=zeros,
        observed_tokens=zeros,
        sent=no_prefixes(config),
    )


def believed_pace(belief: Belief, length_log_std: jax.Array) -> jax.Array:
    """Return the estimated pace of each expert, expected over observed progress, [N] float32; 1 = nominal.

    Args:
      belief: the belief.
      length_log_std: [N] float32, known error of the predicted lengths.
    """
    fleet = belief.fleet
    longest = fleet.predicted_output_tokens * jnp.exp(SILENCE_STD * length_log_std)[:, None]
    own = fleet.serving.live & (fleet.serving.request_id >= 0)
    silent = masked_sum(own, jnp.maximum(fleet.generated_tokens.astype(jnp.float32) - longest, 0.0))
    expected = belief.expected_tokens + silent + PACE_PRIOR_TOKENS
    return jnp.clip(expected / (belief.observed_tokens + PACE_PRIOR_TOKENS), 1.0 / MAX_PACE, MAX_PACE)


def with_progress(belief: Belief, pace: jax.Array, compared: jax.Array, tokens: jax.Array) -> Belief:
    """Return the belief with the evidence of its pace that some requests' progress gives.

    Args:
      belief: brought to now.
      pace: [N] float32, at which it was.
      compared: [N, K] bool, slots whose progress is known.
      tokens: [N, K] int32, tokens that their requests have generated in truth.
    """
    believed = jnp.maximum(belief.fleet.generated_tokens - belief.synced_tokens, 0).astype(jnp.float32)
    true = jnp.maximum(tokens - belief.synced_tokens, 0).astype(jnp.float32)
    return dataclasses.replace(
        belief,
        # At the nominal pace, as many times more would have been expected.
        expected_tokens=belief.expected_tokens + pace * masked_sum(compared, believed),
        observed_tokens=belief.observed_tokens + masked_sum(compared, true),
    )


def after_time(
    config: ServingConfig,
    telemetry: TelemetryConfig,
    profile: FleetProfile,
    pace: jax.Array,
    belief: Belief,
) -> Belief:
    """Bring the belief to now: ``behind_s`` seconds pass in it, in closed form at the believed pace.

    Args:
      config: static sizes and the scheduler.
      telemetry: what the router knows.
      profile: the fleet as the router knows it, leaves [N].
      pace: [N] float32, the believed pace.
      belief: as of the router's last decision.
    """
    elapsed_s, fleet = belief.behind_s, belief.fleet
    if telemetry.advances:
        serving, _ = advance(config, slowed(profile, pace), fleet.serving, elapsed_s)
        fleet = dataclasses.replace(fleet, serving=serving)
    fading = jnp.exp(-elapsed_s / PACE_MEMORY_S)
    return dataclasses.replace(
        belief,
        fleet=fleet,
        behind_s=jnp.zeros_like(elapsed_s),
        since_request_s=belief.since_request_s + elapsed_s,
        scrape_age_s=belief.scrape_age_s + elapsed_s,
        next_scrape_s=belief.next_scrape_s - elapsed_s,
        expected_tokens=belief.expected_tokens * fading,
        observed_tokens=belief.observed_tokens * fading,
    )


def at_own_request(belief: Belief) -> Belief:
    """Take in that the router's next request arrives now: a gap between its own requests ends.

    Args:
      belief: brought to now.
    """
    demand = belief.fleet.demand
    # Before the router's first request there is no gap between requests of its own.
    gap_s = jnp.where(demand.prompt_tokens[0] > 0.0, belief.since_request_s, jnp.inf)
    fleet = dataclasses.replace(belief.fleet, demand=after_gap(demand, gap_s))
    return dataclasses.replace(belief, fleet=fleet, since_request_s=jnp.zeros_like(gap_s))


def after_own_events(
    telemetry: TelemetryConfig, pace: jax.Array, belief: Belief, truth: FleetState
) -> Belief:
    """Take in what a proxy saw of its own requests: first tokens, and ends with the length of the answer.

    Args:
      telemetry: what the router knows.
      pace: [N] float32, the believed pace.
      belief: brought to now.
      truth: the fleet now; only own requests' first tokens, ends and the lengths of ended ones are read.
    """
    begun = truth.serving.live & (truth.serving.ttft_s >= 0.0) & (truth.serving.ttft_s <= truth.serving.age_s)
    # 0 of one that failed: that says nothing of its length.
    length = jnp.where(truth.serving.latency_s < 0.0, 0, truth.output_tokens)
    said = jnp.where(truth.serving.live, jnp.where(begun, BEGUN, NO_TOKEN), length)
    return with_own_events(telemetry, pace, belief, truth.serving.request_id, said)


def with_own_events(
    telemetry: TelemetryConfig, pace: jax.Array, belief: Belief, request_id: jax.Array, said: jax.Array
) -> Belief:
    """Take in what is known of own requests; one that is not among them ended, its length unknown.

    Args:
      telemetry: what the router knows.
      pace: [N] float32, the believed pace.
      belief: brought to now.
      request_id: [N, S] int32, own requests at each expert, in any order; negative = none.
      said: [N, S] int32, ``NO_TOKEN``, ``BEGUN`` or ``UNSEEN`` of one in flight, the length of an answer that
        ended, or 0 of one that failed.
    """
    # One number of each slot, so that one pass over the pairs of slots says all. No match is 0.
    same = belief.fleet.serving.request_id[:, :, None] == request_id[:, None, :]
    said = jnp.sum(jnp.where(same, said[:, None, :], 0), axis=-1, dtype=jnp.int32)
    return with_said(telemetry, pace, belief, said)


def with_said(telemetry: TelemetryConfig, pace: jax.Array, belief: Belief, said: jax.Array) -> Belief:
    """Take in what is known of the own request in each slot.

    Args:
      telemetry: what the router knows.
      pace: [N] float32, the believed pace.
      belief: brought to now.
      said: [N, K] int32, as of :func:`with_own_events`; read where an own request is in flight.
    """
    serving = belief.fleet.serving
    own = serving.live & (serving.request_id >= 0)
    ended = own & (said >= 0)
    if telemetry.advances:
        belief = with_progress(belief, pace, ended & (said > 0), said)
    serving = dataclasses.replace(serving, live=serving.live & ~ended, running=serving.running & ~ended)
    if telemetry.advances:
        prompt = belief.fleet.prompt_tokens
        serving = with_first_tokens(serving, prompt, own & (said == BEGUN), own & (said == NO_TOKEN))
    return dataclasses.replace(belief, fleet=dataclasses.replace(belief.fleet, serving=serving))


def with_first_tokens(
    serving: ServingState, prompt_tokens: jax.Array, begun: jax.Array, not_begun: jax.Array
) -> ServingState:
    """Return the experts with those running that have ``begun``, and those waiting that have ``not_begun``.

    The running requests stay the earliest of the live ones: whoever stands before one that has begun runs.

    Args:
      serving: the believed experts.
      prompt_tokens: [N, K] int32.
      begun: [N, K] bool, live requests whose first token came.
      not_begun: [N, K] bool, live requests whose first token did not.
    """
    generated = serving.context_tokens - prompt_tokens
    late, early = begun & (generated == 0), not_begun & (generated > 0)
    context = jnp.where(early, prompt_tokens, serving.context_tokens + late.astype(jnp.int32))
    total = serving.context_tokens + serving.left_tokens
    later = prefix_sum(begun[:, ::-1].astype(jnp.int32))[:, ::-1]  # how many have begun from here on
    runs = serving.running & ~early
    stopped = prefix_sum((serving.live & ~runs & (later == 0)).astype(jnp.int32)) > 0
    running = serving.live & ((later > 0) | (runs & ~stopped))
    return dataclasses.replace(
        serving,
        running=running,
        context_tokens=context,
        left_tokens=jnp.maximum(total - context, 1),
        prefill_left_tokens=jnp.where(late | ~running, 0, serving.prefill_left_tokens),
        ttft_s=jnp.where(early, -1.0, jnp.where(late, serving.age_s, serving.ttft_s)),
    )


def room_tokens(profile: FleetProfile, prompt_tokens: jax.Array) -> jax.Array:
    """Return the longest answer that the KV cache of each expert could hold, [N] or [N, K] int32, >= 1.

    A proxy sees its requests end, so in its belief they run for as long as they do not.
    """
    capacity = profile.kv_capacity_tokens
    capacity = capacity[:, None] if prompt_tokens.ndim == 2 else capacity
    return jnp.maximum(capacity - prompt_tokens, 1)


def after_routing(
    telemetry: TelemetryConfig,
    profile: FleetProfile,
    length_log_std: jax.Array,
    belief: Belief,
    request: Request,
    tag: jax.Array,
    action: jax.Array,
    accepted: jax.Array,
    age_s: jax.Array,
    prefix: PrefixSlots | None = None,
) -> Belief:
    """Enter a request that the router just routed.

    Args:
      telemetry: what the router knows.
      profile: the fleet, leaves [N].
      length_log_std: [N] float32, known error of the predicted lengths.
      belief: brought to now.
      request: the request; its true lengths and qualities are not read.
      tag: [] int32, of the request.
      action: [] int32, where it went.
      accepted: [] bool, whether the expert took it.
      age_s: [] float32, seconds since it arrived, above 0 if it is routed again.
      prefix: what is expected to be cached of its prompt, leaves [N], with prefix caching.
    """
    num_experts = length_log_std.shape[0]
    demand = after_request(
        belief.fleet.demand, request.prompt_tokens, request.predicted_output_tokens, request.predicted_quality
    )
    belief = dataclasses.replace(belief, fleet=dataclasses.replace(belief.fleet, demand=demand))
    if not telemetry.keeps_own:
        return belief
    here = (jnp.arange(num_experts, dtype=jnp.int32) == action) & accepted
    prompt = jnp.broadcast_to(request.prompt_tokens, (num_experts,))
    room = room_tokens(profile, prompt)
    nothing = jnp.zeros((num_experts,), jnp.int32)
    assumed = assumed_length(request.predicted_output_tokens, nothing, length_log_std)
    own = Newcomer(
        request_id=jnp.broadcast_to(tag, (num_experts,)),
        prompt_tokens=prompt,
        output_tokens=room if telemetry.observes_own else jnp.minimum(assumed, room),
        generated_tokens=nothing,
        predicted_output_tokens=request.predicted_output_tokens,
        predicted_quality=request.predicted_quality,
        age_s=jnp.broadcast_to(age_s, (num_experts,)),
        prefix=prefix,
    )
    copies = telemetry.routers if telemetry.view == "own_times_routers" else 1
    fleet, synced = add_each((belief.fleet, belief.synced_tokens), copies * here.astype(jnp.int32), own)
    last = jax.tree.map(lambda new, old: jnp.where(here, new, old), own, belief.last)
    return dataclasses.replace(
        belief,
        fleet=fleet,
        synced_tokens=synced,
        last=last,
        flow=FLOW_MEMORY * belief.flow + here.astype(jnp.float32),
    )


def assumed_length(
    predicted_tokens: jax.Array, generated_tokens: jax.Array, length_log_std: jax.Array
) -> jax.Array:
    """Return the lengths that a belief gives requests which nobody sees end, int32.

    Their median given the tokens generated so far, times what the mean of a log-normal is above its median:
    with medians alone, fewer would be in flight than are.

    Args:
      predicted_tokens: [...] float32, medians.
      generated_tokens: [...] int32.
      length_log_std: [...] float32.
    """
    generated = generated_tokens.astype(jnp.float32)
    left = left_given_survival(predicted_tokens, generated, length_log_std)
    left = left * jnp.exp(0.5 * jnp.square(length_log_std))
    return generated_tokens + jnp.maximum(jnp.round(left), 1.0).astype(jnp.int32)
