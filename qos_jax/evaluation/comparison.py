"""One comparison of routers: loaded and checked, run or resumed, written to its folder."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qos_jax.checks import COUNT_OR_ZERO, check_one_of, check_range, check_some_of
from qos_jax.errors import input_error
from qos_jax.evaluation.comparison_table import Comparison
from qos_jax.evaluation.report import write_plots, write_tables
from qos_jax.evaluation.saved_runs import load_policy_runs, save_policy_run
from qos_jax.options import check_options, option
from qos_jax.policies import Policy
from qos_jax.policies.registry import (
    CHECKPOINT,
    CHECKPOINT_HELP,
    NEVER_DROPS,
    resolve,
    router_of,
    with_routers_of_runs,
)
from qos_jax.policies.saved import LearnedRouter, load_router
from qos_jax.runs.folder import RunFolder, open_run_folder, settings_of
from qos_jax.serving import SCHEDULERS
from qos_jax.serving.state import LLAMA_CPP
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import Case, build_cases
from qos_jax.simulation.policy_runs import UPPER_BOUND, CaseName, Compared, compare
from qos_jax.simulation.records import WOULD_WAIT
from qos_jax.simulation.world import World
from qos_jax.simulation.world_config import (
    PREFIX_HELP,
    WorldConfig,
    check_views,
    named_under,
    under_views,
)
from qos_jax.workload import split_rows
from qos_jax.workload.degraded import FITTED, PREDICTIONS, SHUFFLED, with_predictions
from qos_jax.workload.drawn_requests import Source
from qos_jax.workload.limit_presets import LIMIT_PRESETS, PRESET_HELP
from qos_jax.workload.named import SESSIONS, TRACE
from qos_jax.workload.named_table import ALL_ROWS, SPLITS
from qos_jax.workload.setting import Setting, limit_record, limit_settings, open_setting


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """What to compare, on what."""

    fleet: str = "edge6"  # a fleet CSV, or the name of a shipped one: edge6, paper6
    policies: tuple[str, ...] = option(
        ("all",),
        help="policies by name; all = heuristics, oracles and bounds; heuristics = those alone; both hold "
        f"routers that may drop and, as NAME{NEVER_DROPS}, the same ones that never do",
    )
    checkpoint: tuple[str, ...] = option((), help=CHECKPOINT_HELP, repeatable=True)
    stochastic: bool = False  # let learned routers draw from their policy, not take its most likely action
    baseline: str = "shortest_queue"  # what differences are taken to; POLICY is POLICY@VIEW of the first view
    scheduler: str = option("prefill_first", known=SCHEDULERS)  # iteration scheduler of every expert
    prefix_entries: int = option(0, help=PREFIX_HELP)
    latency_limit_s: float | None = None  # L, s per output token; none = the preset's or the fleet's own
    ttft_limit_s: float | None = None  # time to first token, seconds at the server; none = no limit
    tpot_limit_s: float | None = None  # seconds per output token after the first, at the server
    e2e_limit_s: float | None = None  # seconds from arrival to last token, network included
    limits: str | None = option(None, help=PRESET_HELP, known=LIMIT_PRESETS)
    allow_drop: bool = True  # let greedy and learned routers drop what no expert gains from
    trace: str | None = None  # trace or request log of a known layout; adds workload trace
    trace_start_s: float = 0.0  # first second of the trace to use
    trace_end_s: float = math.inf  # second of the trace to stop before
    table: str | None = option(
        None, help="request table (.npz) whose rows are the requests of every workload, not synthetic ones"
    )
    table_split: str = option(ALL_ROWS, known=(ALL_ROWS, *SPLITS))  # which rows of the table
    predictions: tuple[str, ...] = option(
        (FITTED,),
        help="predictions of a table's rows that routers see: its fitted ones, each expert's mean over "
        "train rows, the fitted ones of other rows, or the true values. With several, every policy runs "
        "under each, named POLICY@PREDICTIONS, on identical requests",
        known=PREDICTIONS,
    )
    cases: CaseConfig = option(CaseConfig, flat=True)
    world: WorldConfig = option(WorldConfig, flat=True)

    def __post_init__(self) -> None:
        check_options(self)
        check_range(self, ("prefix_entries",), COUNT_OR_ZERO)


@dataclasses.dataclass(frozen=True)
class ComparisonPlan:
    """A comparison that has passed every check but the drawing of its cases; see :func:`load_comparison`."""

    settings: dict[str, Any]  # all that determines the results, the content of config.json
    cases: CaseConfig
    setting: Setting
    sources: dict[str, Source]  # by predictions: a table of the fleet's experts, or figures of its models
    policies: list[Policy]
    with_upper_bound: bool
    baseline: str
    worlds: dict[str, World]  # by view; none = routers see everything, servers have no faults


def load_comparison(config: ComparisonConfig) -> ComparisonPlan:
    """Read the files of a comparison and check that they and the names fit; nothing is written.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    check_some_of("predictions", config.predictions, PREDICTIONS)
    if config.table is not None and config.cases.error_level != 1.0:
        fault = f"{config.cases.error_level} is of synthetic predictions, and a table has its own"
        raise input_error(fault, field="error_level", remedy="leave out error_level, or the table")
    if config.table is None and config.predictions != (FITTED,):
        remedy = "give --table=FILE, or --error_level for synthetic predictions"
        raise input_error(f"{', '.join(config.predictions)} need a table", field="predictions", remedy=remedy)
    views = config.world.chosen_views
    chosen = resolve(
        config.policies,
        config.checkpoint,
        allow_drop=config.allow_drop,
        stochastic=config.stochastic,
        with_measuring=not views,
    )
    routers = list(with_routers_of_runs(chosen.routers))
    if len(config.predictions) > 1:
        routers = [named_under(name, kind) for kind in config.predictions for name in routers]
    baseline = config.baseline
    if views:
        baseline = named_under(baseline, views[0]) if baseline in routers else baseline
        routers = [named_under(name, view) for view in views for name in routers]
    check_one_of("baseline", baseline, (*routers, *chosen.bounds))
    workloads = list(dict.fromkeys([*config.cases.workloads, *([TRACE] if config.trace else [])]))
    if TRACE in workloads and not config.trace:
        raise input_error("workload 'trace' needs a file", field="trace", remedy="give --trace=FILE")
    if SESSIONS in workloads and views:
        fault = "sessions are simulated where routers see everything and servers have no faults"
        raise input_error(fault, field="workloads", remedy="leave out views and faults, or sessions")
    cases = dataclasses.replace(config.cases, workloads=tuple(workloads))
    setting = open_setting(
        config.fleet,
        scheduler=config.scheduler,
        prefix_entries=config.prefix_entries,
        **limit_settings(config),
        table=config.table,
        table_split=config.table_split,
        trace=config.trace or None,
        trace_start_s=config.trace_start_s,
        trace_end_s=config.trace_end_s,
        seed=cases.seed,
    )
    learned: dict[str, LearnedRouter] = {
        name: load_router(
            name, folder, setting.serving, allow_drop=config.allow_drop, stochastic=config.stochastic
        )
        for name, folder in chosen.checkpoints.items()
    }
    _check_runs(learned)
    policies = [*chosen.policies, *(router.policy for router in learned.values())]
    if views:
        check_views(policies)
    return ComparisonPlan(
        settings=settings_of(
            "evaluate",
            dataclasses.replace(config, cases=cases),
            flat=("cases", "world"),
            files={"fleet": setting.file, "trace": config.trace, "table": config.table},
            fleet=str(setting.file),
            policies=chosen.names,
            views=views,
            baseline=baseline,
            checkpoint={name: router.record for name, router in learned.items()},
            **limit_record(setting.limits),
        ),
        cases=cases,
        setting=setting,
        sources=_sources(config, setting),
        policies=policies,
        with_upper_bound=UPPER_BOUND in chosen.bounds,
        baseline=baseline,
        worlds=config.world.worlds(setting.fleet.names),
    )


