"""Route the requests of one run by routers with beliefs, to servers with faults: one scan, pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.faults import Faults
from qos_jax.routing.fleet_state import Outcome, Request, remaining_outcomes
from qos_jax.routing.observation import KnownFleet, reveal
from qos_jax.routing.routers import perceive, redirected
from qos_jax.routing.telemetry import Telemetry, TelemetryConfig
from qos_jax.routing.whole_batch import max_over_batch
from qos_jax.routing.world_params import WorldParams
from qos_jax.routing.world_step import (
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
from qos_jax.serving import ServingConfig
from qos_jax.simulation.records import (
    COMPLETED,
    DROPPED,
    FAILED,
    REJECTED,
    REJECTED_TOO_LONG,
    TracedRecords,
)
from qos_jax.simulation.route import Arriving
from qos_jax.workload.request_table import RequestTable


@struct.dataclass
class Reality:
    """What differs from routers that see everything and servers that keep to their profiles; all traced."""

    telemetry: Telemetry
    faults: Faults | None = None  # None = servers are as their profiles say


@struct.dataclass
class Logbook:
    """What became of T requests so far."""

    expert: jax.Array  # [T] int32, the last action
    status: jax.Array  # [T] int32; COMPLETED = accepted
    ttft_s: jax.Array  # [T] float32, NaN = none
    latency_s: jax.Array  # [T] float32, NaN = none
    preemptions: jax.Array  # [T] int32
    ends: jax.Array  # [T] int32, outcomes entered: at the end, 1 for each accepted one
    cached_tokens: jax.Array | None = None  # [T] int32, with prefix caching


@struct.dataclass
class RealCarry:
    """What one step hands to the next."""

    world: WorldState
    logbook: Logbook
    busy_s: jax.Array  # [N] float32
    kv_token_s: jax.Array  # [N] float32
    rounds: jax.Array  # [] int32


def begin(config: ServingConfig, reality: Reality, seed: jax.Array, num_requests: int) -> RealCarry:
    """Return the carry before the first of T requests: an empty fleet, and routers that know it is."""
    key = world_key(jax.random.key(seed))
    world, _ = init_world(config, key, reality.telemetry, reality.faults)
    nobody = jnp.full((num_requests,), -1, jnp.int32)
    none = jnp.full((num_requests,), jnp.nan, jnp.float32)
    zeros = jnp.zeros((num_requests,), jnp.int32)
    return RealCarry(
        world=world,
        logbook=Logbook(
            nobody, nobody, none, none, zeros, zeros, None if config.prefix_entries == 0 else zeros
        ),
        busy_s=jnp.zeros((config.num_experts,), jnp.float32),
        kv_token_s=jnp.zeros((config.num_experts,), jnp.float32),
        rounds=jnp.int32(0),
    )


def route_in_reality(
    config: ServingConfig,
    choices: TelemetryConfig,
    policy_function: Callable[..., jax.Array],
    policy_params: Any,
    known: KnownFleet,
    reality: Reality,
    seed: jax.Array,
    contents: Request,
    carry: RealCarry,
    arriving: Arriving,
) -> RealCarry:
    """Route C of the T requests of one run; pure, so ``jax.vmap`` it over any of its arrays.

    Args:
      config: static sizes and the scheduler.
      choices: the routers' view, and how many they are.
      policy_function: of (parameters, key, :class:`TrueObservation`), see ``Policy.act_function``.
      policy_params: of the policy.
      known: profile, latency limit and length error of N experts, as known beforehand.
      reality: telemetry and faults.
      seed: [] uint32, of the policy's own randomness and of reality's.
      contents: all requests of the run, leaves [T] and [T, N], which retries read.
      carry: from :func:`begin`, or of the requests before.
      arriving: C requests, and the gaps after them; ``request_id`` -1 = padding.

    Returns:
      The carry right before the arrival after the last.
    """
    run_key = jax.random.key(seed)
    key_of_world = world_key(run_key)
    no_action = jnp.int32(config.num_experts)
    params = WorldParams(config, choices, known, reality.telemetry, reality.faults)

    def step(carry: RealCarry, arrival: Arriving) -> tuple[RealCarry, None]:
        arrives = arrival.request_id >= 0
        draws = draws_of(key_of_world, arrival.request_id)
        world, waiting, _ = fail_at_arrival(params, carry.world)
        retries = waiting.count

        def decide_one(
            index: jax.Array, loop: tuple[WorldState, Retries, Logbook]
        ) -> tuple[WorldState, Retries, Logbook]:
            world, waiting, logbook = loop
            hand = next_at_hand(params, waiting, arrival.request_id, draws.router)
            request_id = jnp.where(index <= retries, hand.request_id, -1)
            hand = dataclasses.replace(hand, request_id=request_id)
            request = jax.tree.map(
                lambda all_of, new: jnp.where(hand.is_retry, all_of[jnp.maximum(request_id, 0)], new),
                contents,
                arrival.request,
            )
            belief, seen = perceive(
                params,
                world.faults,
                world.routers,
                world.fleet,
                hand.router,
                request,
                arrival.request_id,
            )
            key = jax.random.fold_in(run_key, arrival.request_id)
            key = jnp.where(hand.is_retry, jax.random.fold_in(key, index), key)
            action = policy_function(policy_params, key, reveal(seen, world.fleet, request))
            action = redirected(action.astype(jnp.int32), seen.belief)
            action = jnp.where(request_id >= 0, action, no_action)
            world, waiting, routed = decide(params, world, waiting, belief, hand, request, action)
            status = jnp.where(routed.rejected, REJECTED, jnp.where(routed.dropped, DROPPED, COMPLETED))
            status = jnp.where(routed.rejected_too_long, REJECTED_TOO_LONG, status)
            logbook = _entered(logbook, routed.evicted, choices.routers)
            row = jnp.where(request_id >= 0, request_id, logbook.expert.shape[0])
            logbook = dataclasses.replace(
                logbook,
                expert=logbook.expert.at[row].set(action, mode="drop"),
                status=logbook.status.at[row].set(status, mode="drop"),
            )
            return world, waiting, logbook

        loop = (world, waiting, carry.logbook)
        if reality.faults is None:
            world, _, logbook = decide_one(jnp.int32(0), loop)
        else:
            # As many rounds in every lane of a batch; those that have nothing left to route do nothing.
            rounds = max_over_batch(retries + arrives.astype(jnp.int32))
            world, _, logbook = jax.lax.fori_loop(jnp.int32(0), rounds, decide_one, loop)
        world, passed, _ = pass_to_next_arrival(params, world, arrival.gap_after_s, draws)
        carry = RealCarry(
            world=world,
            logbook=logbook,
            busy_s=carry.busy_s + passed.busy_s,
            kv_token_s=carry.kv_token_s + passed.kv_token_s,
            rounds=carry.rounds + passed.rounds,
        )
        return carry, None

    return jax.lax.scan(step, carry, arriving)[0]


def finish(choices: TelemetryConfig, carry: RealCarry) -> Logbook:
    """Return the logbook of a drained run, with the outcomes that are still in the slots."""
    return _entered(carry.logbook, remaining_outcomes(carry.world.fleet), choices.routers)


def records_of(table: RequestTable, logbook: Logbook) -> tuple[TracedRecords, jax.Array]:
    """Return what became of the T requests of a drained run, within a program.

    Args:
      table: T requests.
      logbook: from :func:`finish`.

    Returns:
      records: of all requests.
      unaccounted: [] int32, requests without exactly one end: a defect if above 0.
    """
    chosen = jnp.where(logbook.status == DROPPED, 0, logbook.expert)[:, None]
    records = TracedRecords(
        status=logbook.status,
        expert=logbook.expert,
        output_tokens=jnp.take_along_axis(table.output_tokens, chosen, axis=-1)[:, 0],
        quality=jnp.take_along_axis(table.quality, chosen, axis=-1)[:, 0],
        ttft_s=logbook.ttft_s,
        latency_s=logbook.latency_s,
        preemptions=logbook.preemptions,
        prompt_tokens=None if logbook.cached_tokens is None else table.prompt_tokens,
        cached_tokens=logbook.cached_tokens,
    )
    accepted = (logbook.status == COMPLETED) | (logbook.status == FAILED)
    wrong = (logbook.ends != accepted.astype(jnp.int32)) | (logbook.status < 0)
    return records, jnp.sum(wrong, dtype=jnp.int32)


def _entered(logbook: Logbook, outcome: Outcome, routers: int) -> Logbook:
    """Enter outcomes, leaves [...], whose ids are tags."""
    outcome = jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1,)), outcome)
    row = jnp.where(outcome.request_id >= 0, outcome.request_id // routers, logbook.ends.shape[0])
    failed = outcome.latency_s < 0.0
    status = jnp.where(failed, FAILED, COMPLETED)
    cached = logbook.cached_tokens
    if cached is not None and outcome.cached_tokens is not None:
        cached = cached.at[row].set(jnp.where(failed, 0, outcome.cached_tokens), mode="drop")
    return dataclasses.replace(
        logbook,
        status=logbook.status.at[row].set(status, mode="drop"),
        ttft_s=logbook.ttft_s.at[row].set(jnp.where(failed, jnp.nan, outcome.ttft_s), mode="drop"),
        latency_s=logbook.latency_s.at[row].set(jnp.where(failed, jnp.nan, outcome.latency_s), mode="drop"),
        preemptions=logbook.preemptions.at[row].set(outcome.preemptions, mode="drop"),
        ends=logbook.ends.at[row].add(1, mode="drop"),
        cached_tokens=cached,
    )
