"""Compare routers on identical requests: a table with confidence intervals, plots and a run folder."""

from __future__ import annotations

import sys

from absl import flags

from qos_jax.evaluation.comparison import (
    ComparisonConfig,
    draw_cases,
    execute_comparison,
    load_comparison,
    work_requests,
)
from qos_jax.evaluation.comparison_table import render_text
from qos_jax.runs.folder import check_run_folder, open_run_folder
from qos_jax.runs.progress import progress
from qos_jax.serving import SCHEDULERS
from qos_jax.simulation.cases import CaseConfig
from qos_jax.workload.degraded import FITTED, PREDICTIONS
from qos_jax.workload.named import TABLE_MATCHES, WORKLOADS
from qos_jax.workload.named_table import ALL_ROWS, SPLITS

from . import common

_DEFAULTS = CaseConfig()

_FLEET = flags.DEFINE_string("fleet", "edge6", "a fleet CSV, or the name of a shipped one: edge6, paper6")
_POLICIES = flags.DEFINE_list(
    "policies", ["all"], "policies by name; all = heuristics, oracles and bounds; heuristics = those alone"
)
_CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint",
    [],
    "learned router: folder of a training run (its best checkpoint) or of one checkpoint; NAME=DIR names it; "
    "repeatable",
)
_STOCHASTIC = flags.DEFINE_bool(
    "stochastic", False, "let learned routers draw from their policy, not take its most likely action"
)
_BASELINE = flags.DEFINE_string("baseline", "shortest_queue", "policy that differences are taken to")
_SCHEDULER = flags.DEFINE_enum("scheduler", "prefill_first", list(SCHEDULERS), "iteration scheduler")
_LIMIT = flags.DEFINE_float(
    "latency_limit_s", None, "L, seconds per output token; default: the shipped fleet's"
)
_DROP = flags.DEFINE_bool("allow_drop", False, "let greedy and learned routers drop requests")
_WORKLOADS = flags.DEFINE_list("workloads", list(_DEFAULTS.workloads), f"some of {', '.join(WORKLOADS)}")
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
_TABLE = flags.DEFINE_string(
    "table", None, "request table (.npz) whose rows are the requests of every workload, not synthetic ones"
)
_TABLE_SPLIT = flags.DEFINE_enum("table_split", ALL_ROWS, [ALL_ROWS, *SPLITS], "which rows of the table")
_TABLE_MATCH = flags.DEFINE_enum(
    "table_match",
    _DEFAULTS.table_match,
    list(TABLE_MATCHES),
    "rows that a trace's arrivals get: nearest in length to the recorded requests, or any, evenly",
)
_PREDICTIONS = flags.DEFINE_list(
    "predictions",
    [FITTED],
    "what routers are told of a table's rows: its fitted predictions, each expert's mean over train rows, "
    f"the fitted ones of other rows, or the true values; some of {', '.join(PREDICTIONS)}. With several, "
    "every policy runs under each, named POLICY@PREDICTIONS, on identical requests",
)
_SEEDS = flags.DEFINE_integer("seeds", _DEFAULTS.seeds, "independent draws of requests and arrivals")
_SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "of all draws")
_REQUESTS = flags.DEFINE_integer(
    "num_requests", _DEFAULTS.num_requests, "requests of a run; a trace is run whole"
)
_ERROR = flags.DEFINE_float("error_level", _DEFAULTS.error_level, "of predictions: 0 perfect, 1 as real ones")
_LENGTH_BIAS = flags.DEFINE_float(
    "length_bias_log", _DEFAULTS.length_bias_log, "added to the log of predicted lengths; routers do not know"
)
_LENGTH_NOISE = flags.DEFINE_float(
    "length_noise_log", _DEFAULTS.length_noise_log, "std of a log-normal error added to predicted lengths"
)
_QUALITY_BIAS = flags.DEFINE_float("quality_bias", _DEFAULTS.quality_bias, "added to predicted qualities")
_QUALITY_NOISE = flags.DEFINE_float(
    "quality_noise", _DEFAULTS.quality_noise, "std of a normal error added to predicted qualities"
)
_KNOWN_NOISE = flags.DEFINE_bool(
    "known_length_noise", _DEFAULTS.known_length_noise, "tell routers of --length_noise_log"
)
_CV = flags.DEFINE_float("gap_cv", _DEFAULTS.gap_cv, "coefficient of variation of gaps, workload gamma")
_BURST = flags.DEFINE_float("burst_factor", _DEFAULTS.burst_factor, "rate in bursts over rate in calm, mmpp")
_BURST_S = flags.DEFINE_float("burst_mean_s", _DEFAULTS.burst_mean_s, "mean seconds of a burst, mmpp")
_CALM_S = flags.DEFINE_float("calm_mean_s", _DEFAULTS.calm_mean_s, "mean seconds between bursts, mmpp")
_SWING = flags.DEFINE_float("diurnal_swing", _DEFAULTS.diurnal_swing, "rates run from 1 - swing to 1 + swing")
_OUT = flags.DEFINE_string("out", "runs/evaluate", "run folder")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace another run's results in the folder")
_RESUME = flags.DEFINE_bool(
    "resume", False, "go on with the same comparison where it was stopped: policies that are done stay so"
)
_PLOTS = flags.DEFINE_bool("plots", None, "write plots; by default wherever matplotlib is installed")