def _check_runs(learned: Mapping[str, LearnedRouter]) -> None:
    """Check that training runs of one router are runs of their own with the same networks.

    Raises:
      InputError: the same weights twice, or another network.
    """
    first: dict[str, LearnedRouter] = {}
    weights: dict[tuple[str, str], str] = {}
    for name, run in learned.items():
        router, path, digest = router_of(name), run.record["path"], run.record["sha256"]
        remedy = f"name it otherwise: --{CHECKPOINT}=NAME={path}"
        if run.network != first.setdefault(router, run).network:
            fault = f"{path} has another network than the first training run of {router!r}"
            raise input_error(fault, field=CHECKPOINT, remedy=remedy)
        if (router, digest) in weights:
            fault = f"{path} is the same training run as {weights[router, digest]}"
            raise input_error(fault, field=CHECKPOINT, remedy="give it once")
        weights[router, digest] = path


def _sources(config: ComparisonConfig, setting: Setting) -> dict[str, Source]:
    """Return what requests are drawn from, by predictions."""
    if setting.table is None:
        return {FITTED: setting.figures}
    return {
        kind: split_rows(with_predictions(setting.table, kind, config.cases.seed), config.table_split)
        for kind in config.predictions
    }


def draw_cases(plan: ComparisonPlan) -> dict[str, list[Case]]:
    """Return the cases of a comparison by predictions: the same requests and arrivals under each.

    ``shuffled`` predictions are shuffled anew in every run, so that the luck of a shuffle averages out.

    The errors are those of :func:`build_cases`.
    """
    setting = plan.setting
    return {
        kind: build_cases(
            plan.cases,
            setting.fleet,
            source,
            setting.limits,
            setting.trace,
            shuffled=kind == SHUFFLED,
        )
        for kind, source in plan.sources.items()
    }


