"""The cases that routers are compared on: a workload at a rate, with the requests of every seed."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.checks import (
    COUNT,
    NON_NEGATIVE,
    POSITIVE,
    SEED,
    Interval,
    check_distinct,
    check_range,
    check_some_of,
)
from qos_jax.errors import input_error
from qos_jax.options import check_options, option
from qos_jax.serving import ServiceLimits, cut_at_limit
from qos_jax.simulation.simulate import Runs, repeated_limits
from qos_jax.workload import (
    AddedError,
    ArrivalProcess,
    Fleet,
    NamedTable,
    RequestTable,
    SyntheticParams,
    Trace,
    known_log_std,
    known_rate_per_s,
    load_length_histogram,
    load_rate_profile,
    sample_gaps,
    scale_rate,
)
from qos_jax.workload.capacity import capacity_per_s
from qos_jax.workload.conversations import MEAN_TURNS, as_conversations
from qos_jax.workload.drawn_requests import (
    Source,
    add_error,
    draw_contents,
    known_length_log_std,
    shuffle_predictions,
)
from qos_jax.workload.named import (
    CONVERSATION,
    RECORDED,
    TABLE_MATCH_HELP,
    TABLE_MATCHES,
    TRACE,
    WORKLOADS,
    arrival_process,
    start_bin,
)
from qos_jax.workload.prefix_paths import with_paths

MAX_BIAS_LOG = 10.0  # a factor of 22,000


@dataclasses.dataclass(frozen=True)
class CaseConfig:
    """Which cases to build.

    Raises:
      InputError: a value out of its range, naming the field, which is also the flag's name.
    """

    workloads: tuple[str, ...] = option(("poisson", "azure_conv"), known=WORKLOADS)  # how requests arrive
    arrival_rates: tuple[float, ...] = ()  # requests / s, for every workload; empty = by load, or native
    loads: tuple[float, ...] = (0.4, 0.75, 1.1)  # shares of the fleet's capacity, for synthetic workloads
    seeds: int = 16  # independent draws of requests, arrivals and predictions
    seed: int = 0  # of all draws
    num_requests: int = 2048  # requests of a run; a trace is run whole
    error_level: float = 1.0  # of predictions: 0 = perfect, 1 = as real predictors, more = worse
    length_bias_log: float = 0.0  # added to the log of predicted lengths, which no router knows
    length_noise_log: float = 0.0  # std of a log-normal error added to predicted lengths
    quality_bias: float = 0.0  # added to predicted qualities
    quality_noise: float = 0.0  # std of a normal error added to predicted qualities
    known_length_noise: bool = True  # whether routers know length_noise_log
    gap_cv: float = 3.0  # coefficient of variation of the gaps of workload gamma
    burst_factor: float = 4.0  # of workload mmpp: rate in bursts over rate in calm
    burst_mean_s: float = 10.0  # of workload mmpp: mean seconds of a burst
    calm_mean_s: float = 30.0  # of workload mmpp: mean seconds between bursts
    conversation_turns: float = MEAN_TURNS  # mean turns of workload conversation
    open_conversations: int = 100  # of workload conversation, at a time: a user thinks for so many arrivals
    conversation_limit_tokens: int = 4096  # of workload conversation: one ends before a turn exceeds it
    diurnal_swing: float = 0.8  # of workload diurnal: rates run from 1 - swing to 1 + swing over a run
    table_match: str = option("nearest", help=TABLE_MATCH_HELP, known=TABLE_MATCHES)

    def __post_init__(self) -> None:
        check_options(self)
        check_some_of("workloads", self.workloads, WORKLOADS)
        for field in ("arrival_rates", "loads"):
            check_distinct(field, getattr(self, field))
        if not self.loads and not self.arrival_rates:
            raise input_error("is empty", field="loads", remedy="give loads or arrival_rates")
        check_range(self, ("arrival_rates", "loads"), POSITIVE)
        check_range(self, ("gap_cv", "burst_factor", "burst_mean_s", "calm_mean_s"), POSITIVE)
        check_range(self, ("seeds", "num_requests"), COUNT)
        check_range(self, ("open_conversations", "conversation_limit_tokens"), COUNT)
        check_range(self, ("conversation_turns",), Interval(1, 1e6))
        check_range(self, ("seed",), SEED)
        check_range(self, ("error_level", "length_noise_log", "quality_noise"), NON_NEGATIVE)
        check_range(self, ("length_bias_log",), Interval(-MAX_BIAS_LOG, MAX_BIAS_LOG))
        check_range(self, ("quality_bias",), Interval(-1, 1))
        check_range(self, ("diurnal_swing",), Interval(0, 1, below=True))

    @property
    def added_error(self) -> AddedError:
        """What is added to the error that predictions have."""
        names = [field.name for field in dataclasses.fields(AddedError)]
        return AddedError(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class Case:
    """One workload at one mean arrival rate; run s of ``runs`` is seed s, the same for every policy."""

    workload: str
    arrival_rate_per_s: float  # requests / s, of the whole fleet
    runs: Runs  # S runs

    @property
    def name(self) -> tuple[str, float]:
        """Workload and arrival rate, which no two cases share."""
        return self.workload, self.arrival_rate_per_s


def build_cases(
    config: CaseConfig,
    fleet: Fleet,
    source: Source,
    limits: ServiceLimits | float,
    trace: Trace | None = None,
    *,
    shuffled: bool = False,
) -> list[Case]:
    """Draw the requests and arrivals of every case; the same seeds give the same requests at every rate.

    - ``poisson``, ``gamma``, ``mmpp``, ``diurnal``: synthetic arrivals and requests (``sample_table``).
    - ``azure_conv``, ``azure_code``: the shipped figures of those traces: rate profile, burstiness and
      joint length histogram; qualities and predictions as in ``table_for_trace``. Where the requests of a
      run cover less than the profile (an hour, natively), seed s of S starts at the s-th of S evenly spaced
      bins of it, so that together the seeds see all of it; else each starts at the first bin.
    - ``conversation``: Poisson arrivals, requests as in ``poisson`` that are turns: ``as_conversations``.
    - ``trace``: the recorded arrivals and lengths themselves; seeds draw qualities and predictions.

    With a table for source, arrivals are the same, and what requests ask for are rows of the table: see
    :func:`~qos_jax.workload.drawn_requests.draw_contents`. Where a table's requests are nothing like a
    trace's, ``table_match`` "even" takes the arrivals alone from the recorded workloads.

    Args:
      config: which cases; ``error_level`` is of figures alone, the error added of any predictions.
      fleet: N experts.
      source: figures or a table of the same N experts.
      limits: the service levels; a number is L alone, seconds per output token.
      trace: for the workload ``trace``.
      shuffled: whether each request gets the predictions of another, drawn anew in every run.

    Raises:
      InputError: the workload ``trace`` without a trace, or with one that has no rate; a fleet that can
        hold none of the requests.
    """
    if isinstance(source, SyntheticParams):
        source = dataclasses.replace(source, error_level=jnp.float32(config.error_level))
    keys = _keys(config)
    even = isinstance(source, NamedTable) and config.table_match == "even"
    cases = []
    for workload in config.workloads:
        if workload == TRACE:
            if trace is None:
                raise input_error("workload 'trace' needs a file", field="trace", remedy="give --trace=FILE")
            table = draw_contents(keys, source, None if even else trace, trace.num_requests)
            if trace.prefixes is not None and isinstance(source, SyntheticParams):
                table = with_paths(table, trace.prefixes)
            native_per_s: float | None = known_rate_per_s(trace)
        else:
            recorded = workload in RECORDED and not even
            histogram = load_length_histogram(workload) if recorded else None
            table = draw_contents(keys, source, histogram, config.num_requests)
            native_per_s = load_rate_profile(workload).mean_rate_per_s if workload in RECORDED else None
            if workload == CONVERSATION:
                table = as_conversations(
                    table,
                    (config.seed + np.arange(config.seeds)).astype(np.uint32),
                    mean_turns=config.conversation_turns,
                    open_conversations=config.open_conversations,
                    limit_tokens=config.conversation_limit_tokens,
                )
        _check_room(fleet, table, workload)
        length_log_std = known_length_log_std(source, table)
        if shuffled:
            table = shuffle_predictions(keys, table)
        if any(jax.tree.leaves(config.added_error)):
            table = add_error(keys, table, config.added_error)
            if config.known_length_noise:
                length_log_std = np.asarray(known_log_std(length_log_std, config.added_error))
        rates = config.arrival_rates or (
            tuple(load * float(capacity_per_s(fleet.profile, table).sum()) for load in config.loads)
            if native_per_s is None
            else (native_per_s,)
        )
        for rate_per_s in rates:
            if workload == TRACE and trace is not None:
                scaled = scale_rate(trace, rate_per_s / trace.rate_per_s)
                arrival_s = np.broadcast_to(scaled.arrival_s, (config.seeds, scaled.num_requests))
            else:
                arrival_s = draw_arrivals(workload, rate_per_s, config)
            runs = Runs(
                profile=fleet.profile,
                limits=repeated_limits(limits, config.seeds),
                length_log_std=np.broadcast_to(length_log_std, (config.seeds, fleet.num_experts)),
                arrival_s=arrival_s,
                requests=table,
                seed=(config.seed + np.arange(config.seeds)).astype(np.uint32),
            )
            cases.append(Case(workload, float(rate_per_s), runs))
    return cases


def draw_arrivals(workload: str, rate_per_s: float, config: CaseConfig) -> np.ndarray:
    """Arrival times of each seed, any workload but ``trace``: [S, T] float64, seconds since the first.

    See :func:`build_cases` for where in the profile of a recorded workload a seed starts.
    """
    process = arrival_process(workload, rate_per_s, config, config.num_requests)
    seeds = np.arange(config.seeds, dtype=np.int32)
    first = start_bin(workload, process, config.num_requests, seeds, config.seeds)
    drawn = _sample_gaps(_keys(config), process, jnp.asarray(first), config.num_requests)
    gap_s = np.array(drawn, np.float64)
    gap_s[:, 0] = 0.0
    return np.cumsum(gap_s, axis=1)  # in float64


def _keys(config: CaseConfig) -> jax.Array:
    """A key per seed."""
    return jax.random.split(jax.random.key(config.seed), config.seeds)


@functools.partial(jax.jit, static_argnames="num_gaps")
def _sample_gaps(keys: jax.Array, process: ArrivalProcess, start_bin: jax.Array, num_gaps: int) -> jax.Array:
    def draw(key: jax.Array, start_bin: jax.Array) -> jax.Array:
        return sample_gaps(jax.random.fold_in(key, 1), process, num_gaps, start_bin)

    return jax.vmap(draw)(keys, start_bin)


def _check_room(fleet: Fleet, table: RequestTable, workload: str) -> None:
    table = cut_at_limit(fleet.profile, table, np)
    footprint = np.asarray(table.prompt_tokens)[..., None] + np.asarray(table.output_tokens)
    if not np.any(footprint <= np.asarray(fleet.profile.request_capacity_tokens)):
        raise input_error(
            f"no expert's KV cache holds any request of workload {workload!r} "
            f"(the smallest needs {int(footprint.min())} tokens)",
            field="kv_capacity_tokens",
            remedy="raise it in the fleet's file",
        )
