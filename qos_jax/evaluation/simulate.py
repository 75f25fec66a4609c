"""Run a policy over many runs of T requests at once, in chunks of bounded memory, and keep the records."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qos_jax.evaluation.records import COMPLETED, DROPPED, REJECTED, RequestRecords, RunTotals
from qos_jax.policies.types import Policy
from qos_jax.routing.fleet_state import (
    FleetState,
    Outcome,
    Request,
    empty_fleet,
    pass_time,
    remaining_outcomes,
    route,
)
from qos_jax.routing.observation import observe, reveal
from qos_jax.serving import FleetProfile, ServingConfig
from qos_jax.workload.request_table import RequestTable
from qos_jax.workload.trace import gaps_s

# Runs stepped together on a CPU: a block this size stays in cache, and its event loop waits only for its
# own slowest run. On an accelerator all runs go in one block.
CPU_BLOCK_RUNS = 64
CHUNK_REQUESTS = 512


@dataclasses.dataclass(frozen=True)
class Runs:
    """R runs of T requests each: what arrives, when, and the numbers of each run; NumPy, on the host.

    Arrays may be broadcast views, so that runs which share their requests share the memory.
    """

    profile: FleetProfile  # leaves [N], the same fleet for all runs
    latency_limit_s: np.ndarray  # [R] float32, L, seconds per output token
    length_log_std: np.ndarray  # [R, N] float32, known error of predicted lengths
    arrival_s: np.ndarray  # [R, T] float64, never decreasing
    requests: RequestTable  # leaves [R, T] and [R, T, N]
    seed: np.ndarray  # [R] uint32, of the policy's own randomness

    @property
    def shape(self) -> tuple[int, int]:
        """(R, T)."""
        return self.arrival_s.shape[0], self.arrival_s.shape[1]


@struct.dataclass
class _Arriving:
    """A chunk of C requests of one run."""

    request: Request  # leaves [C] and [C, N]
    gap_after_s: jax.Array  # [C] float32, seconds to the next arrival; the last inf = drain
    request_id: jax.Array  # [C] int32, -1 = padding


@struct.dataclass
class _Carry:
    fleet: FleetState
    busy_s: jax.Array  # [N] float32, of this chunk
    kv_token_s: jax.Array  # [N] float32, of this chunk
    rounds: jax.Array  # [] int32, of this chunk


@struct.dataclass
class _Logged:
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


@functools.partial(jax.jit, static_argnames=("config", "policy_function", "keep_snapshots"))
def _run_chunk(
    config: ServingConfig,
    policy_function: Callable[..., jax.Array],
    keep_snapshots: bool,
    policy_params: Any,
    profile: FleetProfile,
    latency_limit_s: jax.Array,
    length_log_std: jax.Array,
    seed: jax.Array,
    fleet: FleetState,
    arriving: _Arriving,
) -> tuple[_Carry, _Logged, Snapshot | None]:
    """Step the runs of a block (leading axis) through a chunk of requests each."""

    def one_run(
        limit_s: jax.Array, log_std: jax.Array, seed: jax.Array, fleet: FleetState, arriving: _Arriving
    ) -> tuple[_Carry, tuple[_Logged, Snapshot | None]]:
        run_key = jax.random.key(seed)

        def step(carry: _Carry, arrival: _Arriving) -> tuple[_Carry, tuple[_Logged, Snapshot | None]]:
            fleet, request = carry.fleet, arrival.request
            seen = observe(profile, limit_s, log_std, fleet, request, arrival.request_id)
            key = jax.random.fold_in(run_key, arrival.request_id)
            action = policy_function(policy_params, key, reveal(seen, fleet, request))
            action = jnp.where(arrival.request_id >= 0, action, config.num_experts).astype(jnp.int32)
            fleet, routed = route(profile, fleet, request, arrival.request_id, action)
            fleet, passed = pass_time(config, profile, fleet, arrival.gap_after_s, limit_s)
            status = jnp.where(routed.rejected, REJECTED, jnp.where(routed.dropped, DROPPED, COMPLETED))
            carry = _Carry(
                fleet=fleet,
                busy_s=carry.busy_s + passed.busy_s,
                kv_token_s=carry.kv_token_s + passed.kv_token_s,
                rounds=carry.rounds + passed.rounds,
            )
            snapshot = None
            if keep_snapshots:
                held = jnp.where(seen.running, seen.slot_prompt_tokens + seen.slot_generated_tokens, 0)
                snapshot = Snapshot(
                    running=jnp.sum(seen.running, axis=-1, dtype=jnp.int32),
                    waiting=jnp.sum(seen.waiting, axis=-1, dtype=jnp.int32),
                    kv_tokens=jnp.sum(held, axis=-1, dtype=jnp.int32),
                )
            return carry, (_Logged(action, status, routed.evicted), snapshot)

        zeros = jnp.zeros((config.num_experts,), jnp.float32)
        return jax.lax.scan(step, _Carry(fleet, zeros, zeros, jnp.int32(0)), arriving)

    carry, (logged, snapshots) = jax.vmap(one_run)(latency_limit_s, length_log_std, seed, fleet, arriving)
    return carry, logged, snapshots


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
) -> SimulationResult:
    """Route every request of every run by ``policy``, drain, and return what became of each.

    Runs advance together in vmapped blocks, a chunk of requests at a time, so device memory is bounded
    by ``block_runs`` x ``chunk_requests`` and every block uses one compiled program. Equal runs give
    every policy the same requests at the same times.

    Args:
      config: static sizes and the scheduler.
      policy: who routes.
      runs: what arrives.
      block_runs: runs stepped together; by default 64 on a CPU, all elsewhere.
      chunk_requests: requests of each run on the device at once.
      keep_snapshots: also return the experts' load before each arrival.
      on_progress: called after each chunk with the number of requests just routed.

    Raises:
      RuntimeError: a request is unaccounted for (a defect: arrived = completed + rejected + dropped).
    """
    num_runs, num_requests = runs.shape
    if block_runs is None:
        block_runs = CPU_BLOCK_RUNS if jax.default_backend() == "cpu" else num_runs
    block_runs = min(block_runs, num_runs)
    profile = jax.tree.map(jnp.asarray, runs.profile)
    policy_function = policy.act_function()
    ledger = _Ledger(num_runs, num_requests, config.num_experts)
    snapshots = []
    for first in range(0, num_runs, block_runs):
        # The last block is filled up with repeats of the last run, whose results are left out.
        lanes = np.minimum(np.arange(first, first + block_runs), num_runs - 1)
        real = slice(first, min(first + block_runs, num_runs))
        per_run = (
            jnp.asarray(runs.latency_limit_s[lanes], jnp.float32),
            jnp.asarray(runs.length_log_std[lanes], jnp.float32),
            jnp.asarray(runs.seed[lanes], jnp.uint32),
        )
        fleet = jax.tree.map(lambda x: jnp.broadcast_to(x, (block_runs, *x.shape)), empty_fleet(config))
        kept = []
        for start in range(0, num_requests, chunk_requests):
            stop = min(start + chunk_requests, num_requests)
            carry, logged, snapshot = _run_chunk(
                config,
                policy_function,
                keep_snapshots,
                policy.params,
                profile,
                *per_run,
                fleet,
                _arriving(runs, lanes, start, stop, chunk_requests),
            )
            fleet = carry.fleet
            carry, logged, snapshot = jax.device_get(
                (dataclasses.replace(carry, fleet=None), logged, snapshot)
            )
            ledger.add(carry, logged, real, slice(start, stop))
            if keep_snapshots:
                kept.append(_cut(snapshot, real.stop - first, stop - start))
            if on_progress is not None:
                on_progress((stop - start) * (real.stop - first))
        ledger.settle(jax.device_get(_remaining(fleet)), real)
        if keep_snapshots:
            snapshots.append(jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *kept))
    all_kept = jax.tree.map(lambda *parts: np.concatenate(parts), *snapshots) if snapshots else None
    return ledger.result(runs, all_kept)


_remaining = jax.jit(jax.vmap(remaining_outcomes))


def _cut(tree: Any, runs: int, requests: int) -> Any:
    return jax.tree.map(lambda x: x[:runs, :requests], tree)


def _arriving(runs: Runs, lanes: np.ndarray, start: int, stop: int, chunk: int) -> _Arriving:
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
    table = runs.requests
    return _Arriving(
        request=Request(
            prompt_tokens=jnp.asarray(cut(table.prompt_tokens)),
            output_tokens=jnp.asarray(cut(table.output_tokens)),
            quality=jnp.asarray(cut(table.quality)),
            predicted_output_tokens=jnp.asarray(cut(table.predicted_output_tokens)),
            predicted_quality=jnp.asarray(cut(table.predicted_quality)),
        ),
        gap_after_s=jnp.asarray(gap_after_s),
        request_id=jnp.asarray(np.broadcast_to(request_id, (lanes.size, chunk))),
    )


class _Ledger:
    """Gathers outcomes by request as they leave the simulator."""

    def __init__(self, num_runs: int, num_requests: int, num_experts: int) -> None:
        shape = (num_runs, num_requests)
        self.expert = np.zeros(shape, np.int32)
        self.status = np.zeros(shape, np.int8)
        self.ttft_s = np.full(shape, np.nan, np.float32)
        self.latency_s = np.full(shape, np.nan, np.float32)
        self.preemptions = np.zeros(shape, np.int32)
        self.busy_s = np.zeros((num_runs, num_experts))
        self.kv_token_s = np.zeros((num_runs, num_experts))
        self.rounds = np.zeros(num_runs, np.int64)

    def add(self, carry: _Carry, logged: _Logged, run: slice, request: slice) -> None:
        """Enter what a block's runs ``run`` did while their requests ``request`` arrived."""
        runs, size = run.stop - run.start, request.stop - request.start
        self.busy_s[run] += carry.busy_s[:runs]
        self.kv_token_s[run] += carry.kv_token_s[:runs]
        self.rounds[run] += carry.rounds[:runs]
        self.expert[run, request] = logged.expert[:runs, :size]
        self.status[run, request] = logged.status[:runs, :size]
        self.settle(logged.evicted, run)

    def settle(self, outcome: Outcome, run: slice) -> None:
        """Enter outcomes of a block's runs ``run``, ``request_id`` -1 where there is none."""
        runs = run.stop - run.start
        flat = jax.tree.map(lambda x: np.asarray(x)[:runs].reshape(runs, -1), outcome)
        lane, place = np.nonzero(flat.request_id >= 0)
        at = (lane + run.start, flat.request_id[lane, place])
        self.ttft_s[at] = flat.ttft_s[lane, place]
        self.latency_s[at] = flat.latency_s[lane, place]
        self.preemptions[at] = flat.preemptions[lane, place]

    def result(self, runs: Runs, snapshots: Snapshot | None) -> SimulationResult:
        completed = np.isfinite(self.latency_s)
        if not np.array_equal(completed, self.status == COMPLETED):
            lost = int(np.sum(completed != (self.status == COMPLETED)))
            raise RuntimeError(f"{lost} requests are unaccounted for: this is a defect, please report it")
        dropped = self.status == DROPPED
        chosen = np.where(dropped, 0, self.expert)[..., None]
        output = np.take_along_axis(np.asarray(runs.requests.output_tokens), chosen, axis=-1)[..., 0]
        quality = np.take_along_axis(np.asarray(runs.requests.quality), chosen, axis=-1)[..., 0]
        end_s = np.where(completed, runs.arrival_s + np.nan_to_num(self.latency_s), runs.arrival_s)
        return SimulationResult(
            records=RequestRecords(
                status=self.status,
                expert=np.where(dropped, -1, self.expert),
                arrival_s=runs.arrival_s,
                prompt_tokens=np.asarray(runs.requests.prompt_tokens),
                output_tokens=output,
                ttft_s=self.ttft_s,
                latency_s=self.latency_s,
                preemptions=self.preemptions,
                quality=np.where(dropped, np.nan, quality),
            ),
            totals=RunTotals(
                busy_s=self.busy_s,
                kv_token_s=self.kv_token_s,
                makespan_s=end_s.max(axis=1) - runs.arrival_s[:, 0],
            ),
            rounds=self.rounds,
            snapshots=snapshots,
        )
