"""The cases that routers are compared on: a workload at a rate, with the requests of every seed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from qos_jax.errors import input_error
from qos_jax.serving import ServiceLimits, cut_at_limit
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.sessions import SessionRuns
from qos_jax.simulation.simulate import Runs, repeated_limits
from qos_jax.workload import (
    ArrivalProcess,
    Fleet,
    LengthHistogram,
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
from qos_jax.workload.conversations import as_conversations
from qos_jax.workload.drawn_requests import (
    Source,
    add_error,
    as_replicas,
    draw_contents,
    known_length_log_std,
    shuffle_predictions,
)
from qos_jax.workload.named import (
    CONVERSATION,
    RECORDED,
    SESSIONS,
    TRACE,
    arrival_process,
    start_bin,
)
from qos_jax.workload.prefix_paths import with_paths
from qos_jax.workload.sessions import SessionTimes, as_sessions

_PILOT_SESSIONS = 64  # that the mean turn is measured on
# Turns drawn of each session, after which those come again: more than routers that favour some of them need.
_TURNS_OVER_MEAN = 4
_FEWEST_TURNS = 16


@dataclasses.dataclass(frozen=True)
class Case:
    """One workload at one mean arrival rate; run s of ``runs`` is seed s, the same for every policy."""

    workload: str
    arrival_rate_per_s: float  # requests / s, of the whole fleet; of sessions, if answers took no time
    runs: Runs | SessionRuns  # S runs

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
    - ``sessions``: conversations of users each of whose turns comes a time to think after the last answer:
      ``as_sessions``, as many as give the rate if answers took no time. Turns are the same under every
      router, but not at every rate, and how many of a session's arrive depends on the router.
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
    cases = []
    for workload in config.workloads:
        drawn = _Drawn(config, fleet, source, workload, shuffled)
        native_per_s = load_rate_profile(workload).mean_rate_per_s if workload in RECORDED else None
        if workload == TRACE:
            if trace is None:
                raise input_error("workload 'trace' needs a file", field="trace", remedy="give --trace=FILE")
            native_per_s = known_rate_per_s(trace)
        # Of sessions the turns depend on how many there are, and these on the capacity.
        table, _ = drawn.sessions(_PILOT_SESSIONS) if workload == SESSIONS else (drawn.requests(trace), None)
        table, length_log_std = drawn.predicted(table)
        rates = config.arrival_rates or (
            tuple(load * float(capacity_per_s(fleet.profile, table).sum()) for load in config.loads)
            if native_per_s is None
            else (native_per_s,)
        )
        for rate_per_s in rates:
            if workload == SESSIONS:
                turns, users = drawn.sessions(_sessions_for(rate_per_s, config))
                table, length_log_std = drawn.predicted(turns)
            of_all: dict[str, Any] = {
                "profile": fleet.profile,
                "limits": repeated_limits(limits, config.seeds),
                "length_log_std": np.broadcast_to(length_log_std, (config.seeds, fleet.num_experts)),
                "requests": table,
                "seed": _seeds(config),
            }
            if workload == SESSIONS:
                runs: Runs | SessionRuns = SessionRuns(
                    **of_all,
                    think_s=users.think_s,
                    start_s=users.start_s,
                    num_requests=config.num_requests,
                )
            elif workload == TRACE and trace is not None:
                scaled = scale_rate(trace, rate_per_s / trace.rate_per_s)
                arrival_s = np.broadcast_to(scaled.arrival_s, (config.seeds, scaled.num_requests))
                runs = Runs(**of_all, arrival_s=arrival_s)
            else:
                runs = Runs(**of_all, arrival_s=draw_arrivals(workload, rate_per_s, config))
            cases.append(Case(workload, float(rate_per_s), runs))
    return cases


def _sessions_for(rate_per_s: float, config: CaseConfig) -> int:
    """Return how many sessions give a rate if answers took no time, and say so where few get to go on."""
    sessions = max(round(rate_per_s * config.think_s), 1)
    if config.num_requests < 2 * sessions:
        logging.warning(
            "%d sessions think %g s on average, and %d requests are hardly more than their first turns: "
            "raise num_requests, or lower think_s",
            *(sessions, config.think_s, config.num_requests),
        )
    return sessions


@dataclasses.dataclass(frozen=True, eq=False)
class _Drawn:
    """What the requests of a workload are drawn from."""

    config: CaseConfig
    fleet: Fleet
    source: Source
    workload: str
    shuffled: bool

    def contents(self, lengths: LengthHistogram | Trace | None, num_requests: int) -> RequestTable:
        """Return requests of each seed that share nothing, leaves [S, T] and [S, T, N]."""
        table = draw_contents(_keys(self.config), self.source, lengths, num_requests)
        return as_replicas(table) if self.config.replicas else table

    def requests(self, trace: Trace | None) -> RequestTable:
        """Return the requests of each seed, of any workload but sessions."""
        config, workload = self.config, self.workload
        even = isinstance(self.source, NamedTable) and config.table_match == "even"
        if workload == TRACE and trace is not None:
            table = self.contents(None if even else trace, trace.num_requests)
            if trace.prefixes is not None and isinstance(self.source, SyntheticParams):
                table = with_paths(table, trace.prefixes)
            return table
        recorded = workload in RECORDED and not even
        table = self.contents(load_length_histogram(workload) if recorded else None, config.num_requests)
        return conversations_of(table, config) if workload == CONVERSATION else table

    def sessions(self, sessions: int) -> tuple[RequestTable, SessionTimes]:
        """Return the turns of so many sessions in each seed, leaves [S, U * M] and [S, U * M, N]."""
        turns = max(_TURNS_OVER_MEAN * -(-self.config.num_requests // sessions), _FEWEST_TURNS)
        turns = min(turns, max(self.config.num_requests, 1))
        return as_sessions(
            self.contents(None, sessions * turns),
            _seeds(self.config),
            sessions=sessions,
            mean_turns=self.config.conversation_turns,
            mean_think_s=self.config.think_s,
            limit_tokens=self.config.conversation_limit_tokens,
            system=self.config.system,
        )

    def predicted(self, table: RequestTable) -> tuple[RequestTable, np.ndarray]:
        """Return requests that fit the fleet, predicted as the settings say, and the length error, [N]."""
        config, keys = self.config, _keys(self.config)
        _check_room(self.fleet, table, self.workload)
        length_log_std = known_length_log_std(self.source, table)
        if config.replicas:
            length_log_std = np.broadcast_to(length_log_std[:1], length_log_std.shape)
        if self.shuffled:
            table = shuffle_predictions(keys, table)
        if any(jax.tree.leaves(config.added_error)):
            table = add_error(keys, table, config.added_error)
            if config.known_length_noise:
                length_log_std = np.asarray(known_log_std(length_log_std, config.added_error))
        return table, length_log_std


def conversations_of(table: RequestTable, config: CaseConfig) -> RequestTable:
    """Return the requests of each seed as turns of the configuration's conversations, leaves [S, T, ...]."""
    return as_conversations(
        table,
        _seeds(config),
        mean_turns=config.conversation_turns,
        open_conversations=config.open_conversations,
        limit_tokens=config.conversation_limit_tokens,
        system=config.system,
    )


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


def _seeds(config: CaseConfig) -> np.ndarray:
    """The number of each seed, [S] uint32."""
    return (config.seed + np.arange(config.seeds)).astype(np.uint32)


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
