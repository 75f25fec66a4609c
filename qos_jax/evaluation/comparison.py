"""One comparison of routers: loaded and checked, run or resumed, written to its folder."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from qos_jax.errors import InputError, input_error
from qos_jax.evaluation.cases import TRACE, Case, CaseConfig, build_cases
from qos_jax.evaluation.checkpoints import LearnedRouter, load_router, named_checkpoints
from qos_jax.evaluation.compare import UPPER_BOUND, CaseName, compare
from qos_jax.evaluation.contents import Source
from qos_jax.evaluation.report import write_plots, write_tables
from qos_jax.evaluation.resume import load_policy_runs, save_policy_run
from qos_jax.evaluation.run_folder import RunFolder
from qos_jax.evaluation.tables import Comparison
from qos_jax.files import sha256
from qos_jax.policies import BOUNDS, HEURISTICS, ORACLES, REPLAYS, Policy, policy
from qos_jax.serving import ServingConfig
from qos_jax.workload import (
    Fleet,
    Trace,
    default_latency_limit_s,
    experts_named,
    fleet_path,
    load_calibration,
    read_fleet,
    read_table,
    read_trace,
    sample_experts,
    split_rows,
    table_for_experts,
    window,
)
from qos_jax.workload.named_table import ALL_ROWS

GROUPS = {"all": (*HEURISTICS, *ORACLES, *BOUNDS), "heuristics": HEURISTICS}


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """What to compare, on what."""

    fleet: str = "edge6"  # a fleet CSV, or the name of a shipped fleet
    policies: tuple[str, ...] = ("all",)  # names of the registry, or of GROUPS
    checkpoint: tuple[str, ...] = ()  # learned routers: DIR or NAME=DIR each, see named_checkpoints
    stochastic: bool = False  # whether learned routers draw their actions, or take the most likely
    baseline: str = "shortest_queue"  # the policy that differences are taken to
    scheduler: str = "prefill_first"  # or "chunked_prefill"
    latency_limit_s: float | None = None  # L, seconds per output token; None = the shipped fleet's
    allow_drop: bool = False  # whether the greedy policies may drop a request
    trace: str | None = None  # trace file; adds the workload "trace"
    trace_start_s: float = 0.0  # of the trace, seconds from its first arrival
    trace_end_s: float = math.inf  # exclusive
    table: str | None = None  # table file whose rows are the requests, in place of synthetic ones
    table_split: str = ALL_ROWS  # or one of SPLITS: which of its rows
    cases: CaseConfig = dataclasses.field(default_factory=CaseConfig)


@dataclasses.dataclass(frozen=True)
class ComparisonPlan:
    """A comparison that has passed every check but the drawing of its cases; see :func:`load_comparison`."""

    settings: dict[str, Any]  # all that determines the results, the content of config.json
    cases: CaseConfig
    fleet: Fleet
    source: Source  # a table of the fleet's experts, or figures of its models
    source_is_drawn: bool  # the fleet's models have no figures: those of drawn experts stand in
    latency_limit_s: float
    trace: Trace | None
    policies: list[Policy]
    with_upper_bound: bool
    baseline: str
    serving: ServingConfig


def load_comparison(config: ComparisonConfig) -> ComparisonPlan:
    """Read the files of a comparison and check that they and the names fit; nothing is written.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    names = list(dict.fromkeys(name for item in config.policies for name in GROUPS.get(item, (item,))))
    policies = [policy(name, allow_drop=config.allow_drop) for name in names if name not in BOUNDS]
    folders = named_checkpoints(config.checkpoint, (*GROUPS, *GROUPS["all"], *REPLAYS))
    if config.stochastic and not folders:
        raise input_error("only learned routers draw", field="stochastic", remedy="give --checkpoint=DIR")
    if not policies and not folders:
        raise input_error("names no policy that routes", field="policies", remedy="give e.g. heuristics")
    if config.baseline not in (*names, *folders):
        raise input_error(
            f"{config.baseline!r} is not among the policies",
            field="baseline",
            remedy=f"use one of {', '.join((*names, *folders))}",
        )
    workloads = list(dict.fromkeys([*config.cases.workloads, *([TRACE] if config.trace else [])]))
    if TRACE in workloads and not config.trace:
        raise input_error("workload 'trace' needs a file", field="trace", remedy="give --trace=FILE")
    if not 0 <= config.trace_start_s < config.trace_end_s:  # NaN fails too
        raise input_error(
            f"{config.trace_start_s} to {config.trace_end_s} is no window",
            field="trace_start_s",
            remedy="give seconds >= 0, the start before the end",
        )
    cases = dataclasses.replace(config.cases, workloads=tuple(workloads))
    file = pathlib.Path(config.fleet) if config.fleet.endswith(".csv") else fleet_path(config.fleet)
    fleet = read_fleet(file)
    limit_s = default_latency_limit_s(file) if config.latency_limit_s is None else config.latency_limit_s
    with np.errstate(over="ignore", under="ignore"):
        as_computed_s = float(np.float32(limit_s))
    if not 0 < as_computed_s < math.inf:
        raise input_error(
            f"{limit_s} is not a positive, finite time",
            field="latency_limit_s",
            remedy="give seconds per output token, such as 0.05",
        )
    # Under its path, so that every fault of it names the file.
    trace = dataclasses.replace(read_trace(config.trace), name=config.trace) if config.trace else None
    if trace is not None and (config.trace_start_s > 0 or config.trace_end_s < math.inf):
        trace = window(trace, config.trace_start_s, config.trace_end_s)
    source, drawn = _load_source(config, fleet)
    serving = ServingConfig(
        fleet.num_experts, fleet.running_slots, fleet.waiting_slots, scheduler=config.scheduler
    )
    learned: dict[str, LearnedRouter] = {
        name: load_router(name, folder, serving, allow_drop=config.allow_drop, stochastic=config.stochastic)
        for name, folder in folders.items()
    }
    return ComparisonPlan(
        settings={
            "launcher": "evaluate",
            **{field: value for field, value in dataclasses.asdict(config).items() if field != "cases"},
            **dataclasses.asdict(cases),
            "fleet": str(file),
            "fleet_sha256": sha256(file),
            "trace_sha256": sha256(config.trace) if config.trace else None,
            "table_sha256": sha256(config.table) if config.table else None,
            "policies": names,
            "checkpoint": {name: router.record for name, router in learned.items()},
            "latency_limit_s": limit_s,
        },
        cases=cases,
        fleet=fleet,
        source=source,
        source_is_drawn=drawn,
        latency_limit_s=limit_s,
        trace=trace,
        policies=[*policies, *(router.policy for router in learned.values())],
        with_upper_bound=UPPER_BOUND in names,
        baseline=config.baseline,
        serving=serving,
    )


