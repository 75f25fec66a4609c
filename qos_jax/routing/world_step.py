"""One instant of a world of routers and faults: who is decided next, and the time to the next arrival."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.belief import Belief
from qos_jax.routing.due_scrapes import after_due_scrapes
from qos_jax.routing.faults import (
    Faults,
    FaultState,
    can_fail,
    clear_outcomes,
    fail_requests,
    faults_after_gap,
    init_faults,
    pass_time_under,
)
from qos_jax.routing.fleet_state import FleetState, Passed, Request, Routed, empty_fleet, pass_time
from qos_jax.routing.fleet_step import forgotten
from qos_jax.routing.routers import Routers, act, after_failures, after_gap_of_all, init_routers
from qos_jax.routing.telemetry import Telemetry, router_of
from qos_jax.routing.world_params import WorldParams
from qos_jax.serving import ServingConfig

_NO_TAG = 2**31 - 1  # later than every tag


@struct.dataclass
class WorldState:
    """The true fleet, ids being tags, its hidden faults, and the routers in front of it."""

    fleet: FleetState
    routers: Routers
    faults: FaultState | None  # None = servers are as their profiles say


@struct.dataclass
class Retries:
    """The failed requests that are still to be routed again at this instant."""

    tag: jax.Array  # [N, K] int32; _NO_TAG = none
    age_s: jax.Array  # [N, K] float32, seconds since each first arrived

    @property
    def count(self) -> jax.Array:
        """[] int32, how many they are."""
        return jnp.sum(self.tag != _NO_TAG, dtype=jnp.int32)


@struct.dataclass
class AtHand:
    """The request that is decided next: the earliest to be routed again, or else the newcomer."""

    request_id: jax.Array  # [] int32
    router: jax.Array  # [] int32, whose it is
    age_s: jax.Array  # [] float32, seconds since it first arrived
    is_retry: jax.Array  # [] bool


@struct.dataclass
class Draws:
    """The keys of what is random about one arrival, whatever was done before it."""

    router: jax.Array  # whose it is
    faults: jax.Array  # how faults change in the gap after it
    scrape: jax.Array  # of scrapes that fall due in the gap after it
    arrival: jax.Array  # its contents, and the gap after it


def world_key(key: jax.Array) -> jax.Array:
    """Return the key of what is random in the world but for arrivals and the policy."""
    return jax.random.fold_in(key, 2**31 - 1)


def draws_of(key: jax.Array, arrival: jax.Array) -> Draws:
    """Return the keys of arrival number ``arrival``, [] int32; ``key`` is from :func:`world_key`."""
    own = jax.random.fold_in(key, arrival)
    router, faults, scrape = jax.random.split(own, 3)
    return Draws(router, faults, scrape, jax.random.fold_in(own, 3))


def init_world(
    config: ServingConfig, key: jax.Array, telemetry: Telemetry, faults: Faults | None
) -> tuple[WorldState, Retries]:
    """Return an empty fleet at the first arrival, and routers that know it is; nothing is to be retried."""
    routers_key, faults_key = jax.random.split(key)
    fleet, state = empty_fleet(config), None
    if faults is not None:
        fleet, state = can_fail(fleet), init_faults(faults_key, faults)
    shape = fleet.serving.live.shape
    retries = Retries(jnp.full(shape, _NO_TAG, jnp.int32), jnp.zeros(shape, jnp.float32))
    return WorldState(fleet, init_routers(config, routers_key, telemetry), state), retries


def fail_at_arrival(params: WorldParams, world: WorldState) -> tuple[WorldState, Retries, jax.Array]:
    """Fail the requests whose time is up at this arrival; the routers notice.

    Returns:
      The world, without the outcomes of those that are routed again; these; how many others failed, [] int32.
    """
    faults = params.faults
    if faults is None or world.faults is None:
        shape = world.fleet.serving.live.shape
        none = Retries(jnp.full(shape, _NO_TAG, jnp.int32), jnp.zeros(shape, jnp.float32))
        return world, none, jnp.int32(0)
    fleet, failed = fail_requests(faults, world.faults, world.fleet)
    tag, again = fleet.serving.request_id, failed & faults.retry
    routers = after_failures(params.choices, world.routers, tag, failed)
    # Kept apart from the slots, which a decision at this instant may shift or overwrite.
    retries = Retries(jnp.where(again, tag, _NO_TAG), jnp.where(again, fleet.serving.age_s, 0.0))
    world = WorldState(clear_outcomes(fleet, again), routers, world.faults)
    return world, retries, jnp.sum(failed & ~again, dtype=jnp.int32)


def next_at_hand(params: WorldParams, retries: Retries, arrival: jax.Array, key: jax.Array) -> AtHand:
    """Return who is decided next, of the retries and the newcomer.

    Args:
      params: the world's.
      retries: still to be routed again.
      arrival: [] int32, number of the newcomer.
      key: of the newcomer's router, see :class:`Draws`.
    """
    routers = params.choices.routers
    tag = jnp.min(retries.tag)
    again = tag != _NO_TAG
    mine = jnp.where(retries.tag == tag, retries.age_s, 0.0)
    return AtHand(
        request_id=jnp.where(again, tag // routers, arrival),
        router=jnp.where(again, tag % routers, router_of(key, params.telemetry)),
        age_s=jnp.where(again, jnp.max(mine), 0.0),
        is_retry=again,
    )


def decide(
    params: WorldParams,
    world: WorldState,
    retries: Retries,
    belief: Belief,
    hand: AtHand,
    request: Request,
    action: jax.Array,
) -> tuple[WorldState, Retries, Routed]:
    """Route the request at hand, as :func:`~qos_jax.routing.routers.act` does; it is to be retried no more.

    Args:
      params: the world's.
      world: at this instant.
      retries: still to be routed again.
      belief: of the request's router, brought to now.
      hand: the request at hand.
      request: its contents.
      action: [] int32, an expert; anything but 0..N-1 drops the request.
    """
    routers, fleet, routed = act(
        params,
        world.routers,
        belief,
        world.fleet,
        hand.router,
        request,
        hand.request_id,
        action,
        hand.age_s,
    )
    left = jnp.where(retries.tag == jnp.min(retries.tag), _NO_TAG, retries.tag)
    left_retries = dataclasses.replace(retries, tag=left)
    return WorldState(fleet, routers, world.faults), left_retries, routed


def pass_to_next_arrival(
    params: WorldParams, world: WorldState, gap_s: jax.Array, draws: Draws
) -> tuple[WorldState, Passed, jax.Array]:
    """Let the gap to the next arrival pass for servers and routers; an infinite one ends every request.

    Args:
      params: the world's.
      world: when all at this instant are decided.
      gap_s: [] float32, seconds.
      draws: the keys of the arrival before the gap.

    Returns:
      The world at the next arrival, before anything fails there; the events and totals of the time that
      passed; how many requests failed in it, [] int32.
    """
    config, known, faults = params.config, params.known, params.faults
    routers = after_due_scrapes(params, world.faults, world.routers, world.fleet, gap_s, draws.scrape)
    routers = after_gap_of_all(routers, gap_s)
    if faults is None or world.faults is None:
        fleet, passed = pass_time(config, known.profile, world.fleet, gap_s, known.limits)
        return WorldState(forgotten(fleet, passed), routers, None), passed, jnp.int32(0)
    fleet, passed, failed = pass_time_under(
        config, known.profile, faults, world.faults, world.fleet, gap_s, known.limits
    )
    state = faults_after_gap(draws.faults, faults, world.faults, gap_s)
    return WorldState(forgotten(fleet, passed), routers, state), passed, jnp.sum(failed, dtype=jnp.int32)
