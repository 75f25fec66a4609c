"""R routers in front of one fleet, each with a belief of its own: what one sees, what its decision does."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.belief import (
    Belief,
    after_own_events,
    after_routing,
    after_time,
    at_own_request,
    believed_pace,
    no_belief,
)
from qos_jax.routing.demand import MAX_LOAD
from qos_jax.routing.faults import FaultState, pace
from qos_jax.routing.fleet_state import FleetState, Request, Routed, route
from qos_jax.routing.fleet_step import recalled
from qos_jax.routing.ghosts import with_ghosts
from qos_jax.routing.observation import BeliefNotes, KnownFleet, Observation, observe, see_prefixes
from qos_jax.routing.scrape import as_seen_by
from qos_jax.routing.sent_prefixes import after_sending, see_sent, slots_of_request, without_caches_of
from qos_jax.routing.telemetry import Telemetry, TelemetryConfig, first_scrape_s
from qos_jax.routing.world_params import WorldParams
from qos_jax.serving import ServingConfig
from qos_jax.serving.profile import slowed

# Pace that a router works with for a server it knows to be down: no estimate of it looks good.
_DOWN_PACE = 1e3


@struct.dataclass
class Routers:
    """What R routers believe, and when each last saw a request of its own fail."""

    belief: Belief  # leaves [R, ...]
    since_failure_s: jax.Array  # [R, N] float32, seconds


def init_routers(config: ServingConfig, key: jax.Array, telemetry: Telemetry) -> Routers:
    """Return routers that believe in an empty fleet; the phases of their scrapes are drawn."""
    due_s = first_scrape_s(key, telemetry)
    belief = jax.vmap(lambda due_s: no_belief(config, due_s))(due_s)
    return Routers(belief, jnp.full((due_s.shape[0], config.num_experts), jnp.inf, jnp.float32))


def perceive(
    params: WorldParams,
    fault_state: FaultState | None,
    routers: Routers,
    fleet: FleetState,
    router: jax.Array,
    request: Request,
    step: jax.Array,
) -> tuple[Belief, Observation]:
    """Bring a router's belief to now; return it and what the router sees.

    Args:
      params: the world's.
      fault_state: the hidden state now, with faults.
      routers: all routers.
      fleet: the true fleet now, ids being tags.
      router: [] int32, who decides.
      request: the arrived request.
      step: [] int32, requests that arrived before it.
    """
    belief = at_own_request(brought_to_now(params, fault_state, routers, fleet, router))
    up = known_up(params, fault_state, routers, router)
    return belief, look(params, fault_state, belief, up, fleet, request, step)


def known_up(
    params: WorldParams, fault_state: FaultState | None, routers: Routers, router: jax.Array
) -> jax.Array:
    """Return which servers a router does not know to be down, [N] bool."""
    faults = params.faults
    if faults is None or fault_state is None:
        return jnp.ones(routers.since_failure_s.shape[-1:], jnp.bool_)
    if params.choices.view == "informed":
        return fault_state.up
    return fault_state.known_up & (routers.since_failure_s[router] >= faults.detection_delay_s)


def brought_to_now(
    params: WorldParams,
    fault_state: FaultState | None,
    routers: Routers,
    fleet: FleetState,
    router: jax.Array,
) -> Belief:
    """Return the belief of a router brought to now; that a request of its own arrives is not in it."""
    choices, known = params.choices, params.known
    belief = jax.tree.map(lambda leaf: leaf[router], routers.belief)
    if choices.view in ("informed", "live"):
        return belief
    log_std = known.length_log_std
    paces = believed_pace(belief, log_std) if choices.advances else jnp.ones_like(log_std)
    elapsed_s = belief.behind_s
    belief = after_time(params.config, choices, known.profile, paces, belief)
    own_view = as_seen_by(choices, router, fleet)
    if choices.observes_own and choices.keeps_own:
        belief = after_own_events(choices, paces, belief, own_view)
    if choices.view == "twin" and choices.routers > 1:
        belief = with_ghosts(known.profile, log_std, belief, elapsed_s)
    if params.faults is not None:
        belief = without_the_dead(belief, known_up(params, fault_state, routers, router))
    return belief


def look(
    params: WorldParams,
    fault_state: FaultState | None,
    belief: Belief,
    up: jax.Array,
    fleet: FleetState,
    request: Request,
    step: jax.Array,
) -> Observation:
    """Return what a router sees whose belief is ``belief``, brought to now.

    Args:
      params: the world's.
      fault_state: the hidden state now, with faults.
      belief: from :func:`brought_to_now`.
      up: [N] bool, from :func:`known_up`.
      fleet: the true fleet now, ids being tags.
      request: the arrived request.
      step: [] int32, requests that arrived before it.
    """
    choices, known, faults = params.choices, params.known, params.faults
    log_std = known.length_log_std
    paces = jnp.ones_like(log_std)
    true_prefixes = see_prefixes(params.config, known.profile, fleet, request)
    if choices.view == "informed":
        if faults is not None and fault_state is not None:
            paces = pace(faults, fault_state)
        seen = observe(_slowed(known, paces), fleet, request, step, true_prefixes)
        return _with_notes(seen, BeliefNotes(jnp.float32(0.0), paces, jnp.float32(0.0), up))
    if choices.view == "live":
        seen = observe(known, fleet, request, step, true_prefixes)
        return _with_notes(seen, BeliefNotes(jnp.float32(0.0), paces, jnp.float32(0.0), up))
    if choices.advances:
        paces = believed_pace(belief, log_std)
    expected = see_sent(params.config, belief.sent, belief.fleet.serving, request)
    seen = observe(_slowed(known, paces), belief.fleet, request, step, expected)
    share = _share(choices, belief)
    load = jnp.minimum(seen.offered_load / share, MAX_LOAD)
    seen = dataclasses.replace(seen, offered_load=load, mean_gap_s=seen.mean_gap_s * share)
    age_s = belief.scrape_age_s
    if choices.scrapes:
        live = params.telemetry.scrape_period_s <= 0.0
        # A belief that is always right has nothing to estimate but what faults hide.
        known = known if faults is None else _slowed(known, paces)
        # In front of real servers the belief stands for the fleet, which has no caches to look into.
        true = observe(known, fleet, request, step, true_prefixes or expected)
        seen = jax.tree.map(lambda now, then: jnp.where(live, now, then), true, seen)
        age_s = jnp.where(live, 0.0, age_s)
        paces = jnp.where(live, 1.0, paces) if faults is None else paces
    return _with_notes(seen, BeliefNotes(age_s, paces, 1.0 / share - 1.0, up))


def act(
    params: WorldParams,
    routers: Routers,
    belief: Belief,
    fleet: FleetState,
    router: jax.Array,
    request: Request,
    request_id: jax.Array,
    action: jax.Array,
    age_s: jax.Array,
) -> tuple[Routers, FleetState, Routed]:
    """Route a request for a router, and enter it in the router's belief.

    Args:
      params: the world's.
      routers: all routers.
      belief: of the router, from :func:`perceive`.
      fleet: the true fleet now, ids being tags.
      router: [] int32, who decides.
      request: the request.
      request_id: [] int32; -1 = none: nothing is routed, and the routers stay as they are.
      action: [] int32, an expert; anything but 0..N-1 drops the request.
      age_s: [] float32, seconds since its arrival.
    """
    choices, known = params.choices, params.known
    happens = request_id >= 0
    tag = request_id * choices.routers + router
    fleet, hit = recalled(params.config, known.profile, fleet, request, action)
    fleet, routed = route(known.profile, fleet, request, tag, action, age_s, hit)
    if choices.view in ("informed", "live"):
        return routers, fleet, routed
    belief = after_sending_own(params, belief, request, tag, action, routed.accepted, age_s)
    return with_belief_of(routers, router, belief, happens), fleet, routed


def after_sending_own(
    params: WorldParams,
    belief: Belief,
    request: Request,
    tag: jax.Array,
    action: jax.Array,
    accepted: jax.Array,
    age_s: jax.Array,
) -> Belief:
    """Enter a request that the router just routed in its belief, and its prefix in the index.

    Args:
      params: the world's.
      belief: brought to now.
      request: the request; its true lengths and qualities are not read.
      tag: [] int32, of the request.
      action: [] int32, where it went.
      accepted: [] bool, whether the expert took it.
      age_s: [] float32, seconds since it arrived, above 0 if it is routed again.
    """
    choices, known, config = params.choices, params.known, params.config
    prefix = slots_of_request(config, belief.sent, belief.fleet.serving, request)
    if belief.sent is not None:
        share = _share(choices, belief)
        sent = after_sending(config, known.profile, belief.sent, request, action, accepted, share)
        belief = dataclasses.replace(belief, sent=sent)
    return after_routing(
        choices, known.profile, known.length_log_std, belief, request, tag, action, accepted, age_s, prefix
    )


def with_belief_of(routers: Routers, router: jax.Array, belief: Belief, where: jax.Array) -> Routers:
    """Return the routers, the belief of ``router`` [] int32 replaced where ``where``, [] bool, holds."""

    def put(all_of: jax.Array, mine: jax.Array) -> jax.Array:
        mine = jnp.where(where, mine, all_of[router])
        return jax.lax.dynamic_update_index_in_dim(all_of, mine, router, 0)

    return dataclasses.replace(routers, belief=jax.tree.map(put, routers.belief, belief))


def after_gap_of_all(routers: Routers, gap_s: jax.Array) -> Routers:
    """Let ``gap_s`` seconds, [], pass for all routers; beliefs follow when each decides next."""
    gap_s = jnp.where(jnp.isfinite(gap_s), gap_s, 0.0)
    belief = dataclasses.replace(routers.belief, behind_s=routers.belief.behind_s + gap_s)
    return Routers(belief, routers.since_failure_s + gap_s)


def after_failures(choices: TelemetryConfig, routers: Routers, tag: jax.Array, failed: jax.Array) -> Routers:
    """Let each proxy notice which of its own requests failed just now, ``failed`` [N, K] bool."""
    if not choices.observes_own:
        return routers
    owner = jnp.where(failed & (tag >= 0), tag % choices.routers, -1)
    every = jnp.arange(choices.routers, dtype=jnp.int32)[:, None, None]
    mine = jnp.any(owner[None] == every, axis=-1)
    return dataclasses.replace(routers, since_failure_s=jnp.where(mine, 0.0, routers.since_failure_s))


def _share(choices: TelemetryConfig, belief: Belief) -> jax.Array:
    """Return the share of the load that the router takes to be its own, [] float32."""
    if choices.view == "own_times_routers":
        return jnp.float32(1.0 / choices.routers)
    return belief.own_share


def _slowed(known: KnownFleet, paces: jax.Array) -> KnownFleet:
    return dataclasses.replace(known, profile=slowed(known.profile, paces))


def without_the_dead(belief: Belief, up: jax.Array) -> Belief:
    """Return the belief without requests at servers known to be down: their KV caches are lost."""
    serving = belief.fleet.serving
    serving = dataclasses.replace(
        serving, live=serving.live & up[:, None], running=serving.running & up[:, None]
    )
    fleet = dataclasses.replace(belief.fleet, serving=serving)
    return dataclasses.replace(belief, fleet=fleet, sent=without_caches_of(belief.sent, ~up))


def _with_notes(seen: Observation, notes: BeliefNotes) -> Observation:
    """Return the observation with what is known beside the queues; a server that is down looks full."""
    up = notes.up
    return dataclasses.replace(
        seen,
        available=seen.available & up,
        live=seen.live | ~up[:, None],
        predicted_quality=jnp.where(up, seen.predicted_quality, 0.0),
        profile=slowed(seen.profile, jnp.where(up, 1.0, _DOWN_PACE)),
        belief=notes,
    )


def redirected(action: jax.Array, notes: BeliefNotes | None) -> jax.Array:
    """Return the action, [] int32, or the next expert that is up where it names one known to be down.

    A proxy takes a server that is down out of its pool, whatever its policy.
    """
    if notes is None:
        return action
    num_experts = notes.up.shape[0]
    inside = jnp.clip(action, 0, num_experts - 1)
    order = (inside + jnp.arange(num_experts, dtype=jnp.int32)) % num_experts
    next_up = order[jnp.argmax(notes.up[order])]
    named = (action >= 0) & (action < num_experts)
    return jnp.where(named & ~notes.up[inside] & jnp.any(notes.up), next_up, action)