def main() -> None:
    """Run the comparison that the flags ask for."""
    plan = load_comparison(
        ComparisonConfig(
            fleet=_FLEET.value,
            policies=tuple(_POLICIES.value),
            checkpoint=tuple(_CHECKPOINT.value),
            stochastic=_STOCHASTIC.value,
            baseline=_BASELINE.value,
            scheduler=_SCHEDULER.value,
            latency_limit_s=_LIMIT.value,
            allow_drop=_DROP.value,
            trace=_TRACE.value,
            trace_start_s=_TRACE_START.value,
            trace_end_s=_TRACE_END.value,
            table=_TABLE.value,
            table_split=_TABLE_SPLIT.value,
            predictions=tuple(_PREDICTIONS.value),
            cases=CaseConfig(
                workloads=tuple(_WORKLOADS.value),
                arrival_rates=common.numbers(_RATES),
                loads=common.numbers(_LOADS),
                seeds=_SEEDS.value,
                seed=_SEED.value,
                num_requests=_REQUESTS.value,
                error_level=_ERROR.value,
                length_bias_log=_LENGTH_BIAS.value,
                length_noise_log=_LENGTH_NOISE.value,
                quality_bias=_QUALITY_BIAS.value,
                quality_noise=_QUALITY_NOISE.value,
                known_length_noise=_KNOWN_NOISE.value,
                gap_cv=_CV.value,
                burst_factor=_BURST.value,
                burst_mean_s=_BURST_S.value,
                calm_mean_s=_CALM_S.value,
                diurnal_swing=_SWING.value,
                table_match=_TABLE_MATCH.value,
            ),
        )
    )
    plot = common.wants_plots(_PLOTS)
    check_run_folder(_OUT.value, plan.settings, overwrite=_OVERWRITE.value)
    cases = draw_cases(plan)
    folder = open_run_folder(_OUT.value, plan.settings, overwrite=_OVERWRITE.value, resume=_RESUME.value)
    if plan.setting.source_is_drawn:
        print(
            "note: the fleet's models have no figures; qualities and lengths of drawn experts stand in",
            file=sys.stderr,
        )
    with progress(work_requests(plan, cases)) as advance:
        comparison = execute_comparison(plan, cases, folder, plot=plot, on_progress=advance)
    print(f"{render_text(comparison)}\n\nresults in {folder.path}")


if __name__ == "__main__":
    common.run(main)
