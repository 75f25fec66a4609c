"""Run a policy over many runs in a world of stale telemetry, several routers and servers with faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.kernels import jit_lanes
from qos_jax.policies.types import Policy
from qos_jax.routing.faults import Faults
from qos_jax.routing.telemetry import Telemetry, TelemetryConfig
from qos_jax.serving import ServingConfig, cut_at_limit, with_context_limit
from qos_jax.simulation.blocks import CHUNK_REQUESTS, KNOWN_BY_RUN, Block, blocks_of, chunks_of
from qos_jax.simulation.reality import Reality, begin, finish, route_in_reality
from qos_jax.simulation.records import COMPLETED, DROPPED, FAILED, RequestRecords, RunTotals
from qos_jax.simulation.route import requests_of
from qos_jax.simulation.simulate import Runs, SimulationResult, arriving_of
from qos_jax.simulation.threads import Advance, compiled_once, map_blocks
from qos_jax.workload.request_table import prefix_levels, with_prefixes, without_prefixes


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """What differs from routers that see everything and servers that keep to their profiles."""

    choices: TelemetryConfig  # static: the view, and how many routers there are
    telemetry: Telemetry
    faults: Faults | None = None  # None = servers are as their profiles say

    @property
    def reality(self) -> Reality:
        """The traced part."""
        return Reality(self.telemetry, self.faults)


# From so many requests on runs take turns, where small loops are joined: a request then takes 20 to 90 us
# less of the processor, and the program 10 to 40 s more to compile.
TURNS_FROM_REQUESTS = 2**19

_begin = jax.jit(jax.vmap(begin, in_axes=(None, None, 0, None)), static_argnums=(0, 3))
_route = jit_lanes(route_in_reality, 3, in_axes=(None, KNOWN_BY_RUN, None, 0, 0, 0, 0))
_finish = jax.jit(jax.vmap(finish, in_axes=(None, 0)), static_argnums=0)


def simulate_world(
    config: ServingConfig,
    policy: Policy,
    runs: Runs,
    world: World,
    *,
    block_runs: int | None = None,
    chunk_requests: int = CHUNK_REQUESTS,
    on_progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> SimulationResult:
    """Route every request of every run by ``policy`` in ``world``, drain, and return what became of each.

    What is random in the world follows the seeds of the runs, so it is the same for every policy and view.
    The requests of a block are on the device whole, since one that failed may be routed again much later.

    Args:
      config: static sizes and the scheduler.
      policy: who routes, each router of the world by the same.
      runs: what arrives.
      world: routers and servers.
      block_runs: runs stepped together; by default ``blocks.cpu_block_runs`` on a CPU, all elsewhere.
      chunk_requests: requests of each run that are routed between two calls of ``on_progress``.
      on_progress: called after each chunk with the number of requests just routed, by one thread at a time.
      workers: blocks side by side; by default one per core on a CPU, one elsewhere.

    Raises:
      RuntimeError: a request is unaccounted for (a defect of the simulator).
    """
    limited = with_context_limit(config.scheduler, runs.profile, np)
    requests = with_prefixes(runs.requests) if config.prefix_entries else without_prefixes(runs.requests)
    config = dataclasses.replace(config, prefix_levels=prefix_levels(requests))
    runs = dataclasses.replace(runs, profile=limited, requests=cut_at_limit(limited, requests, np))
    num_requests = runs.shape[1]
    chunk, spans = chunks_of(num_requests, chunk_requests)
    policy_function, reality = policy.act_function(), world.reality
    in_turn = policy.takes_turns(config) and runs.arrival_s.size >= TURNS_FROM_REQUESTS
    begin_block, route, finish_block = (compiled_once(part) for part in (_begin, _route, _finish))

    def route_block(block: Block, advance: Advance) -> Any:  # of logbook, busy and KV totals, and rounds
        lanes, size = block.lanes, block.size
        seed = jnp.asarray(runs.seed[lanes], jnp.uint32)
        contents = requests_of(jax.tree.map(lambda leaf: jnp.asarray(leaf[lanes]), runs.requests))
        carry = begin_block(config, reality, seed, num_requests)
        for start, stop in spans:
            arriving = arriving_of(runs, lanes, start, stop, chunk)
            carry = route(
                in_turn,
                config,
                world.choices,
                policy_function,
                policy.params,
                block.known,
                reality,
                seed,
                contents,
                carry,
                arriving,
            )
            jax.block_until_ready(carry.rounds)
            advance((stop - start) * size)
        done = (finish_block(world.choices, carry), carry.busy_s, carry.kv_token_s, carry.rounds)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:size], jax.device_get(done))

    blocks = blocks_of(config, runs.profile, runs.limits, runs.length_log_std, block_runs)
    ended = map_blocks(route_block, blocks, workers, on_progress)
    logbook, busy_s, kv_token_s, rounds = jax.tree.map(lambda *parts: np.concatenate(parts), *ended)
    records = _records(runs, logbook)
    end_s = runs.arrival_s + np.nan_to_num(records.latency_s.astype(np.float64))
    totals = RunTotals(
        busy_s=busy_s,
        kv_token_s=kv_token_s,
        makespan_s=end_s.max(axis=1) - runs.arrival_s[:, 0],
    )
    return SimulationResult(records, totals, rounds.astype(np.int64), None)


def _records(runs: Runs, logbook: Any) -> RequestRecords:
    """Return the records of all runs, [R, T]; the logbook's leaves are NumPy arrays of that shape."""
    status = logbook.status
    wrong = int(np.sum(logbook.ends != np.isin(status, (COMPLETED, FAILED))))
    if wrong or np.any(status < 0):
        raise RuntimeError(f"{wrong} requests are unaccounted for: this is a defect, please report it")
    dropped = status == DROPPED
    chosen = np.where(dropped, 0, logbook.expert)[..., None]
    output = np.take_along_axis(np.asarray(runs.requests.output_tokens), chosen, axis=-1)[..., 0]
    quality = np.take_along_axis(np.asarray(runs.requests.quality), chosen, axis=-1)[..., 0]
    return RequestRecords(
        status=status,
        expert=np.where(dropped, -1, logbook.expert),
        arrival_s=runs.arrival_s,
        prompt_tokens=np.asarray(runs.requests.prompt_tokens),
        output_tokens=output,
        ttft_s=logbook.ttft_s,
        latency_s=logbook.latency_s,
        preemptions=logbook.preemptions,
        quality=np.where(dropped, np.nan, quality),
        cached_tokens=logbook.cached_tokens,
    )
