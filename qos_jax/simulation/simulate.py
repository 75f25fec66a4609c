"""Run a policy over many runs of T requests at once, in chunks of bounded memory, and keep the records."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.kernels import jit_lanes
from qos_jax.policies.types import Policy
from qos_jax.routing.fleet_state import empty_fleet, remaining_outcomes
from qos_jax.serving import (
    FleetProfile,
    ServiceLimits,
    ServingConfig,
    as_limits,
    cut_at_limit,
    with_context_limit,
)
from qos_jax.simulation.blocks import CHUNK_REQUESTS, KNOWN_BY_RUN, Block, blocks_of, chunks_of
from qos_jax.simulation.ledger import Ledger
from qos_jax.simulation.records import RequestRecords, RunTotals
from qos_jax.simulation.route import Arriving, Snapshot, requests_of, route_requests
from qos_jax.simulation.threads import Advance, compiled_once, map_blocks
from qos_jax.workload.request_table import RequestTable, prefix_levels, with_prefixes, without_prefixes
from qos_jax.workload.trace import gaps_s


@dataclasses.dataclass(frozen=True)
class Runs:
    """R runs of T requests each: what arrives, when, and the numbers of each run; NumPy, on the host.

    Arrays may be broadcast views, so that runs which share their requests share the memory.
    """

    profile: FleetProfile  # leaves [N], the same fleet for all runs
    limits: ServiceLimits  # leaves [R] float32, seconds
    length_log_std: np.ndarray  # [R, N] float32, known error of predicted lengths
    arrival_s: np.ndarray  # [R, T] float64, never decreasing
    requests: RequestTable  # leaves [R, T] and [R, T, N]
    seed: np.ndarray  # [R] uint32, of the policy's own randomness

    @property
    def shape(self) -> tuple[int, int]:
        """(R, T)."""
        return self.arrival_s.shape[0], self.arrival_s.shape[1]

    @property
    def latency_limit_s(self) -> np.ndarray:
        """[R] float32, L, seconds per output token."""
        return np.asarray(self.limits.latency_limit_s)

    def take(self, index: slice | np.ndarray) -> Runs:
        """Return the runs at ``index``, in that order, repeats included."""
        taken: dict[str, Any] = jax.tree.map(lambda leaf: np.asarray(leaf)[index], self.by_run())
        return dataclasses.replace(self, **taken)

    def by_run(self) -> dict[str, Any]:
        """Return the fields with a leading axis [R]: all but the profile."""
        return {name: value for name, value in vars(self).items() if name != "profile"}


def repeated_limits(limits: ServiceLimits | float, runs: int) -> ServiceLimits:
    """Return limits of one run, or L alone as a number, for each of R runs: leaves [R] float32."""
    return jax.tree.map(lambda limit_s: np.full(runs, limit_s, np.float32), as_limits(limits))


# Routes a chunk of requests of each run of a block: a leading axis on all but the profile.
_run_chunk = jit_lanes(route_requests, 3, in_axes=(None, KNOWN_BY_RUN, 0, 0, 0))


@dataclasses.dataclass(frozen=True)
class SimulationResult:
    """What R runs of T requests came to."""

    records: RequestRecords  # [R, T]
    totals: RunTotals  # [R, N] and [R]
    rounds: np.ndarray  # [R] int64, rounds of the event loop, for profiling
    snapshots: Snapshot | None  # [R, T, N] before each arrival, if kept


def simulate(
    config: ServingConfig,
    policy: Policy,
    runs: Runs,
    *,
    block_runs: int | None = None,
    chunk_requests: int = CHUNK_REQUESTS,
    keep_snapshots: bool = False,
    on_progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> SimulationResult:
    """Route every request of every run by ``policy``, drain, and return what became of each.

    Runs advance in blocks, together or in turn, a chunk of requests at a time, so device memory is bounded
    by ``workers`` x ``block_runs`` x ``chunk_requests`` and every block uses one compiled program. Equal
    runs give every policy the same requests at the same times.

    Args:
      config: static sizes and the scheduler.
      policy: who routes.
      runs: what arrives.
      block_runs: runs stepped together; by default ``blocks.cpu_block_runs`` on a CPU, all elsewhere.
      chunk_requests: requests of each run on the device at once.
      keep_snapshots: also return the experts' load before each arrival.
      on_progress: called after each chunk with the number of requests just routed, by one thread at a time.
      workers: blocks side by side; by default one per core on a CPU, one elsewhere.

    Raises:
      RuntimeError: a request is unaccounted for (a defect: arrived = completed + rejected + dropped).
    """
    limited = with_context_limit(config.scheduler, runs.profile, np)
    requests = with_prefixes(runs.requests) if config.prefix_entries else without_prefixes(runs.requests)
    config = dataclasses.replace(config, prefix_levels=prefix_levels(requests))
    runs = dataclasses.replace(runs, profile=limited, requests=cut_at_limit(limited, requests, np))
    num_runs, num_requests = runs.shape
    chunk, spans = chunks_of(num_requests, chunk_requests)
    policy_function, in_turn = policy.act_function(), policy.takes_turns(config)
    ledger, lock = Ledger(num_runs, num_requests, config.num_experts), threading.Lock()
    run_chunk, remaining = compiled_once(_run_chunk), compiled_once(_remaining)

    def route_block(block: Block, advance: Advance) -> Snapshot | None:
        lanes, real = block.lanes, block.real
        seed = jnp.asarray(runs.seed[lanes], jnp.uint32)
        fleet = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (len(lanes), *x.shape)),
            empty_fleet(config, measures=policy.measures),
        )
        kept = []
        for start, stop in spans:
            carry, logged, snapshot = run_chunk(
                in_turn,
                config,
                policy_function,
                keep_snapshots,
                policy.params,
                block.known,
                seed,
                fleet,
                arriving_of(runs, lanes, start, stop, chunk),
            )
            fleet = carry.fleet
            carry, logged, snapshot = jax.device_get(
                (dataclasses.replace(carry, fleet=None), logged, snapshot)
            )
            batch = slice(start, stop)
            with lock:
                ledger.enter_totals(carry.busy_s, carry.kv_token_s, carry.rounds, real)
                ledger.enter_decisions(logged.expert, logged.status, real, batch)
                ledger.enter_outcomes(logged.evicted, real)
            if keep_snapshots:
                kept.append(_cut(snapshot, block.size, stop - start))
            advance((stop - start) * block.size)
        outcomes = jax.device_get(remaining(fleet))
        with lock:
            ledger.enter_outcomes(outcomes, real)
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *kept) if kept else None

    blocks = blocks_of(config, runs.profile, runs.limits, runs.length_log_std, block_runs)
    snapshots = map_blocks(route_block, blocks, workers, on_progress)
    all_kept = jax.tree.map(lambda *parts: np.concatenate(parts), *snapshots) if keep_snapshots else None
    return SimulationResult(
        records=ledger.records(runs.arrival_s, runs.requests),
        totals=ledger.totals(runs.arrival_s),
        rounds=ledger.rounds,
        snapshots=all_kept,
    )


_remaining = jax.jit(jax.vmap(remaining_outcomes))


def _cut(tree: Any, runs: int, requests: int) -> Any:
    return jax.tree.map(lambda x: x[:runs, :requests], tree)


def arriving_of(runs: Runs, lanes: np.ndarray, start: int, stop: int, chunk: int) -> Arriving:
    """Requests ``start`` to ``stop`` of every lane, padded to ``chunk``."""
    last = runs.shape[1] - 1
    index = np.minimum(np.arange(start, start + chunk), last)

    def cut(values: Any, index: np.ndarray = index) -> np.ndarray:
        return np.asarray(values)[lanes[:, None], index]  # both at once: never a copy of whole runs

    following = np.minimum(index + 1, last)
    gap_after_s = gaps_s(cut(runs.arrival_s), cut(runs.arrival_s, following))
    gap_after_s[:, index == last] = np.inf
    real = np.arange(start, start + chunk) < stop
    gap_after_s[:, ~real] = 0.0
    request_id = np.where(real, index, -1).astype(np.int32)
    return Arriving(
        request=requests_of(jax.tree.map(lambda leaf: jnp.asarray(cut(leaf)), runs.requests)),
        gap_after_s=jnp.asarray(gap_after_s),
        request_id=jnp.asarray(np.broadcast_to(request_id, (lanes.size, chunk))),
    )