def _load_source(config: ComparisonConfig, fleet: Fleet) -> tuple[Source, bool]:
    """Return what requests are drawn from, and whether its experts are drawn for want of figures."""
    if config.table is not None:
        if config.cases.error_level != 1.0:
            raise input_error(
                f"{config.cases.error_level} is of synthetic predictions, and a table has its own",
                field="error_level",
                remedy="leave out error_level, or the table",
            )
        if not config.table:
            raise input_error("is empty", field="table", remedy="give --table=FILE, or leave it out")
        named = read_table(config.table)
        return split_rows(table_for_experts(named, fleet.names), config.table_split), False
    if config.table_split != ALL_ROWS:
        raise input_error(
            f"{config.table_split!r} needs a table", field="table_split", remedy="give --table=FILE"
        )
    calibration = load_calibration()
    try:
        return experts_named(calibration, fleet.names), False
    except InputError:
        key = jax.random.key(config.cases.seed)
        return sample_experts(key, calibration, fleet.num_experts), True


def draw_cases(plan: ComparisonPlan) -> list[Case]:
    """Return the cases of a comparison; the errors are those of :func:`build_cases`."""
    return build_cases(plan.cases, plan.fleet, plan.source, plan.latency_limit_s, plan.trace)


def work_requests(plan: ComparisonPlan, cases: Sequence[Case]) -> int:
    """Return how many requests a comparison routes in all."""
    return len(plan.policies) * sum(case.runs.shape[0] * case.runs.shape[1] for case in cases)


def execute_comparison(
    plan: ComparisonPlan,
    cases: Sequence[Case],
    folder: RunFolder,
    *,
    plot: bool,
    on_progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Run every policy that the folder has no results of yet, and write tables and, with ``plot``, plots.

    What a policy did is in the folder as soon as it is done (see ``resume.py``); all other files are
    written at the end, from all of it, so that a comparison stopped and resumed ends as one that was not.
    """
    shown = shown_cases(cases)
    compared = compare(
        plan.serving,
        plan.policies,
        cases,
        with_upper_bound=plan.with_upper_bound,
        keep_records=shown,
        finished=load_policy_runs(folder, cases, shown),
        on_progress=on_progress,
        on_policy=lambda run: save_policy_run(folder, run),
    )
    comparison = write_tables(folder, compared, plan.baseline)
    if plot:
        write_plots(folder, compared, cases, plan.policies, plan.serving, plan.fleet.names)
    return comparison


def shown_cases(cases: Sequence[Case]) -> list[CaseName]:
    """Return the cases that get plots of their own: the middle rate of each workload."""
    rates: dict[str, list[float]] = {}
    for case in cases:
        rates.setdefault(case.workload, []).append(case.arrival_rate_per_s)
    return [(workload, sorted(each)[len(each) // 2]) for workload, each in rates.items()]
