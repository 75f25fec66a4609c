"""One run of a sweep as one pure function of its numbers: requests drawn, routed, drained and summed up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.policies.greedy_params import GreedyParams
from qos_jax.routing.fleet_state import empty_fleet, remaining_outcomes
from qos_jax.routing.observation import KnownFleet
from qos_jax.routing.telemetry import TelemetryConfig
from qos_jax.serving import ServingConfig, cut_at_limit
from qos_jax.serving.state import PrefixLevel
from qos_jax.simulation.metrics import metric_names, traced_summarise
from qos_jax.simulation.reality import RealCarry, Reality, begin, finish, records_of, route_in_reality
from qos_jax.simulation.records import TracedRecords, TracedTotals, traced_records
from qos_jax.simulation.route import Arriving, Carry, Logged, requests_of, route_requests
from qos_jax.workload import LengthHistogram, RequestTable, SyntheticParams, sample_gaps
from qos_jax.workload.drawn_requests import as_replicas, draw_table
from qos_jax.workload.named import arrival_process, start_bin


@dataclasses.dataclass(frozen=True)
class LaneConfig:
    """What all runs of a program have in common; static and hashable."""

    serving: ServingConfig
    workload: str  # one of ``workload.named.WORKLOADS`` but "trace"
    num_requests: int  # T
    seeds: int  # S
    replicas: bool = False  # all experts answer as the first
    measures: bool = False  # the policy reads ``Observation.measured``
    # What routers know, and how many they are; None = everything, and servers never err.
    choices: TelemetryConfig | None = None


@struct.dataclass
class Conversations:
    """What turns of conversations ask for and share; drawn on the host, since each follows from the last."""

    prompt_tokens: jax.Array  # [F, S, T] int32, with what was said before
    prefix_group: jax.Array | None  # [F, S, T] int32, as in RequestTable; None without prefix caching
    prefix_tokens: jax.Array | None  # [F, S, T] int32, likewise
    prefix_path: tuple[PrefixLevel, ...] | None  # leaves [F, S, T], likewise

    def put_into(self, table: RequestTable) -> RequestTable:
        """Return requests, leaves of the same leading axes, as the turns that these are."""
        turns: RequestTable = dataclasses.replace(table, **vars(self))
        return turns


@struct.dataclass
class LaneSource:
    """What requests are drawn from: figures or a table of the experts of each of F fleets."""

    figures: SyntheticParams | None  # leaves [F, ...]
    table: RequestTable | None  # leaves [F, M] and [F, M, N]; drawn from evenly, where given
    histogram: LengthHistogram | None  # of a recorded workload's lengths, with figures
    conversations: Conversations | None = None  # of workload "conversation"


@struct.dataclass
class CellNumbers:
    """Every number of a cell of the grid; a leading axis [C] on the host, none within a run."""

    fleet: jax.Array  # [] int32, index of the F fleets of the source
    known: KnownFleet  # profile, limits and length error
    arrival_rate_per_s: jax.Array  # [] float32, requests / s
    gap_cv: jax.Array  # [] float32, of workload "gamma"
    burst_factor: jax.Array  # [] float32, of "mmpp"
    burst_mean_s: jax.Array  # [] float32, seconds
    calm_mean_s: jax.Array  # [] float32, seconds
    diurnal_swing: jax.Array  # [] float32, of "diurnal"
    error_level: jax.Array  # [] float32, of predictions
    quality_bias: jax.Array  # [] float32, added to the figures' own
    length_bias_log: jax.Array  # [] float32, likewise
    greedy: GreedyParams  # of the greedy heuristics; NaN = each one's own
    reality: Reality | None = None  # telemetry and faults; with ``LaneConfig.choices``


@struct.dataclass
class Lane:
    """One run: a cell and a seed; leading axes [...] when many are mapped over."""

    cell: CellNumbers
    seed: jax.Array  # [] int32, which of the S
    key_data: jax.Array  # [2] uint32, of the random key of requests and arrivals
    policy_seed: jax.Array  # [] uint32, of the policy's own randomness


@struct.dataclass
class LaneResult:
    """What a run came to."""

    metrics: jax.Array  # [M] float32, those of ``metric_names``
    unaccounted: jax.Array  # [] int32, requests without exactly one end: a defect if above 0


def run_lane(
    config: LaneConfig,
    policy_function: Callable[..., jax.Array],
    policy_params: Any,
    source: LaneSource,
    lane: Lane,
) -> LaneResult:
    """Draw the requests of a run, route and drain them, and return its metrics.

    Requests depend on the seed, the source and the predictor's numbers, and arrivals on the seed and the
    process alone: cells and policies share them (common random numbers), as cases of a comparison do.
    """
    cell = lane.cell
    carry: Carry | RealCarry
    if config.choices is None:
        table, gap_s, carry, logged = _route_all(config, policy_function, policy_params, source, lane)
        records, unaccounted = traced_records(
            table, logged.expert, logged.status, logged.evicted, remaining_outcomes(carry.fleet)
        )
    else:
        records, unaccounted, gap_s, carry = _route_in_world(
            config, config.choices, policy_function, policy_params, source, lane
        )
    arrival_s = jnp.cumsum(gap_s.at[0].set(0.0))
    totals = TracedTotals(
        busy_s=carry.busy_s,
        kv_token_s=carry.kv_token_s,
        makespan_s=jnp.max(arrival_s + jnp.nan_to_num(records.latency_s)),
    )
    metrics = traced_summarise(records, totals, cell.known.profile, cell.known.limits)
    return LaneResult(
        jnp.stack([metrics[name] for name in metric_names(config.serving.prefix_entries)]), unaccounted
    )


def lane_bytes(config: LaneConfig, source: LaneSource, lane: Lane) -> int:
    """Return about how many bytes a run needs on a device while it runs; nothing is computed.

    The requests and their log count twice, for their sorting; the fleet's state counts 16 times, for what a
    heuristic computes from it. A compiled program tells it exactly: see ``LaneProgram.measured_bytes``.

    Args:
      config: static sizes.
      source: arrays, or their shapes.
      lane: one run, arrays or shapes without a leading axis.
    """

    def first(params: None, key: jax.Array, truth: Any) -> jax.Array:
        return jnp.int32(0)

    def size(shapes: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    def route(source: LaneSource, lane: Lane) -> Any:
        if config.choices is None:
            return _route_all(config, first, None, source, lane)
        return _route_in_world(config, config.choices, first, None, source, lane)

    kept = jax.eval_shape(route, source, lane)
    state = size(jax.eval_shape(lambda: empty_fleet(config.serving, measures=config.measures)))
    return 2 * (size(kept) - state) + 16 * state


def _route_all(
    config: LaneConfig,
    policy_function: Callable[..., jax.Array],
    policy_params: Any,
    source: LaneSource,
    lane: Lane,
) -> tuple[RequestTable, jax.Array, Carry, Logged]:
    """Return the T requests of a run, the gaps before them, and what came of routing them."""
    table, gap_s = draw_requests(config, source, lane)
    carry, logged, _ = route_requests(
        config.serving,
        policy_function,
        False,
        _params_in(lane.cell, policy_params),
        lane.cell.known,
        lane.policy_seed,
        empty_fleet(config.serving, measures=config.measures),
        _arriving(config, table, gap_s),
    )
    return table, gap_s, carry, logged


def _route_in_world(
    config: LaneConfig,
    choices: TelemetryConfig,
    policy_function: Callable[..., jax.Array],
    policy_params: Any,
    source: LaneSource,
    lane: Lane,
) -> tuple[TracedRecords, jax.Array, jax.Array, RealCarry]:
    """Return what became of the T requests of a run, how many are unaccounted for, the gaps, and totals.

    What is random in the world follows the seed of the policy, as in a comparison.
    """
    reality = lane.cell.reality
    if reality is None:
        raise ValueError("LaneConfig.choices is set: give CellNumbers.reality")
    table, gap_s = draw_requests(config, source, lane)
    arriving = _arriving(config, table, gap_s)
    carry = route_in_reality(
        config.serving,
        choices,
        policy_function,
        _params_in(lane.cell, policy_params),
        lane.cell.known,
        reality,
        lane.policy_seed,
        arriving.request,
        begin(config.serving, reality, lane.policy_seed, config.num_requests),
        arriving,
    )
    return *records_of(table, finish(choices, carry)), gap_s, carry


def _arriving(config: LaneConfig, table: RequestTable, gap_s: jax.Array) -> Arriving:
    """Return the T requests of a run as they arrive; ``gap_s`` [T] is before each."""
    return Arriving(
        request=requests_of(table),
        gap_after_s=jnp.append(gap_s[1:], jnp.float32(jnp.inf)),
        request_id=jnp.arange(config.num_requests, dtype=jnp.int32),
    )


def _params_in(cell: CellNumbers, policy_params: Any) -> Any:
    """Return the parameters of a policy with those numbers of the net gain that the cell sets."""
    if not isinstance(policy_params, GreedyParams):
        return policy_params
    return jax.tree.map(
        lambda swept, own: jnp.where(jnp.isnan(swept), own, swept), cell.greedy, policy_params
    )


def draw_requests(config: LaneConfig, source: LaneSource, lane: Lane) -> tuple[RequestTable, jax.Array]:
    """Return the T requests of a run, cut at the context limits, and the gap before each, [T] seconds."""
    cell, count = lane.cell, config.num_requests
    key = jax.random.wrap_key_data(lane.key_data)
    if source.table is not None:
        mine = jax.tree.map(lambda leaf: leaf[cell.fleet], source.table)
        rows = jax.random.randint(jax.random.fold_in(key, 0), (count,), 0, mine.prompt_tokens.shape[0])
        table = jax.tree.map(lambda leaf: leaf[rows], mine)
    else:
        table = draw_table(key, figures_of(source, cell), source.histogram, count)
    if config.replicas:
        table = as_replicas(table, jnp)
    if source.conversations is not None:
        mine = jax.tree.map(lambda leaf: leaf[cell.fleet, lane.seed], source.conversations)
        table = mine.put_into(table)
    process = arrival_process(config.workload, cell.arrival_rate_per_s, cell, count)
    first = start_bin(config.workload, process, count, lane.seed, config.seeds)
    table = cut_at_limit(cell.known.profile, table)
    return table, sample_gaps(jax.random.fold_in(key, 1), process, count, first)


def figures_of(source: LaneSource, cell: CellNumbers) -> SyntheticParams:
    """Return the figures of a cell's fleet, with the cell's predictor."""
    assert source.figures is not None
    mine = jax.tree.map(lambda leaf: leaf[cell.fleet], source.figures)
    return dataclasses.replace(
        mine,
        error_level=cell.error_level,
        quality_bias=mine.quality_bias + cell.quality_bias,
        length_bias_log=mine.length_bias_log + cell.length_bias_log,
    )
