"""One comparison of routers: loaded and checked, run or resumed, written to its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from qos_jax.errors import InputError, input_error
from qos_jax.evaluation.cases import TRACE, Case, CaseConfig, build_cases
from qos_jax.evaluation.compare import UPPER_BOUND, CaseName, compare
from qos_jax.evaluation.report import write_plots, write_tables
from qos_jax.evaluation.resume import load_policy_runs, save_policy_run
from qos_jax.evaluation.run_folder import RunFolder
from qos_jax.evaluation.tables import Comparison
from qos_jax.policies import BOUNDS, HEURISTICS, ORACLES, Policy, policy
from qos_jax.serving import ServingConfig
from qos_jax.workload import (
    Fleet,
    SyntheticParams,
    Trace,
    default_latency_limit_s,
    experts_named,
    fleet_path,
    load_calibration,
    read_fleet,
    read_trace,
    sample_experts,
    window,
)

GROUPS = {"all": (*HEURISTICS, *ORACLES, *BOUNDS), "heuristics": HEURISTICS}


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """What to compare, on what."""

    fleet: str = "edge6"  # a fleet CSV, or the name of a shipped fleet
    policies: tuple[str, ...] = ("all",)  # names of the registry, or of GROUPS
    baseline: str = "shortest_queue"  # the policy that differences are taken to
    scheduler: str = "prefill_first"  # or "chunked_prefill"
    latency_limit_s: float | None = None  # L, seconds per output token; None = the shipped fleet's
    allow_drop: bool = False  # whether the greedy policies may drop a request
    trace: str | None = None  # trace file; adds the workload "trace"
    trace_start_s: float = 0.0  # of the trace, seconds from its first arrival
    trace_end_s: float = math.inf  # exclusive
    cases: CaseConfig = dataclasses.field(default_factory=CaseConfig)


@dataclasses.dataclass(frozen=True)
class ComparisonPlan:
    """A comparison that has passed every check but the drawing of its cases; see :func:`load_comparison`."""

    settings: dict[str, Any]  # all that determines the results, the content of config.json
    cases: CaseConfig
    fleet: Fleet
    calibration: SyntheticParams  # figures of the fleet's models
    calibration_is_drawn: bool  # the fleet's models have no figures: those of drawn experts stand in
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
    if not policies:
        raise input_error("names no policy that routes", field="policies", remedy="give e.g. heuristics")
    if config.baseline not in names:
        raise input_error(
            f"{config.baseline!r} is not among the policies",
            field="baseline",
            remedy=f"use one of {', '.join(names)}",
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
    calibration, drawn = load_calibration(), False
    try:
        calibration = experts_named(calibration, fleet.names)
    except InputError:
        drawn = True
        calibration = sample_experts(jax.random.key(cases.seed), calibration, fleet.num_experts)
    return ComparisonPlan(
        settings={
            "launcher": "evaluate",
            **{field: value for field, value in dataclasses.asdict(config).items() if field != "cases"},
            **dataclasses.asdict(cases),
            "fleet": str(file),
            "fleet_sha256": _digest(file),
            "trace_sha256": _digest(config.trace) if config.trace else None,
            "policies": names,
            "latency_limit_s": limit_s,
        },
        cases=cases,
        fleet=fleet,
        calibration=calibration,
        calibration_is_drawn=drawn,
        latency_limit_s=limit_s,
        trace=trace,
        policies=policies,
        with_upper_bound=UPPER_BOUND in names,
        baseline=config.baseline,
        serving=ServingConfig(
            fleet.num_experts, fleet.running_slots, fleet.waiting_slots, scheduler=config.scheduler
        ),
    )


def draw_cases(plan: ComparisonPlan) -> list[Case]:
    """Return the cases of a comparison; the errors are those of :func:`build_cases`."""
    return build_cases(plan.cases, plan.fleet, plan.calibration, plan.latency_limit_s, plan.trace)


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


def _digest(path: str | pathlib.Path) -> str:
    """Return the SHA-256 of a file, which tells whether it was changed between two runs."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
