"""Open what a user names: a fleet with its service levels, a trace, and what requests are drawn from."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from qos_jax.checks import check_one_of
from qos_jax.errors import InputError, input_error
from qos_jax.serving import LIMITS, SCHEDULERS, ServiceLimits, ServingConfig
from qos_jax.workload.drawn_requests import Source
from qos_jax.workload.fleet import Fleet, read_fleet
from qos_jax.workload.limit_presets import LIMIT_PRESETS
from qos_jax.workload.named_table import ALL_ROWS, SPLITS, NamedTable, split_rows, table_for_experts
from qos_jax.workload.profiles import default_latency_limit_s, fleet_path, load_calibration
from qos_jax.workload.synthetic_params import SyntheticParams, experts_named, sample_experts
from qos_jax.workload.table_file import read_table
from qos_jax.workload.trace import Trace, read_trace, warn_of_prefixes, window


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """A fleet of N experts, its service levels, and the requests it gets; see :func:`open_setting`."""

    name: str  # of the fleet, as given
    file: pathlib.Path  # the fleet's CSV file
    fleet: Fleet  # N experts, with the context limits that hold under the scheduler
    limits: ServiceLimits  # numbers; None where not set
    serving: ServingConfig  # static sizes and the scheduler
    figures: SyntheticParams  # of synthetic requests, of the same N experts
    figures_are_drawn: bool  # the fleet's models have no figures: those of drawn experts stand in
    table: NamedTable | None  # all rows of the table, of the same N experts
    rows: NamedTable | None  # those of the split alone
    trace: Trace | None  # its window, whose name is the file's path

    @property
    def latency_limit_s(self) -> float:
        """L, seconds per output token."""
        return float(self.limits.latency_limit_s)

    @property
    def source(self) -> Source:
        """What requests are drawn from: the table's rows if there is one, else the figures."""
        return self.figures if self.rows is None else self.rows

    @property
    def source_is_drawn(self) -> bool:
        """Whether requests are drawn from figures of experts that are not the fleet's own."""
        return self.rows is None and self.figures_are_drawn


