"""Servers that differ from their profile: a hidden pace, slowdowns, outages, and the requests they fail."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.fleet_state import FleetState, Passed, pass_time
from qos_jax.serving import FleetProfile, ServiceLimits, ServingConfig, slowed
from qos_jax.serving.latency import add_exactly
from qos_jax.serving.state import NO_LIFE


@struct.dataclass
class Faults:
    """How N servers err, slow down and fail; every leaf is traced (see README.md, rules 14 to 17)."""

    pace_log_std: jax.Array  # [N] float32, std of the log of the fixed error in pace, drawn at reset
    drift_log_std: jax.Array  # [N] float32, std of the log pace that drifts (Ornstein-Uhlenbeck)
    drift_time_s: jax.Array  # [N] float32, > 0, seconds until the drift is forgotten but for 1 / e
    slowdown_per_s: jax.Array  # [N] float32, slowdowns that start in a second
    slowdown_length_s: jax.Array  # [N] float32, seconds of each
    slowdown_pace: jax.Array  # [N] float32, pace while it lasts, times that of all else
    outage_per_s: jax.Array  # [N] float32, outages that start in a second
    outage_length_s: jax.Array  # [N] float32, seconds of each
    script_expert: jax.Array  # [E] int32, the expert of each scripted event
    script_start_s: jax.Array  # [E] float32, seconds since the reset
    script_length_s: jax.Array  # [E] float32, seconds
    script_pace: jax.Array  # [E] float32, pace while it lasts, times that of all else; inf = outage
    # [] float32, seconds after which health checks notice that a server went down, or came up again
    detection_delay_s: jax.Array
    # [] float32, seconds after which a request at a server that is down is seen to fail, from the later of
    # its routing there and the start of the outage; inf = it hangs until the health checks notice
    failure_delay_s: jax.Array
    retry: jax.Array  # [] bool, whether whoever routes sends failed requests again; else they count as failed


@struct.dataclass
class FaultState:
    """What is hidden from routers, as of one instant of arrival; it holds until the next."""

    fixed_log_pace: jax.Array  # [N] float32
    drift_log_pace: jax.Array  # [N] float32
    slowdown_left_s: jax.Array  # [N] float32, seconds of the slowdown still to come; 0 = none
    outage_left_s: jax.Array  # [N] float32, seconds of the drawn outage still to come; 0 = none
    # Since the reset, for the script: value and rest, as one float32 would lose an event of a long trace.
    clock_s: jax.Array  # [] float32, seconds
    clock_rest_s: jax.Array  # [] float32, seconds, what rounding left out of the clock
    up: jax.Array  # [N] bool, serving
    since_s: jax.Array  # [N] float32, seconds since the server last went down or came up, or the reset
    restarted: jax.Array  # [N] bool, came up at this very instant
    known_up: jax.Array  # [N] bool, up by the health checks


def no_faults(num_experts: int) -> Faults:
    """Return the faults of servers that never err: pace 1, always up, no script."""
    zeros, ones = jnp.zeros((num_experts,), jnp.float32), jnp.ones((num_experts,), jnp.float32)
    none = jnp.zeros((0,), jnp.float32)
    return Faults(
        pace_log_std=zeros,
        drift_log_std=zeros,
        drift_time_s=ones,
        slowdown_per_s=zeros,
        slowdown_length_s=zeros,
        slowdown_pace=ones,
        outage_per_s=zeros,
        outage_length_s=zeros,
        script_expert=none.astype(jnp.int32),
        script_start_s=none,
        script_length_s=none,
        script_pace=none,
        detection_delay_s=jnp.float32(0.0),
        failure_delay_s=jnp.float32(0.0),
        retry=jnp.bool_(False),
    )


def init_faults(key: jax.Array, faults: Faults) -> FaultState:
    """Draw the hidden state at the first arrival: fixed errors, drift, and what the script begins with."""
    fixed_key, drift_key = jax.random.split(key)
    shape = faults.pace_log_std.shape
    zeros, zero = jnp.zeros(shape, jnp.float32), jnp.float32(0.0)
    scripted_down, _ = _script(faults, zero, zero)
    up = ~scripted_down
    return FaultState(
        fixed_log_pace=faults.pace_log_std * jax.random.normal(fixed_key, shape, jnp.float32),
        drift_log_pace=faults.drift_log_std * jax.random.normal(drift_key, shape, jnp.float32),
        slowdown_left_s=zeros,
        outage_left_s=zeros,
        clock_s=zero,
        clock_rest_s=zero,
        up=up,
        since_s=zeros,
        restarted=jnp.zeros(shape, jnp.bool_),
        known_up=up | (faults.detection_delay_s > 0.0),
    )


def faults_after_gap(key: jax.Array, faults: Faults, state: FaultState, gap_s: jax.Array) -> FaultState:
    """Draw the hidden state at the next arrival (see README.md, rules 14 and 15).

    Args:
      key: of the draws, which depend on nothing that a router did.
      faults: how the servers err.
      state: at the arrival before.
      gap_s: [] float32, seconds from that arrival; an infinite one, which drains, changes nothing.

    Returns:
      The state in force from this arrival to the next.
    """
    gap_s = jnp.asarray(gap_s, jnp.float32)
    gap_s = jnp.where(jnp.isfinite(gap_s), gap_s, 0.0)
    drift_key, slowdown_key, outage_key = jax.random.split(key, 3)
    shape = state.up.shape
    kept = gap_s / faults.drift_time_s
    moved = faults.drift_log_std * jnp.sqrt(-jnp.expm1(-2.0 * kept))
    clock_s, clock_rest_s = add_exactly(state.clock_s, state.clock_rest_s, gap_s)
    outage_left_s = _spell(
        outage_key, state.outage_left_s, gap_s, faults.outage_per_s, faults.outage_length_s
    )
    scripted_down, _ = _script(faults, clock_s, clock_rest_s)
    up = (outage_left_s == 0.0) & ~scripted_down
    since_s = jnp.where(up == state.up, state.since_s + gap_s, 0.0)
    return FaultState(
        fixed_log_pace=state.fixed_log_pace,
        drift_log_pace=jnp.exp(-kept) * state.drift_log_pace
        + moved * jax.random.normal(drift_key, shape, jnp.float32),
        slowdown_left_s=_spell(
            slowdown_key, state.slowdown_left_s, gap_s, faults.slowdown_per_s, faults.slowdown_length_s
        ),
        outage_left_s=outage_left_s,
        clock_s=clock_s,
        clock_rest_s=clock_rest_s,
        up=up,
        since_s=since_s,
        restarted=up & ~state.up,
        known_up=jnp.where(since_s >= faults.detection_delay_s, up, state.known_up),
    )


def pace(faults: Faults, state: FaultState) -> jax.Array:
    """Return what multiplies each server's iteration times now, [N] float32; more is slower."""
    _, scripted = _script(faults, state.clock_s, state.clock_rest_s)
    slow = jnp.where(state.slowdown_left_s > 0.0, faults.slowdown_pace, 1.0)
    return jnp.exp(state.fixed_log_pace + state.drift_log_pace) * slow * scripted


