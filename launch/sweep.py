"""Sweep routers over a grid of scenarios, on all devices: one CSV file, plots, and the rate a fleet bears."""

from __future__ import annotations

import dataclasses
import sys

import jax

from qos_jax.checks import COUNT, POSITIVE, check_range
from qos_jax.devices import is_writer, lane_mesh
from qos_jax.options import option
from qos_jax.runs.folder import check_run_folder, open_run_folder
from qos_jax.runs.progress import progress
from qos_jax.sweep.plan import SweepConfig, describe, load_sweep, plan_memory
from qos_jax.sweep.sweep import execute_sweep, render_sweep

from . import common, hosts
from .config_flags import define_config_flags


@dataclasses.dataclass(frozen=True)
class _Memory:
    max_memory_gb: float | None = option(
        None, help="for the runs in flight on this host; none = 2 on a CPU, else 80% of its devices"
    )
    chunk_requests: int | None = option(
        None, help="requests between two saves, of which a kill loses at most one's; none = by device"
    )

    def __post_init__(self) -> None:
        check_range(self, ["max_memory_gb"], POSITIVE)
        check_range(self, ["chunk_requests"], COUNT)


_SETTINGS = define_config_flags(SweepConfig)
_MEMORY = define_config_flags(_Memory)
_RUN = common.run_flags("runs/sweep")
_HOSTS = define_config_flags(hosts.HostConfig)


def main() -> None:
    """Run the sweep that the flags ask for."""
    with hosts.joined(_HOSTS.read(), cpu_devices=hosts.one_a_core()):
        _sweep()


def _sweep() -> None:
    memory, run = _MEMORY.read(), _RUN.read()
    plan = load_sweep(_SETTINGS.read())
    mesh = lane_mesh()
    chunks = plan_memory(plan, mesh, _max_bytes(memory), memory.chunk_requests)
    plot = is_writer() and run.wants_plots()
    check_run_folder(run.out, plan.settings, overwrite=run.overwrite)
    if not is_writer():
        execute_sweep(plan, mesh, chunks, None, plot=False, say=lambda _: None, on_progress=lambda _: None)
        return
    folder = open_run_folder(run.out, plan.settings, overwrite=run.overwrite, resume=run.resume)
    _say(describe(plan, mesh, chunks))
    for fleet in plan.grid.fleets:
        if fleet.source_is_drawn:
            _say(f"note: the models of fleet {fleet.name} have no figures; drawn experts stand in")
    with progress(plan.total_requests) as advance:
        table = execute_sweep(plan, mesh, chunks, folder, plot=plot, say=_say, on_progress=advance)
    assert table is not None
    print(f"{render_sweep(table, plan)}\n\nresults in {folder.path}")


def _max_bytes(memory: _Memory) -> float:
    if memory.max_memory_gb is not None:
        return memory.max_memory_gb * 1e9
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    known = [limit for limit in limits if limit is not None]
    return 0.8 * sum(known) if known else 2e9


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    common.run(main)
