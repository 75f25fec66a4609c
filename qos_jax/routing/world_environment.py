"""What the environment keeps and does where routers act on beliefs and servers have faults."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.belief import Belief, at_own_request
from qos_jax.routing.faults import FaultState, pace, pass_time_under
from qos_jax.routing.fleet_state import FleetState, Passed, Request, Routed, pass_time
from qos_jax.routing.observation import KnownFleet, Observation, observe, see_prefixes
from qos_jax.routing.params import EnvConfig, EnvParams
from qos_jax.routing.routers import Routers, brought_to_now, known_up, look
from qos_jax.routing.world_params import WorldParams
from qos_jax.routing.world_step import (
    AtHand,
    Draws,
    Retries,
    WorldState,
    decide,
    draws_of,
    fail_at_arrival,
    init_world,
    next_at_hand,
    pass_to_next_arrival,
    world_key,
)
from qos_jax.serving.profile import slowed


@struct.dataclass
class EnvWorld:
    """The world around the fleet at the instant a request is to be routed."""

    seed: jax.Array  # [] uint32, of all that is random in the world, by the number of the arrival
    arrival: jax.Array  # [] int32, number of the newcomer
    routers: Routers
    faults: FaultState | None
    retries: Retries  # failed requests to be routed again at this instant, before the newcomer
    hand: AtHand  # the request to be routed now
    tries: jax.Array  # [] int32, decisions taken at this instant
    belief: Belief  # of the router of the request to be routed now, brought to now
    failed: jax.Array  # [] int32, requests that failed for good, since reset

    @property
    def draws(self) -> Draws:
        """The keys of the newcomer's arrival."""
        return draws_of(world_key(jax.random.key(self.seed)), self.arrival)


@struct.dataclass
class Decided:
    """What a decision led to; where ``moves_on`` holds, time passed to the next arrival."""

    fleet: FleetState
    world: EnvWorld
    routed: Routed
    passed: Passed
    moves_on: jax.Array  # [] bool
    failed: jax.Array  # [] int32, requests that failed for good


def world_params(config: EnvConfig, params: EnvParams, known: KnownFleet) -> WorldParams | None:
    """Return what stays the same in the world; None where routers see everything and servers never err.

    Args:
      config: static choices of the environment.
      params: its numbers.
      known: of the fleet beforehand.

    Raises:
      ValueError: configuration and parameters disagree on what there is.
    """
    choices, telemetry, faults = config.telemetry, params.telemetry, params.faults
    if choices is None:
        if telemetry is not None or faults is not None:
            raise ValueError("params have telemetry or faults: give EnvConfig.telemetry=TelemetryConfig(...)")
        return None
    if telemetry is None:
        raise ValueError("EnvConfig.telemetry is set: give make_params(telemetry=live_telemetry(routers))")
    routers, experts = telemetry.router_share.shape[-1], config.serving.num_experts
    if routers != choices.routers:
        raise ValueError(f"router_share has {routers} routers, EnvConfig.telemetry {choices.routers}")
    if faults is not None and faults.pace_log_std.shape[-1] != experts:
        raise ValueError(f"faults are of {faults.pace_log_std.shape[-1]} experts, the fleet has {experts}")
    return WorldParams(config.serving, choices, known, telemetry, faults)


def start_world(params: WorldParams, key: jax.Array) -> tuple[FleetState, EnvWorld]:
    """Return the empty fleet, and the world around it at the first arrival; ``key`` is of the reset."""
    seed = jax.random.bits(world_key(key), (), jnp.uint32)
    own = world_key(jax.random.key(seed))
    state, retries = init_world(params.config, own, params.telemetry, params.faults)
    zero = jnp.int32(0)
    hand = next_at_hand(params, retries, zero, draws_of(own, zero).router)
    belief = jax.tree.map(lambda leaf: leaf[hand.router], state.routers.belief)
    world = EnvWorld(seed, zero, state.routers, state.faults, retries, hand, zero, belief, zero)
    return state.fleet, world