def open_setting(
    fleet: str,
    *,
    scheduler: str = "prefill_first",
    prefix_entries: int = 0,
    latency_limit_s: float | None = None,
    ttft_limit_s: float | None = None,
    tpot_limit_s: float | None = None,
    e2e_limit_s: float | None = None,
    limits: str | None = None,
    table: str | None = None,
    table_split: str = ALL_ROWS,
    trace: str | None = None,
    trace_start_s: float = 0.0,
    trace_end_s: float = math.inf,
    seed: int = 0,
) -> Setting:
    """Open a fleet and all that its requests come from, and check that they fit; nothing is drawn yet.

    Args:
      fleet: path of a fleet CSV, or the name of a shipped fleet.
      scheduler: of every expert, one of ``serving.SCHEDULERS``.
      prefix_entries: prefix groups that each expert remembers besides those in its slots; 0 = no caching.
      latency_limit_s: L, seconds per output token; None = the preset's, or else the shipped fleet's.
      ttft_limit_s: seconds to the first token, at the server; None = the preset's, or else no limit.
      tpot_limit_s: seconds per output token after the first, at the server; likewise.
      e2e_limit_s: seconds to the last token, network included; likewise.
      limits: name in ``LIMIT_PRESETS`` of the limits that are not given.
      table: table file whose rows are the requests, in place of synthetic ones.
      table_split: which of its rows, one of ``SPLITS`` or ``ALL_ROWS``.
      trace: trace file.
      trace_start_s: first second of the trace to use, counted from its first arrival.
      trace_end_s: second to stop before.
      seed: of the experts drawn where the fleet's models have no figures.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    check_one_of("scheduler", scheduler, SCHEDULERS)
    check_one_of("table_split", table_split, (ALL_ROWS, *SPLITS))
    if table is None and table_split != ALL_ROWS:
        raise input_error(f"{table_split!r} needs a table", field="table_split", remedy="give --table=FILE")
    file, experts = open_fleet(fleet)
    given = (latency_limit_s, ttft_limit_s, tpot_limit_s, e2e_limit_s)
    levels = limits_of(file, dict(zip(LIMITS, given, strict=True)), limits)
    arriving = open_trace(trace, trace_start_s, trace_end_s) if trace is not None else None
    if arriving is not None:
        warn_of_prefixes(arriving, prefix_entries, rows_of_a_table=table is not None)
    whole = open_table(table, experts) if table is not None else None
    figures, drawn = figures_for(experts, seed)
    return Setting(
        name=fleet,
        file=file,
        fleet=experts.under(scheduler),
        limits=levels,
        serving=experts.serving(scheduler, prefix_entries),
        figures=figures,
        figures_are_drawn=drawn,
        table=whole,
        rows=None if whole is None else split_rows(whole, table_split),
        trace=arriving,
    )


def open_fleet(name: str) -> tuple[pathlib.Path, Fleet]:
    """Return the file and the fleet of a CSV's path, or of a shipped fleet's name.

    Raises:
      InputError: there is none, or any fault of the file.
    """
    file = pathlib.Path(name) if name.endswith(".csv") else fleet_path(name)
    return file, read_fleet(file)


def limits_of(
    file: pathlib.Path | None, given: Mapping[str, float | None], preset: str | None = None
) -> ServiceLimits:
    """Return the limits given, or else of a preset, or else L of the shipped fleet: numbers or None.

    Infinite ones but L are None.

    Args:
      file: of the fleet; None where L must be given.
      given: by name in ``LIMITS``; None or absent = not given.
      preset: name in ``LIMIT_PRESETS``.

    Raises:
      InputError: an unknown preset, no L is known, or a limit is not above 0 in float32.
    """
    levels: dict[str, Any] = dict.fromkeys(LIMITS)
    if preset is not None:
        check_one_of("limits", preset, LIMIT_PRESETS)
        levels |= {"latency_limit_s": math.inf, **LIMIT_PRESETS[preset].limits}
    levels |= {name: given[name] for name in LIMITS if given.get(name) is not None}
    if levels["latency_limit_s"] is None and file is not None:
        levels["latency_limit_s"] = default_latency_limit_s(file)
    for name, limit_s in levels.items():
        if limit_s is not None:
            check_limit(name, limit_s)
        if limit_s == math.inf and name != "latency_limit_s":
            levels[name] = None  # no part of the program
    if levels["latency_limit_s"] is None:
        remedy = "give --latency_limit_s, see --help, or --limits=PRESET"
        raise input_error("is missing", field="latency_limit_s", remedy=remedy)
    return ServiceLimits(**levels)


def limit_settings(config: Any) -> dict[str, Any]:
    """Return what a configuration says of limits, by the names that :func:`open_setting` takes."""
    return {name: getattr(config, name) for name in (*LIMITS, "limits")}


def limit_record(limits: ServiceLimits) -> dict[str, Any]:
    """Return the limits that are set, by name."""
    return {name: limit_s for name, limit_s in vars(limits).items() if limit_s is not None}


def check_limit(name: str, limit_s: float) -> None:
    """Check a limit, which may be infinite, in float32, as policies compute.

    Raises:
      InputError: it is not above 0.
    """
    with np.errstate(over="ignore", under="ignore"):
        as_computed_s = float(np.float32(limit_s))
    if not as_computed_s > 0:
        unit = "seconds" if name in ("ttft_limit_s", "e2e_limit_s") else "seconds per output token"
        remedy = f"give {unit}, such as {2.0 if unit == 'seconds' else 0.05}, or inf for no limit"
        raise input_error(f"{limit_s} is not a positive, finite time or inf", field=name, remedy=remedy)


def open_trace(path: str, start_s: float, end_s: float) -> Trace:
    """Return the requests of a trace file that arrive in [start_s, end_s), under the file's path as name.

    Raises:
      InputError: no window, any fault of the file, or no request in the window.
    """
    if not 0 <= start_s < end_s:  # NaN fails too
        fault = f"{start_s} to {end_s} is no window"
        raise input_error(fault, field="trace_start_s", remedy="give seconds >= 0, the start before the end")
    trace = dataclasses.replace(read_trace(path), name=path)
    return window(trace, start_s, end_s) if start_s > 0 or end_s < math.inf else trace


def figures_for(fleet: Fleet, seed: int) -> tuple[SyntheticParams, bool]:
    """Return the figures of the fleet's models, and whether experts drawn by ``seed`` stand in for them."""
    calibration = load_calibration()
    try:
        return experts_named(calibration, fleet.names), False
    except InputError:
        return sample_experts(jax.random.key(seed), calibration, fleet.num_experts), True


def open_table(path: str, fleet: Fleet) -> NamedTable:
    """Return the request table of a file, of just the fleet's experts, all its rows.

    Raises:
      InputError: an empty path, any fault of the file, or it lacks one of the experts.
    """
    if not path:
        raise input_error("is empty", field="table", remedy="give --table=FILE, or leave it out")
    return table_for_experts(read_table(path), fleet.names)
