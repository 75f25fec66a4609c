"""One sweep of routers over a grid of scenarios: loaded, checked, run or resumed, written to its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from tabulate import tabulate

from qos_jax.devices import agree
from qos_jax.errors import input_error
from qos_jax.policies import Policy
from qos_jax.runs import plot_style
from qos_jax.runs.folder import RunFolder
from qos_jax.simulation.metrics import metric_names
from qos_jax.sweep.capacity import largest_rates
from qos_jax.sweep.grid import CellGroup, axis_columns
from qos_jax.sweep.plan import SweepPlan
from qos_jax.sweep.plots import CAPACITY, sweep_figures
from qos_jax.sweep.program import ChunkPlan, LaneProgram
from qos_jax.sweep.results import RESULTS, ResultsFile, SweepTable
from qos_jax.workload.setting import limit_record

_PLACE = ("cell", "policy", "fleet")


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
        results = ResultsFile(folder.file(RESULTS), _columns(plan), metric_names(plan.config.prefix_entries))
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
        shown = (CAPACITY,) if plan.search else plan.config.plot_metrics
        for name, figure in sweep_figures(table, plan.grid.axes, shown):
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
                on_progress(len(part) * plan.config.seeds * plan.config.num_requests)
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
        program = LaneProgram(
            plan.lane_config(group, router.name), router, group, cut, mesh, plan.config.seed
        )
        measured = program.measured_bytes
        if measured is None:
            return program
        say(f"{router.name}: compiled, {measured / 1e6:,.0f} MB on a device, blocks of {cut.block_runs} runs")
        if measured <= cut.device_bytes:
            return program
        smaller = cut.halved()
        if smaller is None:
            fault = f"{router.name} takes {measured / 1e9:.2g} GB on a device"
            raise input_error(fault, field="max_memory_gb", remedy="raise it, or lower num_requests")
        cut = smaller


def _columns(plan: SweepPlan) -> list[str]:
    searched = ["outcome", "fails_at_per_s"] if plan.search else []
    return [*_PLACE, *(axis.name for axis in plan.grid.axes), "seeds", *_derived(plan), *searched]


def _derived(plan: SweepPlan) -> list[str]:
    """Return the columns of rate, limits that are set, and load, but those that are an axis of their own."""
    names = ("arrival_rate_per_s", *limit_record(plan.grid.limits), "load")
    return [name for name in names if name not in {axis.name for axis in plan.grid.axes}]


def _rows(
    plan: SweepPlan, cells: np.ndarray, policy_name: str, rate_per_s: np.ndarray, extra: Sequence[tuple]
) -> list[list[object]]:
    grid = plan.grid
    at = {
        "arrival_rate_per_s": rate_per_s,
        **{name: limit_s[cells] for name, limit_s in limit_record(grid.limits).items()},
        "load": rate_per_s / grid.capacity_per_s[cells],
    }
    shown = [at[name].tolist() for name in _derived(plan)]
    axes = [column[cells].tolist() for column in axis_columns(grid).values()]
    columns = [*axes, [plan.config.seeds] * len(cells), *shown]
    names = [grid.fleets[fleet].name for fleet in grid.fleet[cells]]
    return [
        [int(cell), policy_name, names[i], *(column[i] for column in columns), *extra[i]]
        for i, cell in enumerate(cells)
    ]
