"""One sweep of routers over a grid of scenarios: loaded, checked, run or resumed, written to its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tabulate import tabulate

from qos_jax.devices import agree
from qos_jax.errors import InputError, input_error
from qos_jax.evaluation.comparison import GROUPS
from qos_jax.files import sha256
from qos_jax.policies import BOUNDS, REPLAYS, Policy, policy
from qos_jax.policies.net_gain import LEARNED_NUMBERS
from qos_jax.policies.saved import LearnedRouter, load_router, named_checkpoints
from qos_jax.runs import plot_style
from qos_jax.runs.folder import RunFolder
from qos_jax.simulation.cases import TRACE, CaseConfig
from qos_jax.simulation.metrics import METRICS
from qos_jax.sweep.axes import check_axes, parse_axis
from qos_jax.sweep.capacity import Search, largest_rates, parse_search
from qos_jax.sweep.grid import CellGroup, Grid, SweptFleet, axis_columns, build_grid
from qos_jax.sweep.lane import LaneConfig
from qos_jax.sweep.plots import CAPACITY, sweep_figures
from qos_jax.sweep.program import ChunkPlan, LaneProgram, plan_chunks
from qos_jax.sweep.results import RESULTS, ResultsFile, SweepTable
from qos_jax.workload import split_rows
from qos_jax.workload.named_table import ALL_ROWS
from qos_jax.workload.setting import figures_for, limit_of, open_fleet, open_table
from qos_jax.workload.text_table import near_match

# Who reads a parameter that not everyone reads: a workload, or some policies.
_OF_WORKLOAD = {
    "gap_cv": "gamma",
    "burst_factor": "mmpp",
    "burst_mean_s": "mmpp",
    "calm_mean_s": "mmpp",
    "diurnal_swing": "diurnal",
}
_BY_NET_GAIN = ("projected_greedy", "load_aware_greedy", "clairvoyant_greedy")
_OF_POLICIES = {
    **dict.fromkeys(LEARNED_NUMBERS, _BY_NET_GAIN),
    "impact_weight": ("impact_greedy",),
}
_OF_FIGURES = ("error_level", "quality_bias", "length_log_bias")
_PLACE = ("cell", "policy", "fleet")
_AT = ("arrival_rate_per_s", "latency_limit_s", "load")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What to sweep, over what."""

    fleets: tuple[str, ...] = ("edge6",)  # fleet CSVs, or names of shipped fleets
    policies: tuple[str, ...] = ("shortest_queue", "projected_greedy")  # of the registry, or groups
    checkpoint: tuple[str, ...] = ()  # learned routers: DIR or NAME=DIR each
    stochastic: bool = False  # whether learned routers draw their actions
    scheduler: str = "prefill_first"  # or "chunked_prefill"
    allow_drop: bool = False  # whether greedy and learned routers may drop requests
    sweep: tuple[str, ...] = ()  # NAME=VALUES each, see ``sweep_grid.parse_axis``
    workload: str = "poisson"  # one of ``cases.WORKLOADS`` but "trace"
    table: str | None = None  # table file whose rows are the requests
    table_split: str = ALL_ROWS
    seeds: int = 4  # independent draws per cell, the same for all cells and policies
    seed: int = 0  # of them all
    num_requests: int = 512  # of a run
    capacity: str | None = None  # what to search the largest value of: "arrival_rate" or "load"
    target: str | None = None  # that the largest value must meet: METRIC>=VALUE
    capacity_range: tuple[float, ...] = ()  # LOW,HIGH of the search; by default 0.02 to 4 of the capacity
    capacity_tolerance: float = 0.02  # relative
    plot_metrics: tuple[str, ...] = ("average_qos", "share_within_limit")


@dataclasses.dataclass(frozen=True, eq=False)
class SweepPlan:
    """A sweep that has passed every check; see :func:`load_sweep`."""

    settings: dict[str, Any]  # all that determines the results, the content of config.json
    grid: Grid
    policies: list[Policy]
    workload: str
    seeds: int
    seed: int
    num_requests: int
    search: Search | None
    search_ends: tuple[np.ndarray, np.ndarray] | None  # [C] each, requests / s
    plot_metrics: tuple[str, ...]

    def lane_config(self, group: CellGroup) -> LaneConfig:
        """Return the static part of a group's program."""
        return LaneConfig(group.serving, self.workload, self.num_requests, self.seeds)

    @property
    def cell_requests(self) -> int:
        """Requests that a cell takes of one policy, all seeds and rounds of a search counted."""
        return self.seeds * self.num_requests * (self.search.rounds if self.search else 1)

    @property
    def total_requests(self) -> int:
        """Requests of the whole sweep."""
        return self.grid.num_cells * len(self.policies) * self.cell_requests


