"""Compare routers on identical requests: a table with confidence intervals, plots and a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from absl import flags

from launch import common
from qos_jax.errors import InputError, input_error
from qos_jax.evaluation import PolicyResult, open_run_folder, progress, render_text
from qos_jax.evaluation.cases import TRACE, CaseConfig, build_cases
from qos_jax.evaluation.compare import compare
from qos_jax.evaluation.report import write_plots, write_tables
from qos_jax.policies import BOUNDS, HEURISTICS, ORACLES, policy
from qos_jax.serving import SCHEDULERS, ServingConfig
from qos_jax.workload import (
    default_latency_limit_s,
    experts_named,
    fleet_path,
    load_calibration,
    read_fleet,
    read_trace,
    sample_experts,
    window,
)

_DEFAULTS = CaseConfig()

_FLEET = flags.DEFINE_string("fleet", "edge6", "a fleet CSV, or the name of a shipped one: edge6, paper6")
_POLICIES = flags.DEFINE_list(
    "policies", ["all"], "policies by name; all = heuristics, oracles and bounds; heuristics = those alone"
)
_BASELINE = flags.DEFINE_string("baseline", "shortest_queue", "policy that differences are taken to")
_SCHEDULER = flags.DEFINE_enum("scheduler", "prefill_first", list(SCHEDULERS), "iteration scheduler")
_LIMIT = flags.DEFINE_float(
    "latency_limit_s", None, "L, seconds per output token; default: the shipped fleet's"
)
_DROP = flags.DEFINE_bool("allow_drop", False, "let greedy routers drop what no expert gains from")
_WORKLOADS = flags.DEFINE_list(
    "workloads", list(_DEFAULTS.workloads), "poisson, gamma, mmpp, diurnal, azure_conv, azure_code, trace"
)
_RATES = flags.DEFINE_list(
    "arrival_rates", [], "requests / s, for every workload; default: by load, or native"
)
_LOADS = flags.DEFINE_list(
    "loads", [str(x) for x in _DEFAULTS.loads], "shares of the fleet's capacity, for synthetic workloads"
)
_TRACE = flags.DEFINE_string(
    "trace", None, "trace file (Azure, Mooncake, BurstGPT or generic); adds workload trace"
)
_TRACE_START = flags.DEFINE_float("trace_start_s", 0.0, "first second of the trace to use")
_TRACE_END = flags.DEFINE_float("trace_end_s", float("inf"), "second of the trace to stop before")
_SEEDS = flags.DEFINE_integer("seeds", _DEFAULTS.seeds, "independent draws of requests and arrivals")
_SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "of all draws")
_REQUESTS = flags.DEFINE_integer(
    "num_requests", _DEFAULTS.num_requests, "requests of a run; a trace is run whole"
)
_ERROR = flags.DEFINE_float("error_level", _DEFAULTS.error_level, "of predictions: 0 perfect, 1 as real ones")
_CV = flags.DEFINE_float("gap_cv", _DEFAULTS.gap_cv, "coefficient of variation of gaps, workload gamma")
_BURST = flags.DEFINE_float("burst_factor", _DEFAULTS.burst_factor, "rate in bursts over rate in calm, mmpp")
_BURST_S = flags.DEFINE_float("burst_mean_s", _DEFAULTS.burst_mean_s, "mean seconds of a burst, mmpp")
_CALM_S = flags.DEFINE_float("calm_mean_s", _DEFAULTS.calm_mean_s, "mean seconds between bursts, mmpp")
_SWING = flags.DEFINE_float("diurnal_swing", _DEFAULTS.diurnal_swing, "rates run from 1 - swing to 1 + swing")
_OUT = flags.DEFINE_string("out", "runs/evaluate", "run folder")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace another run's results in the folder")
_PLOTS = flags.DEFINE_bool("plots", True, "write plots (needs the extra 'plot')")


def _numbers(flag: flags.FlagHolder) -> tuple[float, ...]:
    try:
        return tuple(float(text) for text in flag.value)
    except ValueError as error:
        raise input_error(str(error), field=flag.name, remedy="give numbers, separated by commas") from None


def _policy_names(given: list[str]) -> list[str]:
    groups = {"all": [*HEURISTICS, *ORACLES, *BOUNDS], "heuristics": list(HEURISTICS)}
    names = [name for item in given for name in groups.get(item, [item])]
    return list(dict.fromkeys(names))


def main() -> None:
    """Run the comparison that the flags ask for."""
    fleet_file = _FLEET.value if _FLEET.value.endswith(".csv") else fleet_path(_FLEET.value)
    fleet = read_fleet(fleet_file)
    limit_s = _LIMIT.value if _LIMIT.value is not None else default_latency_limit_s(fleet_file)
    if not 0 < limit_s < float("inf"):
        raise input_error(
            f"{limit_s} is not a finite number above 0", field="latency_limit_s", remedy="give one"
        )
    workloads = list(dict.fromkeys([*_WORKLOADS.value, *([TRACE] if _TRACE.value else [])]))
    config = CaseConfig(
        workloads=tuple(workloads),
        arrival_rates=_numbers(_RATES),
        loads=_numbers(_LOADS),
        seeds=_SEEDS.value,
        seed=_SEED.value,
        num_requests=_REQUESTS.value,
        error_level=_ERROR.value,
        gap_cv=_CV.value,
        burst_factor=_BURST.value,
        burst_mean_s=_BURST_S.value,
        calm_mean_s=_CALM_S.value,
        diurnal_swing=_SWING.value,
    )
    names = _policy_names(_POLICIES.value)
    policies = [policy(name, allow_drop=_DROP.value) for name in names if name not in BOUNDS]
    if _BASELINE.value not in names:
        raise input_error(
            f"{_BASELINE.value!r} is not among the policies", field="baseline", remedy=f"use one of {names}"
        )
    trace = read_trace(_TRACE.value) if _TRACE.value else None
    if trace is not None and (_TRACE_START.value > 0 or _TRACE_END.value < float("inf")):
        trace = window(trace, _TRACE_START.value, _TRACE_END.value)
    calibration = load_calibration()
    try:
        calibration = experts_named(calibration, fleet.names)
    except InputError:
        print("note: the fleet's models have no figures; qualities and lengths of drawn experts are used")
        calibration = sample_experts(jax.random.key(config.seed), calibration, fleet.num_experts)
    cases = build_cases(config, fleet, calibration, limit_s, trace)
    folder = open_run_folder(
        _OUT.value,
        {
            "launcher": "evaluate",
            "fleet": str(fleet_file),
            "policies": names,
            "baseline": _BASELINE.value,
            "scheduler": _SCHEDULER.value,
            "latency_limit_s": limit_s,
            "allow_drop": _DROP.value,
            "trace": _TRACE.value,
            "trace_start_s": _TRACE_START.value,
            "trace_end_s": _TRACE_END.value,
            **dataclasses.asdict(config),
        },
        overwrite=_OVERWRITE.value,
    )
    serving = ServingConfig(
        fleet.num_experts, fleet.running_slots, fleet.waiting_slots, scheduler=_SCHEDULER.value
    )
    # Plots of single cases: the middle rate of each workload.
    shown = []
    for workload in workloads:
        rates = [case.arrival_rate_per_s for case in cases if case.workload == workload]
        shown.append((workload, rates[len(rates) // 2]))

    def save(results: Sequence[PolicyResult]) -> None:
        for result in results:
            folder.append_metrics(dataclasses.asdict(result))

    total = len(policies) * sum(case.runs.shape[0] * case.runs.shape[1] for case in cases)
    with progress(total) as advance:
        compared = compare(
            serving,
            policies,
            cases,
            with_upper_bound="upper_bound" in names,
            keep_records=shown,
            on_progress=advance,
            on_results=save,
        )
    print(render_text(write_tables(folder, compared, _BASELINE.value)))
    if _PLOTS.value:
        write_plots(folder, compared, fleet.names, limit_s)
    print(f"\nresults in {folder.path}")


if __name__ == "__main__":
    common.run(main)
