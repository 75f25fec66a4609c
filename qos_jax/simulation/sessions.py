"""Run a policy over many runs of sessions, whose next turns follow from the answers, and keep the records."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.policies.types import Policy
from qos_jax.routing.fleet_state import empty_fleet, remaining_outcomes
from qos_jax.serving import FleetProfile, ServiceLimits, ServingConfig, cut_at_limit, with_context_limit
from qos_jax.simulation.blocks import CHUNK_REQUESTS, KNOWN_BY_RUN, Block, blocks_of, chunks_of
from qos_jax.simulation.ledger import Ledger
from qos_jax.simulation.route import Carry, requests_of
from qos_jax.simulation.route_sessions import TICK_S, SessionCarry, Turns, route_sessions, ticks_of
from qos_jax.simulation.simulate import SimulationResult
from qos_jax.simulation.threads import Advance, compiled_once, map_blocks
from qos_jax.workload.request_table import RequestTable, prefix_levels, with_prefixes, without_prefixes


@dataclasses.dataclass(frozen=True)
class SessionRuns:
    """R runs of U sessions, of which T turns arrive in all; NumPy, on the host."""

    profile: FleetProfile  # leaves [N], the same fleet for all runs
    limits: ServiceLimits  # leaves [R] float32, seconds
    length_log_std: np.ndarray  # [R, N] float32, known error of predicted lengths
    requests: RequestTable  # leaves [R, U * M] and [R, U * M, N], M turns of each session in a row
    think_s: np.ndarray  # [R, U, M] float32, seconds from the answer to a turn to the next
    start_s: np.ndarray  # [R, U] float32, seconds until the first turn
    seed: np.ndarray  # [R] uint32, of the policy's own randomness
    num_requests: int  # T

    @property
    def shape(self) -> tuple[int, int]:
        """(R, T)."""
        return len(self.seed), self.num_requests

    @property
    def sessions(self) -> int:
        """U."""
        return self.start_s.shape[1]


# Together even where small loops are joined: answers settle the due times of several sessions, a scatter, and
# XLA joins no loop with one. In turn it took twice the processor time.
_route = jax.jit(
    jax.vmap(route_sessions, in_axes=(None, None, None, None, None, KNOWN_BY_RUN, 0, 0, 0, None)),
    static_argnums=(0, 1, 2, 3),
)
_remaining = jax.jit(jax.vmap(remaining_outcomes))


def simulate_sessions(
    config: ServingConfig,
    policy: Policy,
    runs: SessionRuns,
    *,
    block_runs: int | None = None,
    chunk_requests: int = CHUNK_REQUESTS,
    keep_snapshots: bool = False,
    on_progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> SimulationResult:
    """Route the first T turns of every run by ``policy``, drain, and return what became of each.

    The records say whose turn each request is, and which.

    Args:
      config: static sizes and the scheduler.
      policy: who routes.
      runs: who talks.
      block_runs: runs stepped together; by default ``blocks.cpu_block_runs`` on a CPU, all elsewhere.
      chunk_requests: requests of each run that are routed between two calls of ``on_progress``.
      keep_snapshots: also return the experts' load before each arrival.
      on_progress: called after each chunk with the number of requests just routed, by one thread at a time.
      workers: blocks side by side; by default one per core on a CPU, one elsewhere.

    Raises:
      RuntimeError: a request is unaccounted for (a defect: arrived = completed + rejected + dropped).
    """
    limited = with_context_limit(config.scheduler, runs.profile, np)
    requests = with_prefixes(runs.requests) if config.prefix_entries else without_prefixes(runs.requests)
    config = dataclasses.replace(config, prefix_levels=prefix_levels(requests))
    requests = cut_at_limit(limited, requests, np)
    num_runs, num_requests = runs.shape
    chunk, spans = chunks_of(num_requests, chunk_requests)
    ledger, lock = Ledger(num_runs, num_requests, config.num_experts), threading.Lock()
    session, turn, gap_ticks = (np.zeros((num_runs, num_requests), np.int64) for _ in range(3))
    route, remaining = compiled_once(_route), compiled_once(_remaining)

    def route_block(block: Block, advance: Advance) -> Any:  # its snapshots
        lanes, real = block.lanes, block.real
        turns = _turns(requests, runs.think_s, lanes)
        carry = _begin(config, policy, jnp.asarray(runs.start_s[lanes]), num_requests, runs.think_s.shape)
        seen = []
        for start, stop in spans:
            index = np.arange(start, start + chunk)
            carry, logged = route(
                config,
                policy.act_function(),
                num_requests,
                keep_snapshots,
                policy.params,
                block.known,
                jnp.asarray(runs.seed[lanes], jnp.uint32),
                turns,
                carry,
                jnp.asarray(np.where(index < stop, index, -1), jnp.int32),
            )
            totals, done = jax.device_get((dataclasses.replace(carry.carry, fleet=None), logged))
            batch, shape = slice(start, stop), (block.size, stop - start)
            seen.append(jax.tree.map(lambda leaf, n=shape: leaf[: n[0], : n[1]], done.snapshot))
            with lock:
                ledger.enter_totals(totals.busy_s, totals.kv_token_s, totals.rounds, real)
                ledger.enter_decisions(done.logged.expert, done.logged.status, real, batch)
                ledger.enter_outcomes(done.logged.evicted, real)
                for kept, new in ((session, done.session), (turn, done.turn), (gap_ticks, done.gap_ticks)):
                    kept[real, batch] = new[: block.size, : stop - start]
            advance((stop - start) * block.size)
        outcomes = jax.device_get(remaining(carry.carry.fleet))
        with lock:
            ledger.enter_outcomes(outcomes, real)
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *seen)

    blocks = blocks_of(config, limited, runs.limits, runs.length_log_std, block_runs)
    snapshots = map_blocks(route_block, blocks, workers, on_progress)
    row = session * runs.think_s.shape[2] + turn % runs.think_s.shape[2]
    arrived = jax.tree.map(lambda leaf: np.asarray(leaf)[np.arange(num_runs)[:, None], row], requests)
    arrival_s = np.cumsum(np.pad(gap_ticks, ((0, 0), (1, 0)))[:, :-1], axis=1) * TICK_S
    records = ledger.records(arrival_s, arrived)
    return SimulationResult(
        records=dataclasses.replace(records, session=session, turn=turn),
        totals=ledger.totals(arrival_s),
        rounds=ledger.rounds,
        snapshots=jax.tree.map(lambda *parts: np.concatenate(parts), *snapshots),
    )


def session_metrics(runs: SessionRuns, metrics: dict[str, Any], makespan_s: np.ndarray) -> dict[str, Any]:
    """Return what a session gets in an hour, by name in ``SESSION_METRICS``, each [R].

    Args:
      runs: who talked.
      metrics: of the same runs, ``summarise``.
      makespan_s: [R] seconds.
    """
    hours = np.where(makespan_s > 0, makespan_s, np.nan) / 3600 * runs.sessions
    return {
        "turns_per_session_hour": metrics["completed"] / hours,
        "qos_per_session_hour": metrics["average_qos"] * metrics["arrived"] / hours,
    }


def _turns(requests: RequestTable, think_s: np.ndarray, lanes: np.ndarray) -> Turns:
    """Return the turns of some runs on the device, leaves [B, U, M, ...]."""

    def by_session(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)[lanes]
        return jnp.asarray(leaf.reshape(len(lanes), *think_s.shape[1:], *leaf.shape[2:]))

    return Turns(requests_of(jax.tree.map(by_session, requests)), jnp.asarray(think_s[lanes]))


def _begin(
    config: ServingConfig,
    policy: Policy,
    start_s: jax.Array,
    num_requests: int,
    shape: tuple[int, ...],
) -> SessionCarry:
    """Return idle experts right before the first turn of each run, leaves [B, ...]."""
    block, sessions = start_s.shape
    fleet = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (block, *leaf.shape)),
        empty_fleet(config, measures=policy.measures),
    )
    zeros = jnp.zeros((block, config.num_experts), jnp.float32)
    due = ticks_of(start_s)
    return SessionCarry(
        carry=Carry(fleet, zeros, zeros, jnp.zeros(block, jnp.int32)),
        due_ticks=due - jnp.min(due, axis=1, keepdims=True),
        turn=jnp.zeros((block, sessions), jnp.int32),
        session_of=jnp.zeros((block, num_requests), jnp.int32),
    )