def arrival_keys(world: EnvWorld, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the keys of the gap after arrival ``number`` and of its contents, [] each."""
    keys = jax.random.split(draws_of(world_key(jax.random.key(world.seed)), number).arrival)
    return keys[0], keys[1]


def decide_at_hand(
    params: WorldParams,
    fleet: FleetState,
    world: EnvWorld,
    request: Request,
    action: jax.Array,
    gap_s: jax.Array,
) -> Decided:
    """Route the request at hand; if it was the newcomer, let ``gap_s`` pass and fail what is to fail then.

    Args:
      params: the world's.
      fleet: the true fleet now.
      world: around it.
      request: contents of the request at hand.
      action: [] int32, an expert; anything but 0..N-1 drops the request.
      gap_s: [] float32, seconds to the next arrival.

    Returns:
      What it led to; who is at hand next, and what its router believes, are not brought up to date.
    """
    draws, before = world.draws, WorldState(fleet, world.routers, world.faults)
    decided, retries, routed = decide(
        params,
        before,
        world.retries,
        world.belief,
        world.hand,
        request,
        action,
    )
    later, passed, lost = pass_to_next_arrival(params, decided, gap_s, draws)
    later, failing, given_up = fail_at_arrival(params, later)
    failed, tries, moves_on = lost + given_up, jnp.int32(0), jnp.bool_(True)
    if params.faults is not None:
        moves_on = ~world.hand.is_retry
        here = (decided, retries, jax.tree.map(jnp.zeros_like, passed), jnp.int32(0), world.tries + 1)
        later, failing, passed, failed, tries = jax.tree.map(
            lambda moved, stayed: jnp.where(moves_on, moved, stayed),
            (later, failing, passed, failed, tries),
            here,
        )
    evicted = routed.evicted
    ids = jnp.where(evicted.request_id >= 0, evicted.request_id // params.choices.routers, -1)
    world = dataclasses.replace(
        world,
        arrival=world.arrival + moves_on.astype(jnp.int32),
        routers=later.routers,
        faults=later.faults,
        retries=failing,
        tries=tries,
        failed=world.failed + failed,
    )
    routed = dataclasses.replace(routed, evicted=dataclasses.replace(evicted, request_id=ids))
    return Decided(later.fleet, world, routed, passed, moves_on, failed)


def next_decision(params: WorldParams, world: EnvWorld) -> EnvWorld:
    """Return the world with who is to be routed next at hand."""
    hand = next_at_hand(params, world.retries, world.arrival, world.draws.router)
    return dataclasses.replace(world, hand=hand)


def with_belief(params: WorldParams, fleet: FleetState, world: EnvWorld) -> EnvWorld:
    """Return the world with the belief of the router of the request at hand, brought to now."""
    belief = brought_to_now(params, world.faults, world.routers, fleet, world.hand.router)
    return dataclasses.replace(world, belief=at_own_request(belief))


def believed(params: WorldParams, fleet: FleetState, world: EnvWorld, request: Request) -> Observation:
    """Return what the router of the request at hand sees."""
    up = known_up(params, world.faults, world.routers, world.hand.router)
    return look(params, world.faults, world.belief, up, fleet, request, world.arrival)


def drain_world(params: WorldParams, fleet: FleetState, world: EnvWorld) -> Passed:
    """Return the events and totals of all time to come if nothing else arrives and servers stay the same."""
    config, known, gap_s = params.config, params.known, jnp.float32(jnp.inf)
    if params.faults is None or world.faults is None:
        return pass_time(config, known.profile, fleet, gap_s, known.limits)[1]
    return pass_time_under(config, known.profile, params.faults, world.faults, fleet, gap_s, known.limits)[1]


def true_queues(params: WorldParams, fleet: FleetState, world: EnvWorld, request: Request) -> Observation:
    """Return the true queues at their true pace, which no router sees, as an observation."""
    known = params.known
    if params.faults is not None and world.faults is not None:
        paces = pace(params.faults, world.faults)
        known = dataclasses.replace(known, profile=slowed(known.profile, paces))
    prefix = see_prefixes(params.config, known.profile, fleet, request)
    return observe(known, fleet, request, world.arrival, prefix)
