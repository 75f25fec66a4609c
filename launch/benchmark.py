"""Measure decisions per second: simulator, routers, HAN, latency, training; ratios to an earlier run."""

from __future__ import annotations

import dataclasses

from qos_jax.benchmark.benchmark import BenchmarkConfig, execute_benchmark, load_benchmark
from qos_jax.benchmark.compare import header, read_speeds, render_comparison, same_machine
from qos_jax.benchmark.machine import copy_bandwidth_bytes_per_s, peak_memory_bytes
from qos_jax.benchmark.plots import AXES, throughput
from qos_jax.benchmark.report import render_speed, render_speeds
from qos_jax.benchmark.row import Speed
from qos_jax.runs import plot_style
from qos_jax.runs.folder import open_run_folder

from . import common
from .config_flags import define_config_flags


@dataclasses.dataclass(frozen=True)
class _Earlier:
    compare: str = ""  # metrics.jsonl of an earlier run: ratios to it, row by row


_SETTINGS = define_config_flags(BenchmarkConfig)
_EARLIER = define_config_flags(_Earlier)
_RUN = common.run_flags("runs/benchmark", overwrite=True, resume=False)


def main() -> None:
    """Measure what the flags ask for."""
    config, run, earlier = _SETTINGS.read(), _RUN.read(), _EARLIER.read().compare
    plot = run.wants_plots()
    plan = load_benchmark(config)
    settings = plan.settings
    before = read_speeds(earlier, settings) if earlier else []
    alike = not before or same_machine(earlier, settings)
    folder = open_run_folder(run.out, settings, overwrite=run.overwrite)
    bandwidth = copy_bandwidth_bytes_per_s(config.repeats)
    print(", ".join(f"{name} {value}" for name, value in settings["machine"].items()), flush=True)
    print(f"a copy moves {bandwidth / 1e9:.1f} GB/s", flush=True)
    folder.append_metrics(header(settings, bandwidth))
    speeds: list[Speed] = []
    for measured in execute_benchmark(plan, lambda text: print(text, flush=True)):
        speed = measured.placed(bandwidth, max(peak_memory_bytes().values()))
        speeds.append(speed)
        folder.append_metrics(speed.record())
        print(render_speed(speed), flush=True)
    print(f"\n{render_speeds(speeds)}\n")
    peak = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in peak_memory_bytes().items())
    print(f"peak memory: {peak}")
    if before:
        print(f"\nto {earlier}{'' if alike else ', measured on another machine'}:")
        print(render_comparison(speeds, before))
    for axis in AXES if plot else ():
        figure = throughput(speeds, axis)
        if figure is not None:
            plot_style.save_figure(figure, folder.file(f"plots/throughput_{axis}.png"))
    print(f"results in {folder.path}")


if __name__ == "__main__":
    common.run(main)
