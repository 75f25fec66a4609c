"""Route the turns of the sessions of one run, each of which follows from the answer before, as one scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.devices import batched_like
from qos_jax.routing.fleet_state import FleetState, Request
from qos_jax.routing.fleet_step import step_fleet
from qos_jax.routing.observation import KnownFleet
from qos_jax.serving import (
    FleetProfile,
    ServingConfig,
    advance,
    assign_slot,
    enqueue,
    enqueue_prefix,
    recall,
)
from qos_jax.simulation.route import Carry, Logged, Snapshot, decide, snapshot_of, status_of

TICK_S = 2.0**-16  # arrivals are on a grid of ticks, so that the times until them add up without drift
LONGEST_S = 30_000.0  # most seconds until a turn: int32 holds 32,768 of ticks


@struct.dataclass
class Turns:
    """What U sessions of one run say, M turns each, which begin anew where a session has had them all."""

    request: Request  # leaves [U, M] and [U, M, N]
    think_s: jax.Array  # [U, M] float32, seconds from the answer to a turn to the next


@struct.dataclass
class SessionCarry:
    """What one step hands to the next: the edge right before the next turn arrives."""

    carry: Carry
    due_ticks: jax.Array  # [U] int32, until the next turn of each session, at the latest reckoning
    turn: jax.Array  # [U] int32, how many turns of each have arrived
    session_of: jax.Array  # [T] int32, by request


@struct.dataclass
class LoggedTurn:
    """What one step leaves behind."""

    logged: Logged
    session: jax.Array  # [] int32
    turn: jax.Array  # [] int32, of the session, from 0
    gap_ticks: jax.Array  # [] int32, until the arrival after it; 0 at the last
    snapshot: Snapshot | None = None  # the experts right before it, if kept


def ticks_of(seconds: jax.Array) -> jax.Array:
    """Return seconds in ticks, int32; more than :data:`LONGEST_S` as that."""
    return jnp.round(jnp.minimum(seconds, LONGEST_S) / TICK_S).astype(jnp.int32)


def route_sessions(
    config: ServingConfig,
    policy_function: Callable[..., jax.Array],
    num_requests: int,
    keep_snapshots: bool,
    policy_params: Any,
    known: KnownFleet,
    seed: jax.Array,
    turns: Turns,
    carry: SessionCarry,
    request_id: jax.Array,
) -> tuple[SessionCarry, LoggedTurn]:
    """Route the next C turns of one run; pure, so ``jax.vmap`` it over any of its arrays.

    Until the next request is routed to it, when an expert will have answered those it has is settled, and
    known by draining a copy of it. So the next arrival is the least of what is due: of a session in flight
    its answer and a time to think, of an idle one the rest of its time to think. A turn that is refused or
    dropped is answered at once, by nothing.

    Args:
      config: static sizes and the scheduler.
      policy_function: of (parameters, key, :class:`TrueObservation`), see ``Policy.act_function``.
      num_requests: T of the run, after which it is drained; static.
      keep_snapshots: whether to log the experts' load before each arrival; static.
      policy_params: of the policy.
      known: profile, limits and length error of N experts.
      seed: [] uint32, of the policy's own randomness; request i draws by key i of the run.
      turns: what the sessions say.
      carry: the edge right before the first of these turns.
      request_id: [C] int32, from 0 over the run; -1 = padding.
    """
    run_key = jax.random.key(seed)

    def step(carry: SessionCarry, request_id: jax.Array) -> tuple[SessionCarry, LoggedTurn]:
        fleet, real = carry.carry.fleet, request_id >= 0
        session = jnp.argmin(carry.due_ticks).astype(jnp.int32)
        turn = carry.turn[session]
        request = _turn_of(turns, session, turn)
        seen, action = decide(
            config, policy_function, policy_params, known, run_key, fleet, request, request_id
        )
        # A request that is padding is one past the end, which an update leaves out.
        session_of = carry.session_of.at[jnp.where(real, request_id, num_requests)].set(session, mode="drop")
        owner, answer_s = _answers(config, known.profile, fleet, request, request_id, action)
        # Of each session its last turn, the one that may be in flight; that of the newcomer counts now.
        arrived = carry.turn.at[session].add(real.astype(jnp.int32))
        users = session_of[jnp.maximum(owner, 0)]
        refused = jnp.where(real, ticks_of(_think_s(turns, session, turn)), carry.due_ticks[session])
        due = carry.due_ticks.at[session].set(refused)
        held = jnp.where((owner >= 0) & real, users, due.shape[0])
        due = due.at[held].set(ticks_of(answer_s + _think_s(turns, users, arrived[users] - 1)), mode="drop")
        last = request_id == num_requests - 1
        gap_ticks = jnp.where(real & ~last, jnp.maximum(jnp.min(due), 0), 0)
        gap_s = jnp.where(last, jnp.inf, gap_ticks.astype(jnp.float32) * TICK_S)
        fleet, routed, passed = step_fleet(
            config, known.profile, fleet, request, request_id, action, gap_s, known.limits
        )
        totals = Carry(
            fleet=fleet,
            busy_s=carry.carry.busy_s + passed.busy_s,
            kv_token_s=carry.carry.kv_token_s + passed.kv_token_s,
            rounds=carry.carry.rounds + passed.rounds,
        )
        logged = LoggedTurn(
            logged=Logged(action, status_of(routed), routed.evicted),
            session=session,
            turn=turn,
            gap_ticks=gap_ticks,
            snapshot=snapshot_of(seen) if keep_snapshots else None,
        )
        return SessionCarry(totals, due - gap_ticks, arrived, session_of), logged

    fleet, zeros = carry.carry.fleet, jnp.zeros((config.num_experts,), jnp.float32)
    totals = batched_like((zeros, zeros, jnp.int32(0)), fleet.serving.lead_s)
    begun = dataclasses.replace(carry, carry=Carry(fleet, *totals))  # totals are of these turns
    return jax.lax.scan(step, begun, request_id)


def _turn_of(turns: Turns, session: jax.Array, turn: jax.Array) -> Request:
    """Return a turn of a session, counted from 0."""
    sessions, most = turns.think_s.shape
    request: Request = jax.tree.map(lambda leaf: leaf[session, turn % most], turns.request)
    if request.prefix_group is None:
        return request
    # Turns that come again are of other conversations.
    again = turn // most * (sessions * most)
    path = request.prefix_path
    if path is not None:
        path = (*path[:-1], dataclasses.replace(path[-1], group=path[-1].group + again))
    return dataclasses.replace(request, prefix_group=request.prefix_group + again, prefix_path=path)


def _think_s(turns: Turns, session: jax.Array, turn: jax.Array) -> jax.Array:
    """Return the seconds that sessions think after the answers to turns, [...] float32."""
    return turns.think_s[session, jnp.maximum(turn, 0) % turns.think_s.shape[1]]


def _answers(
    config: ServingConfig,
    profile: FleetProfile,
    fleet: FleetState,
    request: Request,
    request_id: jax.Array,
    action: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return whose answers an expert with a newcomer owes, and in how many seconds if no other comes.

    Returns:
      owner: [K] int32, the request of each slot of the expert; -1 where none is in flight.
      answer_s: [K] float32, seconds until the user has the whole answer.
    """
    expert = jnp.clip(action, 0, config.num_experts - 1)
    here = jnp.where(expert == action, 0, -1).astype(jnp.int32)
    alone = dataclasses.replace(config, num_experts=1)

    def of_expert(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, expert, 1), tree)

    one, serving = of_expert(profile), of_expert(fleet.serving)
    output, hit = of_expert(request.output_tokens), None
    if fleet.prefixes is not None:
        assert request.prefix_group is not None
        assert request.prefix_tokens is not None
        shared = (request.prefix_group, request.prefix_tokens, request.prompt_tokens, output)
        serving, _, hit = recall(
            alone, one, serving, of_expert(fleet.prefixes), here, *shared, request.prefix_path
        )
    assignment = assign_slot(one, serving, here, request.prompt_tokens, output)
    serving = enqueue(assignment, serving, request_id, request.prompt_tokens, output)
    if hit is not None:
        serving = enqueue_prefix(assignment, serving, hit)
    drained, _ = advance(alone, one, serving, jnp.float32(jnp.inf))
    owner = jnp.where(serving.live & (here == 0), serving.request_id, -1)
    return owner[0], drained.latency_s[0] - serving.age_s[0]