def work_requests(plan: ComparisonPlan, cases: Mapping[str, Sequence[Case]]) -> int:
    """Return how many requests a comparison routes in all."""
    per_policy = sum(case.runs.shape[0] * case.runs.shape[1] for each in cases.values() for case in each)
    return len(plan.policies) * max(len(plan.worlds), 1) * per_policy


def execute_comparison(
    plan: ComparisonPlan,
    cases: Mapping[str, Sequence[Case]],
    folder: RunFolder,
    *,
    plot: bool,
    on_progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Run every policy that the folder has no results of yet, and write tables and, with ``plot``, plots.

    What a policy did is in the folder as soon as it is done (see ``resume.py``); all other files are
    written at the end, from all of it, so that a comparison stopped and resumed ends as one that was not.
    """
    first = next(iter(cases.values()))
    shown = shown_cases(first)
    finished = load_policy_runs(folder, first, shown)
    parts: list[tuple[list[Policy], Compared]] = []
    for kind, each in cases.items():
        policies = plan.policies
        if len(cases) > 1:
            policies = [dataclasses.replace(p, name=named_under(p.name, kind)) for p in policies]
        policies, worlds = under_views(policies, plan.worlds)
        compared = compare(
            plan.setting.serving,
            policies,
            each,
            with_upper_bound=plan.with_upper_bound and not parts,
            keep_records=shown,
            finished=finished,
            on_progress=on_progress,
            on_policy=lambda run: save_policy_run(folder, run),
            worlds=worlds,
        )
        parts.append((policies, compared))
    compared = Compared(
        [result for _, part in parts for result in part.results],
        {case: {k: v for _, part in parts for k, v in part.records.get(case, {}).items()} for case in shown},
    )
    comparison = write_tables(folder, compared, plan.baseline)
    if plot:
        # A timeline shows a router that sees everything: under views there is none.
        shown_policies = () if plan.worlds else parts[0][0]
        sizes, names = plan.setting.serving, plan.setting.fleet.names
        write_plots(folder, compared, comparison, first, shown_policies, sizes, names)
    return comparison


def notes(scheduler: str, result: Comparison, worlds: Mapping[str, World] | None = None) -> list[str]:
    """Return remarks on what a comparison under a scheduler, in worlds by view, came to, for the user."""
    rejected = any(row.metric == "rejected_share" and row.mean > 0 for row in result.rows)
    found = [f"some {WOULD_WAIT}"] if rejected and scheduler == LLAMA_CPP else []
    scraping = {view: world for view, world in (worlds or {}).items() if world.choices.scrapes}
    if any(world.telemetry.scrape_period_s == 0.0 for world in scraping.values()):
        found.append(
            f"true queues under {', '.join(scraping)}: scrapes are live; give --scrape_period_s=5, say"
        )
    return found


def evaluate(**settings: Any) -> Comparison:
    """Compare routers on identical requests and return the table; nothing is left on disk.

    ``evaluate(fleet="edge6", policies=("shortest_queue", "random"), baseline="random", seeds=4)``.

    Args:
      settings: fields of :class:`ComparisonConfig`, :class:`CaseConfig` and :class:`WorldConfig`, by name.

    Raises:
      InputError: an unknown field, or what :func:`load_comparison` raises.
    """
    groups: dict[str, type] = {"cases": CaseConfig, "world": WorldConfig}
    fields = {group: {field.name for field in dataclasses.fields(kind)} for group, kind in groups.items()}
    top = {field.name for field in dataclasses.fields(ComparisonConfig)} - groups.keys()
    for name in settings:
        check_one_of("settings", name, sorted(top.union(*fields.values())))
    given = {
        group: kind(**{name: value for name, value in settings.items() if name in fields[group]})
        for group, kind in groups.items()
    }
    given |= {name: value for name, value in settings.items() if name in top}
    plan = load_comparison(ComparisonConfig(**given))
    with tempfile.TemporaryDirectory() as scratch:
        folder = open_run_folder(scratch, plan.settings)
        return execute_comparison(plan, draw_cases(plan), folder, plot=False)


def shown_cases(cases: Sequence[Case]) -> list[CaseName]:
    """Return the cases that get plots of their own: the middle rate of each workload."""
    rates: dict[str, list[float]] = {}
    for case in cases:
        rates.setdefault(case.workload, []).append(case.arrival_rate_per_s)
    return [(workload, sorted(each)[len(each) // 2]) for workload, each in rates.items()]