def load_sweep(config: SweepConfig) -> SweepPlan:
    """Read the files of a sweep, check that they and the parameters fit, and work out its cells.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    axes = [parse_axis(text) for text in config.sweep]
    check_axes(axes)
    given = {axis.name for axis in axes}
    search = parse_search(
        config.capacity, config.target, config.capacity_range or (0.02, 4.0), config.capacity_tolerance
    )
    names = list(dict.fromkeys(name for item in config.policies for name in GROUPS.get(item, (item,))))
    if any(item in GROUPS for item in config.policies):
        names = [name for name in names if name not in BOUNDS]
    policies = [policy(name, allow_drop=config.allow_drop) for name in names]
    folders = named_checkpoints(config.checkpoint, (*GROUPS, *GROUPS["all"], *REPLAYS))
    if not policies and not folders:
        raise input_error("names no policy that routes", field="policies", remedy="give e.g. heuristics")
    if config.workload == TRACE:
        raise input_error(
            "a recorded trace is not drawn from", field="workload", remedy="use launch.evaluate for traces"
        )
    draws = CaseConfig(
        workloads=(config.workload,), seeds=config.seeds, seed=config.seed, num_requests=config.num_requests
    )
    _check_readers(config, given, names)
    if search is not None:
        for name in {"load", "arrival_rate"} & given:
            raise input_error(
                "is what the search is for", field=name, remedy="leave out its --sweep, or --capacity"
            )
    for name in config.plot_metrics:
        if name not in METRICS:
            raise input_error(
                f"metric {name!r} is unknown{near_match(name, METRICS)}",
                field="plot_metrics",
                remedy=f"use some of {', '.join(METRICS)}",
            )
    if not config.fleets or len(set(config.fleets)) < len(config.fleets):
        raise input_error("names no fleet, or one twice", field="fleet", remedy="name each once")
    fleets = [_open_fleet(name, config, "latency_limit_s" in given) for name in config.fleets]
    grid = build_grid(fleets, axes, config.scheduler, draws)
    routers: dict[str, LearnedRouter] = {}
    for name, folder in folders.items():
        for group in grid.groups:  # it must fit them all
            routers[name] = load_router(
                name, folder, group.serving, allow_drop=config.allow_drop, stochastic=config.stochastic
            )
    ends = None
    if search is not None:
        relative = search.name == "load" or not config.capacity_range
        unit = grid.capacity_per_s if relative else np.ones(grid.num_cells)
        ends = (search.low * unit, search.high * unit)
    return SweepPlan(
        settings={
            "launcher": "sweep",
            **{name: value for name, value in dataclasses.asdict(config).items() if name != "plot_metrics"},
            "sweep": {axis.name: axis.values for axis in axes},
            "fleet_sha256": {fleet.name: sha256(fleet.file) for fleet in fleets},
            "table_sha256": sha256(config.table) if config.table else None,
            "policies": names,
            "checkpoint": {name: router.record for name, router in routers.items()},
            "latency_limits_s": {fleet.name: fleet.latency_limit_s for fleet in fleets},
        },
        grid=grid,
        policies=[*policies, *(router.policy for router in routers.values())],
        workload=config.workload,
        seeds=config.seeds,
        seed=config.seed,
        num_requests=config.num_requests,
        search=search,
        search_ends=ends,
        plot_metrics=(CAPACITY,) if search else config.plot_metrics,
    )


def plan_memory(
    plan: SweepPlan, mesh: Mesh, max_bytes: float, chunk_requests: int | None = None
) -> list[ChunkPlan]:
    """Return how each group is cut to stay within ``max_bytes`` on this process' devices; see plan_chunks."""
    return [
        plan_chunks(
            plan.lane_config(group),
            group,
            mesh,
            max_bytes,
            cell_requests=plan.cell_requests,
            chunk_requests=chunk_requests,
        )
        for group in plan.grid.groups
    ]


