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

# Runs stepped together. On CPU a block this size stays in cache and its loop waits only for its own
# slowest run; on an accelerator all runs go in one block.
CPU_BLOCK_RUNS = 64
CHUNK_REQUESTS = 1024


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


@functools.partial(jax.jit, static_argnames=("config", "policy_function", "block", "keep_snapshots"))
def _run_chunk(
    config: ServingConfig,
    policy_function: Callable[..., jax.Array],
    block: int,
    keep_snapshots: bool,
    policy_params: Any,
    profile: FleetProfile,
    latency_limit_s: jax.Array,
    length_log_std: jax.Array,
    seed: jax.Array,
    fleet: FleetState,
    arriving: _Arriving,
) -> tuple[_Carry, _Logged, Snapshot | None]:
    """Step R runs (leading axis, a multiple of ``block``) through a chunk of requests each."""

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

    inputs = (latency_limit_s, length_log_std, seed, fleet, arriving)
    blocked = jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), inputs)
    results = jax.lax.map(lambda block_inputs: jax.vmap(one_run)(*block_inputs), blocked)
    carry, (logged, snapshots) = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
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
    chunk_requests: int = CHUNK_REQUESTS,
    keep_snapshots: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> SimulationResult:
    """Route every request of every run by ``policy``, drain, and return what became of each.

    All runs advance together in one vmapped program, a chunk of requests at a time; device memory is
    bounded by R x ``chunk_requests``. Equal runs give every policy the same requests at the same times.

    Args:
      config: static sizes and the scheduler.
      policy: who routes.
      runs: what arrives.
      chunk_requests: requests of each run on the device at once.
      keep_snapshots: also return the experts' load before each arrival.
      on_progress: called after each chunk with the number of requests just routed, over all runs.

    Raises:
      RuntimeError: a request is unaccounted for (a defect: arrived = completed + rejected + dropped).
    """
    num_runs, num_requests = runs.shape
    block = min(num_runs, CPU_BLOCK_RUNS) if jax.default_backend() == "cpu" else num_runs
    padded = -(-num_runs // block) * block
    lanes = np.minimum(np.arange(padded), num_runs - 1)  # padding repeats the last run
    chunk = min(chunk_requests, num_requests)
    policy_function = policy.act_function()
    profile = jax.tree.map(jnp.asarray, runs.profile)
    per_run = (
        jnp.asarray(runs.latency_limit_s[lanes], jnp.float32),
        jnp.asarray(runs.length_log_std[lanes], jnp.float32),
        jnp.asarray(runs.seed[lanes], jnp.uint32),
    )
    one_fleet = empty_fleet(config)
    fleet = jax.tree.map(lambda x: jnp.broadcast_to(x, (padded, *x.shape)), one_fleet)
    ledger = _Ledger(num_runs, num_requests, config.num_experts)
    snapshots = []
    for start in range(0, num_requests, chunk):
        stop = min(start + chunk, num_requests)
        carry, logged, snapshot = _run_chunk(
            config,
            policy_function,
            block,
            keep_snapshots,
            policy.params,
            profile,
            *per_run,
            fleet,
            _arriving(runs, lanes, start, stop, chunk),
        )
        fleet = carry.fleet
        ledger.add(jax.device_get(carry.replace(fleet=None)), jax.device_get(logged), start, stop)
        if keep_snapshots:
            snapshots.append(jax.tree.map(lambda x: x[:num_runs, : stop - start], jax.device_get(snapshot)))
        if on_progress is not None:
            on_progress((stop - start) * num_runs)
    ledger.settle(jax.device_get(jax.vmap(remaining_outcomes)(fleet)))
    kept = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *snapshots) if snapshots else None
    return ledger.result(runs, kept)


def _arriving(runs: Runs, lanes: np.ndarray, start: int, stop: int, chunk: int) -> _Arriving:
    """Requests ``start`` to ``stop`` of every lane, padded to ``chunk``."""
    last = runs.shape[1] - 1
    index = np.minimum(np.arange(start, start + chunk), last)

    def cut(values: Any) -> jax.Array:
        return jnp.asarray(np.asarray(values)[lanes][:, index])

    following = np.minimum(index + 1, last)
    # The difference is taken in float64: a trace may last for weeks.
    arrival_s = runs.arrival_s[lanes]
    gap_after_s = (arrival_s[:, following] - arrival_s[:, index]).astype(np.float32)
    gap_after_s[:, index == last] = np.inf
    real = np.arange(start, start + chunk) < stop
    gap_after_s[:, ~real] = 0.0
    request_id = np.where(real, index, -1).astype(np.int32)
    table = runs.requests
    return _Arriving(
        request=Request(
            prompt_tokens=cut(table.prompt_tokens),
            output_tokens=cut(table.output_tokens),
            quality=cut(table.quality),
            predicted_output_tokens=cut(table.predicted_output_tokens),
            predicted_quality=cut(table.predicted_quality),
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

    def add(self, carry: _Carry, logged: _Logged, start: int, stop: int) -> None:
        runs, size = self.status.shape[0], stop - start
        self.busy_s += carry.busy_s[:runs]
        self.kv_token_s += carry.kv_token_s[:runs]
        self.rounds += carry.rounds[:runs]
        self.expert[:, start:stop] = logged.expert[:runs, :size]
        self.status[:, start:stop] = logged.status[:runs, :size]
        self.settle(logged.evicted)

    def settle(self, outcome: Outcome) -> None:
        """Enter outcomes, leading axis the runs, ``request_id`` -1 where there is none."""
        runs = self.status.shape[0]
        flat = jax.tree.map(lambda x: np.asarray(x)[:runs].reshape(runs, -1), outcome)
        run, place = np.nonzero(flat.request_id >= 0)
        request = flat.request_id[run, place]
        self.ttft_s[run, request] = flat.ttft_s[run, place]
        self.latency_s[run, request] = flat.latency_s[run, place]
        self.preemptions[run, request] = flat.preemptions[run, place]

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
                prompt_tokens=runs.requests.prompt_tokens,
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
