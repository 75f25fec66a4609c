"""Route the requests of one run one after the other, as one scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.devices import batched_like
from qos_jax.routing.fleet_state import FleetState, Outcome, Request, Routed
from qos_jax.routing.fleet_step import step_fleet
from qos_jax.routing.observation import KnownFleet, Observation, observe, reveal, see_prefixes
from qos_jax.serving import ServingConfig
from qos_jax.simulation.records import COMPLETED, DROPPED, REJECTED, REJECTED_TOO_LONG
from qos_jax.workload.request_table import RequestTable


@struct.dataclass
class Arriving:
    """A chunk of C requests of one run."""

    request: Request  # leaves [C] and [C, N]
    gap_after_s: jax.Array  # [C] float32, seconds to the next arrival; the last inf = drain
    request_id: jax.Array  # [C] int32, -1 = padding


@struct.dataclass
class Carry:
    """What one step hands to the next."""

    fleet: FleetState
    busy_s: jax.Array  # [N] float32, of this chunk
    kv_token_s: jax.Array  # [N] float32, of this chunk
    rounds: jax.Array  # [] int32, of this chunk


@struct.dataclass
class Logged:
    """What one step leaves behind."""

    expert: jax.Array  # [] int32, the action
    status: jax.Array  # [] int32; COMPLETED here means accepted: evaluation drains
    evicted: Outcome


@struct.dataclass
class Snapshot:
    """The experts right before a request is routed; for timelines."""

    running: jax.Array  # [N] int32
    waiting: jax.Array  # [N] int32
    kv_tokens: jax.Array  # [N] int32, context of the running requests


def requests_of(table: RequestTable) -> Request:
    """Return the rows of a table as requests, leaves [...] and [..., N]."""
    return Request(**{field.name: getattr(table, field.name) for field in dataclasses.fields(Request)})


def decide(
    config: ServingConfig,
    policy_function: Callable[..., jax.Array],
    policy_params: Any,
    known: KnownFleet,
    run_key: jax.Array,
    fleet: FleetState,
    request: Request,
    request_id: jax.Array,
) -> tuple[Observation, jax.Array]:
    """Return what the policy sees of a request that arrives, and the expert it picks, [] int32.

    Request i draws by key i of the run; one below 0 is padding, which is dropped.
    """
    prefix = see_prefixes(config, known.profile, fleet, request)
    seen = observe(known, fleet, request, request_id, prefix)
    key = jax.random.fold_in(run_key, request_id)
    action = policy_function(policy_params, key, reveal(seen, fleet, request))
    return seen, jnp.where(request_id >= 0, action, config.num_experts).astype(jnp.int32)


def snapshot_of(seen: Observation) -> Snapshot:
    """Return the load that an observation shows, leaves [N]."""
    held = jnp.where(seen.running, seen.slot_prompt_tokens + seen.slot_generated_tokens, 0)
    return Snapshot(
        running=jnp.sum(seen.running, axis=-1, dtype=jnp.int32),
        waiting=jnp.sum(seen.waiting, axis=-1, dtype=jnp.int32),
        kv_tokens=jnp.sum(held, axis=-1, dtype=jnp.int32),
    )


def status_of(routed: Routed) -> jax.Array:
    """Return the status of a request by what became of it at its arrival, [] int32."""
    status = jnp.where(routed.rejected, REJECTED, jnp.where(routed.dropped, DROPPED, COMPLETED))
    return jnp.where(routed.rejected_too_long, REJECTED_TOO_LONG, status)


def route_requests(
    config: ServingConfig,
    policy_function: Callable[..., jax.Array],
    keep_snapshots: bool,
    policy_params: Any,
    known: KnownFleet,
    seed: jax.Array,
    fleet: FleetState,
    arriving: Arriving,
) -> tuple[Carry, Logged, Snapshot | None]:
    """Route C requests of one run; pure, so ``jax.vmap`` it over any of its arrays.

    Args:
      config: static sizes and the scheduler.
      policy_function: of (parameters, key, :class:`TrueObservation`), see ``Policy.act_function``.
      keep_snapshots: whether to return the experts' load before each arrival.
      policy_params: of the policy.
      known: profile, limits and length error of N experts.
      seed: [] uint32, of the policy's own randomness; request i draws by key i of the run.
      fleet: the experts right before the first arrival.
      arriving: the requests, and the gaps after them.

    Returns:
      carry: the fleet right before the arrival after the last, and the totals of these requests.
      logged: leaves [C, ...].
      snapshots: leaves [C, N], if kept.
    """
    run_key = jax.random.key(seed)

    def step(carry: Carry, arrival: Arriving) -> tuple[Carry, tuple[Logged, Snapshot | None]]:
        fleet, request = carry.fleet, arrival.request
        seen, action = decide(
            config, policy_function, policy_params, known, run_key, fleet, request, arrival.request_id
        )
        fleet, routed, passed = step_fleet(
            config,
            known.profile,
            fleet,
            request,
            arrival.request_id,
            action,
            arrival.gap_after_s,
            known.limits,
        )
        status = status_of(routed)
        carry = Carry(
            fleet=fleet,
            busy_s=carry.busy_s + passed.busy_s,
            kv_token_s=carry.kv_token_s + passed.kv_token_s,
            rounds=carry.rounds + passed.rounds,
        )
        snapshot = None
        if keep_snapshots:
            snapshot = snapshot_of(seen)
        return carry, (Logged(action, status, routed.evicted), snapshot)

    zeros = jnp.zeros((config.num_experts,), jnp.float32)
    totals = batched_like((zeros, zeros, jnp.int32(0)), fleet.serving.lead_s)
    carry, (logged, snapshots) = jax.lax.scan(step, Carry(fleet, *totals), arriving)
    return carry, logged, snapshots