def can_fail(fleet: FleetState) -> FleetState:
    """Return the fleet with what :func:`fail_requests` keeps of each slot; call it on an empty fleet."""
    return dataclasses.replace(fleet, stuck_s=jnp.zeros(fleet.serving.live.shape, jnp.float32))


def fail_requests(faults: Faults, state: FaultState, fleet: FleetState) -> tuple[FleetState, jax.Array]:
    """Fail the requests whose time is up at servers that are down (see README.md, rule 16).

    Call it at every arrival, after :func:`faults_after_gap` and before the newcomer is routed.

    Args:
      faults: how the servers err.
      state: the hidden state at this arrival.
      fleet: the edge at this arrival, from :func:`can_fail`.

    Returns:
      The edge without iterations at servers that are down, and the slots that failed, [N, K] bool. Each is
      dead, its ``latency_s`` -1 and its ``age_s`` that of the request at this instant.
    """
    down = ~state.up
    noticed = (state.since_s >= faults.detection_delay_s)[:, None]
    missed = stuck_s(fleet) >= faults.failure_delay_s
    failed = fleet.serving.live & ((down[:, None] & (missed | noticed)) | state.restarted[:, None])
    idle = jnp.where(down | state.restarted, 0.0, fleet.serving.lead_s)
    fleet = dataclasses.replace(fleet, serving=dataclasses.replace(fleet.serving, lead_s=idle))
    return _without_caches(_failed(fleet, failed), down | state.restarted), failed


def clear_outcomes(fleet: FleetState, slots: jax.Array) -> FleetState:
    """Forget the outcomes in ``slots``, [N, K] bool, of requests that are routed again."""
    serving = fleet.serving
    request_id = jnp.where(slots, -1, serving.request_id)
    return dataclasses.replace(fleet, serving=dataclasses.replace(serving, request_id=request_id))


