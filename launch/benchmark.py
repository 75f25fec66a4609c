"""Measure decisions per second: simulator, routers, HAN, latency, training; ratios to an earlier run."""

from __future__ import annotations

import sys

from absl import flags

from qos_jax.benchmark.benchmark import BenchmarkConfig, execute_benchmark, load_benchmark
from qos_jax.benchmark.compare import header, read_speeds, render_comparison, same_machine
from qos_jax.benchmark.machine import copy_bandwidth_bytes_per_s, peak_memory_bytes
from qos_jax.benchmark.plots import AXES, throughput
from qos_jax.benchmark.report import render_speed, render_speeds
from qos_jax.benchmark.row import Speed
from qos_jax.runs import plot_style
from qos_jax.runs.folder import check_run_folder, open_run_folder

from . import common, config_flags

_SETTINGS = config_flags.define_config_flags(BenchmarkConfig(), sys.argv[0])
_COMPARE = flags.DEFINE_string("compare", None, "metrics.jsonl of an earlier run: ratios to it, row by row")
_OUT = flags.DEFINE_string("out", "runs/benchmark", "run folder")
_OVERWRITE = flags.DEFINE_bool("overwrite", True, "replace another run's results in the folder")
_PLOTS = flags.DEFINE_bool("plots", None, "write plots; by default wherever matplotlib is installed")


def main() -> None:
    """Measure what the flags ask for."""
    config = config_flags.replaced(BenchmarkConfig(), config_flags.given(_SETTINGS))
    plot = common.wants_plots(_PLOTS)
    plan = load_benchmark(config)
    settings = plan.settings
    earlier = _COMPARE.value or ""
    before = read_speeds(earlier, settings) if earlier else []
    alike = not before or same_machine(earlier, settings)
    check_run_folder(_OUT.value, settings, overwrite=_OVERWRITE.value)
    folder = open_run_folder(_OUT.value, settings, overwrite=_OVERWRITE.value)
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