def describe(plan: SweepPlan, mesh: Mesh, chunks: Sequence[ChunkPlan]) -> str:
    """Return what a sweep will do and what memory it takes, for the user to read before it starts."""
    grid = plan.grid
    rounds = f" x {plan.search.rounds} rounds" if plan.search else ""
    lines = [
        f"{grid.num_cells:,} cells x {len(plan.policies)} policies x {plan.seeds} seeds{rounds} of "
        f"{plan.num_requests:,} requests = {plan.total_requests:,} requests, on {mesh.size} device(s)"
    ]
    for group, cut in zip(grid.groups, chunks, strict=True):
        lines.append(
            f"{group.serving.num_experts} experts x {group.serving.slots} slots: {len(group.cell):,} cells "
            f"in {cut.chunks} chunk(s) of {cut.chunk_cells:,}, blocks of {cut.block_runs} runs, about "
            f"{cut.run_bytes / 1e3:,.0f} kB a run in a block, {cut.chunk_bytes / 1e6:,.0f} MB in all"
        )
    return "\n".join(lines)


def execute_sweep(
    plan: SweepPlan,
    mesh: Mesh,
    chunks: Sequence[ChunkPlan],
    folder: RunFolder | None,
    *,
    plot: bool,
    say: Callable[[str], None],
    on_progress: Callable[[int], None],
) -> SweepTable | None:
    """Run every cell and policy that the folder has no row of, then put the file in order and plot.

    All processes must call it with the same plan; the one that writes has the folder, the others None.

    Returns:
      All rows; None in a process that does not write.
    """
    results = None
    if folder is not None:
        results = ResultsFile(folder.file(RESULTS), _columns(plan))
    for place, group in enumerate(plan.grid.groups):
        for router in plan.policies:
            todo = np.ones(len(group.cell), bool)
            if results is not None:
                todo = np.array([not results.is_finished(int(cell), router.name) for cell in group.cell])
            todo = agree(todo)
            _run_policy(plan, mesh, chunks[place], group, router, todo, results, say, on_progress)
    if results is None or folder is None:
        return None
    results.put_in_order([router.name for router in plan.policies])
    table = results.table()
    if plot:
        for name, figure in sweep_figures(table, plan.grid.axes, plan.plot_metrics):
            plot_style.save_figure(figure, folder.file(name))
    return table


def render_sweep(table: SweepTable, plan: SweepPlan) -> str:
    """Return a line per policy for the terminal: how it did over all cells."""
    name = "arrival_rate_per_s" if plan.search else "average_qos"
    figures = table.numbers(name)
    best: dict[str, float] = {}
    for cell, value in zip(table.text["cell"].tolist(), figures, strict=True):
        best[cell] = max(best.get(cell, -np.inf), value if value == value else -np.inf)
    lines = []
    for router in plan.policies:
        mine = table.text["policy"] == router.name
        values = figures[mine]
        wins = np.mean([best[c] == v for c, v in zip(table.text["cell"][mine].tolist(), values, strict=True)])
        known = values[np.isfinite(values)]
        spread = np.quantile(known, [0, 0.5, 1]) if known.size else [np.nan] * 3
        lines.append([router.name, f"{100 * wins:.1f}", *(f"{value:.4g}" for value in spread)])
    label = f"largest rate with {plan.search.target.metric} met (1/s)" if plan.search else "average QoS"
    heads = ["policy", "best or as good, % of cells", f"{label}: least", "median", "most"]
    return tabulate(lines, heads, tablefmt="simple", disable_numparse=True)


def _run_policy(
    plan: SweepPlan,
    mesh: Mesh,
    cut: ChunkPlan,
    group: CellGroup,
    router: Policy,
    todo: np.ndarray,
    results: ResultsFile | None,
    say: Callable[[str], None],
    on_progress: Callable[[int], None],
) -> None:
    """Run one policy on the chunks of a group that have a cell to do, whole chunks each time."""
    starts = range(0, len(group.cell), cut.chunk_cells)
    parts = [np.arange(start, min(start + cut.chunk_cells, len(group.cell))) for start in starts]
    on_progress(sum(len(part) for part in parts if not todo[part].any()) * plan.cell_requests)
    parts = [part for part in parts if todo[part].any()]
    if not parts:
        return
    program = _compiled(plan, mesh, cut, group, router, say)
    for part in parts:
        cells = group.cell[part]
        rate = plan.grid.arrival_rate_per_s[cells]
        extra: list[tuple] = [()] * len(part)
        if plan.search is not None and plan.search_ends is not None:
            low, high = (end[cells] for end in plan.search_ends)

            def run(rates: np.ndarray, part: np.ndarray = part) -> np.ndarray:
                metrics = program.run(part, rates)
                on_progress(len(part) * plan.seeds * plan.num_requests)
                return metrics

            found = largest_rates(run, low, high, plan.search)
            rate, metrics = found.rate_per_s, found.metrics
            extra = list(zip(found.outcome, found.fails_at_per_s.tolist(), strict=True))
        else:
            metrics = program.run(part)
            on_progress(len(part) * plan.cell_requests)
        if results is not None:
            results.append(_rows(plan, cells, router.name, rate, extra), metrics)