def pass_time_under(
    config: ServingConfig,
    profile: FleetProfile,
    faults: Faults,
    state: FaultState,
    fleet: FleetState,
    gap_s: jax.Array,
    limits: ServiceLimits | jax.Array,
) -> tuple[FleetState, Passed, jax.Array]:
    """Let time pass as :func:`~qos_jax.routing.fleet_state.pass_time` does, each server at its hidden pace.

    At a server that is down requests only age. An infinite gap drains the others and fails those.

    Args:
      config: static sizes and the scheduler.
      profile: the fleet, leaves [N].
      faults: how the servers err.
      state: the hidden state in force during the gap.
      fleet: the edge now, from :func:`fail_requests`.
      gap_s: [] float32, seconds.
      limits: the service levels; an array is L alone, [] float32 seconds per output token.

    Returns:
      The edge ``gap_s`` later, the events and totals of the time that passed, and the slots that failed
      since the gap is infinite, [N, K] bool.
    """
    serving, up = fleet.serving, state.up[:, None]
    gap_s = jnp.asarray(gap_s, jnp.float32)
    stuck = serving.live & ~up
    serves = dataclasses.replace(fleet, serving=dataclasses.replace(serving, live=serving.live & up))
    reached, passed = pass_time(config, slowed(profile, pace(faults, state)), serves, gap_s, limits)
    restored = dataclasses.replace(
        reached.serving,
        live=reached.serving.live | stuck,
        age_s=jnp.where(stuck, serving.age_s + gap_s, reached.serving.age_s),
    )
    reached = dataclasses.replace(
        reached, serving=restored, stuck_s=stuck_s(fleet) + jnp.where(up, 0.0, gap_s)
    )
    failed = stuck & jnp.isinf(gap_s)
    return _failed(reached, failed), passed, failed


def stuck_s(fleet: FleetState) -> jax.Array:
    """Return the seconds that each slot's request has been at a server that is down, [N, K] float32.

    Raises:
      ValueError: the fleet is not from :func:`can_fail`.
    """
    if fleet.stuck_s is None:
        raise ValueError("a fleet of servers with faults starts as can_fail(empty_fleet(config))")
    return fleet.stuck_s


def _failed(fleet: FleetState, failed: jax.Array) -> FleetState:
    """Return the fleet with the slots ``failed`` [N, K] dead, each without times."""
    serving = fleet.serving
    serving = dataclasses.replace(
        serving,
        live=serving.live & ~failed,
        running=serving.running & ~failed,
        ttft_s=jnp.where(failed, -1.0, serving.ttft_s),
        latency_s=jnp.where(failed, -1.0, serving.latency_s),
    )
    return dataclasses.replace(fleet, serving=serving)


def _without_caches(fleet: FleetState, lost: jax.Array) -> FleetState:
    """Return the fleet without what the caches of the experts ``lost``, [N] bool, kept of ended requests."""
    prefix, table = fleet.serving.prefix, fleet.prefixes
    if prefix is None or table is None:
        return fleet
    gone = lost[:, None] & ~fleet.serving.live
    prefix = dataclasses.replace(prefix, life_tokens=jnp.where(gone, NO_LIFE, prefix.life_tokens))
    table = dataclasses.replace(table, life_tokens=jnp.where(lost[:, None], NO_LIFE, table.life_tokens))
    return dataclasses.replace(
        fleet, serving=dataclasses.replace(fleet.serving, prefix=prefix), prefixes=table
    )


def _spell(
    key: jax.Array, left_s: jax.Array, gap_s: jax.Array, per_s: jax.Array, length_s: jax.Array
) -> jax.Array:
    """Return the seconds left of a spell after the gap, [N]; one may start in a gap that is free of it."""
    starts = jax.random.uniform(key, left_s.shape, jnp.float32) < -jnp.expm1(-per_s * gap_s)
    return jnp.where(left_s > 0.0, jnp.maximum(left_s - gap_s, 0.0), jnp.where(starts, length_s, 0.0))


def _script(faults: Faults, clock_s: jax.Array, clock_rest_s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return which servers the script has down, [N] bool, and the pace that it gives the others, [N]."""
    into_s = (clock_s - faults.script_start_s) + clock_rest_s
    on = (into_s >= 0.0) & (into_s < faults.script_length_s)
    experts = jnp.arange(faults.pace_log_std.shape[-1], dtype=jnp.int32)[None, :]
    here = on[:, None] & (faults.script_expert[:, None] == experts)
    outage = jnp.isinf(faults.script_pace)[:, None]
    paces = jnp.where(here & ~outage, faults.script_pace[:, None], 1.0)
    return jnp.any(here & outage, axis=0), jnp.prod(paces, axis=0)
