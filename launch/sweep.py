"""Sweep routers over a grid of scenarios, on all devices: one CSV file, plots, and the rate a fleet bears."""

from __future__ import annotations

import sys

import jax
from absl import flags

from qos_jax.devices import is_writer, lane_mesh
from qos_jax.errors import input_error
from qos_jax.runs.folder import check_run_folder, open_run_folder
from qos_jax.runs.progress import progress
from qos_jax.serving import SCHEDULERS
from qos_jax.sweep.axes import SCALARS
from qos_jax.sweep.plan import SweepConfig, describe, load_sweep, plan_memory
from qos_jax.sweep.sweep import execute_sweep, render_sweep
from qos_jax.workload.named import TRACE, WORKLOADS
from qos_jax.workload.named_table import ALL_ROWS, SPLITS

from . import common, hosts

_DEFAULTS = SweepConfig()

_SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "NAME=VALUES: an axis of the grid; values with commas, or FROM:TO:COUNT, or FROM:TO:COUNT:log; NAME is "
    f"one of {', '.join(SCALARS)}, or a field of the fleet's profile: profile.FIELD of all experts, "
    "profile.EXPERT.FIELD of one, with a * behind it to scale it; repeatable",
)
_FLEET = flags.DEFINE_multi_string(
    "fleet", list(_DEFAULTS.fleets), "a fleet CSV, or the name of a shipped one; repeatable: an axis"
)
_POLICIES = flags.DEFINE_list(
    "policies", list(_DEFAULTS.policies), "policies by name; all = heuristics and oracles; heuristics"
)
_CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", [], "learned router: folder of a training run or checkpoint; NAME=DIR names it; repeatable"
)
_STOCHASTIC = flags.DEFINE_bool("stochastic", False, "let learned routers draw from their policy")
_SCHEDULER = flags.DEFINE_enum("scheduler", _DEFAULTS.scheduler, list(SCHEDULERS), "iteration scheduler")
_DROP = flags.DEFINE_bool("allow_drop", False, "let greedy and learned routers drop requests")
_WORKLOAD = flags.DEFINE_enum(
    "workload", _DEFAULTS.workload, [name for name in WORKLOADS if name != TRACE], "how requests arrive"
)
_TABLE = flags.DEFINE_string("table", None, "request table (.npz) whose rows are the requests, drawn evenly")
_TABLE_SPLIT = flags.DEFINE_enum("table_split", ALL_ROWS, [ALL_ROWS, *SPLITS], "which rows of the table")
_SEEDS = flags.DEFINE_integer(
    "seeds", _DEFAULTS.seeds, "independent draws of requests and arrivals, the same for every cell and policy"
)
_SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "of all draws")
_REQUESTS = flags.DEFINE_integer("num_requests", _DEFAULTS.num_requests, "requests of a run")
_CAPACITY = flags.DEFINE_string(
    "capacity", None, "search the largest arrival_rate (or load) that meets --target, per cell and policy"
)
_TARGET = flags.DEFINE_string("target", None, "METRIC>=VALUE (or <=), of the mean over seeds")
_RANGE = flags.DEFINE_list(
    "capacity_range", [], "LOW,HIGH of the search, in units of --capacity; default: 2% to 400% of capacity"
)
_TOLERANCE = flags.DEFINE_float("capacity_tolerance", _DEFAULTS.capacity_tolerance, "relative, of the search")
_PLOT_METRICS = flags.DEFINE_list("plot_metrics", list(_DEFAULTS.plot_metrics), "metrics to plot")
_MEMORY = flags.DEFINE_float(
    "max_memory_gb",
    None,
    "for the runs in flight on this host; default: 2 on a CPU, else 80% of its devices",
)
_CHUNK = flags.DEFINE_integer(
    "chunk_requests",
    None,
    "requests between two saves, of which a kill loses at most one's; default: by device",
)
_OUT = flags.DEFINE_string("out", "runs/sweep", "run folder")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace another run's results in the folder")
_RESUME = flags.DEFINE_bool("resume", False, "go on with the same sweep where it was stopped")
_PLOTS = flags.DEFINE_bool("plots", None, "write plots; by default wherever matplotlib is installed")


def main() -> None:
    """Run the sweep that the flags ask for."""
    with hosts.joined(cpu_devices=hosts.one_a_core()):
        _sweep()


def _sweep() -> None:
    plan = load_sweep(
        SweepConfig(
            fleets=tuple(_FLEET.value),
            policies=tuple(_POLICIES.value),
            checkpoint=tuple(_CHECKPOINT.value),
            stochastic=_STOCHASTIC.value,
            scheduler=_SCHEDULER.value,
            allow_drop=_DROP.value,
            sweep=tuple(_SWEEP.value),
            workload=_WORKLOAD.value,
            table=_TABLE.value,
            table_split=_TABLE_SPLIT.value,
            seeds=_SEEDS.value,
            seed=_SEED.value,
            num_requests=_REQUESTS.value,
            capacity=_CAPACITY.value,
            target=_TARGET.value,
            capacity_range=common.numbers(_RANGE),
            capacity_tolerance=_TOLERANCE.value,
            plot_metrics=tuple(_PLOT_METRICS.value),
        )
    )
    mesh = lane_mesh()
    if _CHUNK.value is not None and _CHUNK.value < 1:
        raise input_error(f"{_CHUNK.value} is below 1", field=_CHUNK.name, remedy="give at least 1")
    chunks = plan_memory(plan, mesh, _max_bytes(), _CHUNK.value)
    plot = is_writer() and common.wants_plots(_PLOTS)
    check_run_folder(_OUT.value, plan.settings, overwrite=_OVERWRITE.value)
    folder = None
    if is_writer():
        folder = open_run_folder(_OUT.value, plan.settings, overwrite=_OVERWRITE.value, resume=_RESUME.value)
        _say(describe(plan, mesh, chunks))
        for fleet in plan.grid.fleets:
            if fleet.source_is_drawn:
                _say(f"note: the models of fleet {fleet.name} have no figures; drawn experts stand in")
    if folder is None:
        execute_sweep(plan, mesh, chunks, None, plot=False, say=lambda _: None, on_progress=lambda _: None)
        return
    with progress(plan.total_requests) as advance:
        table = execute_sweep(plan, mesh, chunks, folder, plot=plot, say=_say, on_progress=advance)
    assert table is not None
    print(f"{render_sweep(table, plan)}\n\nresults in {folder.path}")


def _max_bytes() -> float:
    if _MEMORY.value is not None:
        if not _MEMORY.value > 0:
            raise input_error(f"{_MEMORY.value} is not above 0", field=_MEMORY.name, remedy="give gigabytes")
        return _MEMORY.value * 1e9
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    known = [limit for limit in limits if limit is not None]
    return 0.8 * sum(known) if known else 2e9


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    common.run(main)