def _compiled(
    plan: SweepPlan, mesh: Mesh, cut: ChunkPlan, group: CellGroup, router: Policy, say: Callable[[str], None]
) -> LaneProgram:
    """Compile a policy, with smaller blocks where XLA says that it would take more memory than it may."""
    while True:
        program = LaneProgram(plan.lane_config(group), router, group, cut, mesh, plan.seed)
        measured = program.measured_bytes
        if measured is None:
            return program
        say(f"{router.name}: compiled, {measured / 1e6:,.0f} MB on a device, blocks of {cut.block_runs} runs")
        if measured <= cut.device_bytes:
            return program
        smaller = cut.halved()
        if smaller is None:
            raise input_error(
                f"{router.name} takes {measured / 1e9:.2g} GB on a device",
                field="max_memory_gb",
                remedy="raise it, or lower num_requests",
            )
        cut = smaller


def _columns(plan: SweepPlan) -> list[str]:
    searched = ["outcome", "fails_at_per_s"] if plan.search else []
    return [*_PLACE, *(axis.name for axis in plan.grid.axes), "seeds", *_derived(plan), *searched]


def _derived(plan: SweepPlan) -> list[str]:
    """Return which of the columns ``_AT`` are no axis of their own."""
    return [name for name in _AT if name not in {axis.name for axis in plan.grid.axes}]


def _rows(
    plan: SweepPlan, cells: np.ndarray, policy_name: str, rate_per_s: np.ndarray, extra: Sequence[tuple]
) -> list[list[object]]:
    grid = plan.grid
    at = {
        "arrival_rate_per_s": rate_per_s,
        "latency_limit_s": grid.latency_limit_s[cells],
        "load": rate_per_s / grid.capacity_per_s[cells],
    }
    shown = [at[name].tolist() for name in _derived(plan)]
    axes = [column[cells].tolist() for column in axis_columns(grid).values()]
    return [
        [
            int(cell),
            policy_name,
            grid.fleets[grid.fleet[cell]].name,
            *(column[i] for column in axes),
            plan.seeds,
            *(column[i] for column in shown),
            *extra[i],
        ]
        for i, cell in enumerate(cells)
    ]


def _open_fleet(name: str, config: SweepConfig, limit_is_swept: bool) -> SweptFleet:
    file, fleet = open_fleet(name)
    limit_s = None if limit_is_swept else limit_of(file, None)
    if config.table is None:
        if config.table_split != ALL_ROWS:
            raise input_error(
                f"{config.table_split!r} needs a table", field="table_split", remedy="give --table=FILE"
            )
        figures, drawn = figures_for(fleet, config.seed)
        return SweptFleet(name, file, fleet, figures, drawn, limit_s)
    table = split_rows(open_table(config.table, fleet), config.table_split)
    return SweptFleet(name, file, fleet, table, False, limit_s)


def _check_readers(config: SweepConfig, given: set[str], policies: Sequence[str]) -> None:
    """Refuse to sweep what nothing in this sweep reads: every cell would be the same."""

    def unread(name: str, reader: str, remedy: str) -> InputError:
        return input_error(f"is read by {reader} alone", field=name, remedy=remedy)

    for name in sorted(given):
        workload = _OF_WORKLOAD.get(name, config.workload)
        if workload != config.workload:
            raise unread(name, f"workload {workload!r}", f"give --workload={workload}")
        readers = _OF_POLICIES.get(name)
        if readers and not set(readers) & set(policies):
            raise unread(name, " and ".join(readers), f"add {readers[0]} to --policies")
        if config.table is not None and name in _OF_FIGURES:
            raise input_error(
                "is of synthetic predictions, and a table has its own", field=name, remedy="leave it out"
            )
