"""Measure routed requests per second, alone and beside the plain-Python reference on identical work."""

from __future__ import annotations

import dataclasses
import platform

import jax
import numpy as np
from absl import flags

from launch import common
from qos_jax.errors import input_error
from qos_jax.evaluation import open_run_folder
from qos_jax.evaluation.benchmark import measure_closed_form, measure_reference, render_speeds
from qos_jax.evaluation.cases import TRACE, CaseConfig, build_cases
from qos_jax.evaluation.simulate import CPU_BLOCK_RUNS, Runs, simulate
from qos_jax.policies import policy
from qos_jax.serving import SCHEDULERS, ServingConfig
from qos_jax.workload import (
    default_latency_limit_s,
    experts_named,
    fleet_path,
    load_calibration,
    read_fleet,
    read_trace,
    take,
)

_EXPERTS = flags.DEFINE_integer("experts", 4, "equal experts: copies of the shipped fleet's first")
_POLICY = flags.DEFINE_string("policy", "shortest_queue", "who routes")
_SCHEDULER = flags.DEFINE_enum("scheduler", "prefill_first", list(SCHEDULERS), "iteration scheduler")
_TRACE = flags.DEFINE_string("trace", None, "trace file; default: the shipped figures of azure_conv")
_ENVIRONMENTS = flags.DEFINE_list(
    "environments", ["1", "4", "16", "64", "256", "1024", "4096"], "environments in one program"
)
_REQUESTS = flags.DEFINE_integer("num_requests", 256, "requests of an environment")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed calls; the median counts")
_REFERENCE_RUNS = flags.DEFINE_integer("reference_runs", 4, "environments the reference replays; 0 = none")
_SEED = flags.DEFINE_integer("seed", 0, "of the requests")
_OUT = flags.DEFINE_string("out", "runs/benchmark", "run folder")
_OVERWRITE = flags.DEFINE_bool("overwrite", True, "replace another run's results in the folder")


def _runs() -> tuple[ServingConfig, Runs]:
    """Runs of consecutive stretches of the workload, one per environment up to the largest count."""
    whole = read_fleet(fleet_path("edge6"))
    fleet = take(whole, [0] * _EXPERTS.value)
    trace = read_trace(_TRACE.value) if _TRACE.value else None
    count, size = 64, _REQUESTS.value
    config = CaseConfig(
        workloads=(TRACE if trace else "azure_conv",),
        seeds=1 if trace else count,
        num_requests=size,
        seed=_SEED.value,
    )
    calibration = experts_named(load_calibration(), fleet.names)
    (case,) = build_cases(config, fleet, calibration, default_latency_limit_s("edge6"), trace)
    runs = case.runs
    if trace is not None:
        runs = _cut(runs, count, size)
    serving = ServingConfig(
        fleet.num_experts, fleet.running_slots, fleet.waiting_slots, scheduler=_SCHEDULER.value
    )
    return serving, runs


def _cut(runs: Runs, count: int, size: int) -> Runs:
    """Cut one long run into ``count`` evenly spaced stretches of ``size`` requests."""
    length = runs.shape[1]
    if length < size:
        raise input_error(
            f"has only {length} requests", field="trace", remedy=f"give {size} or lower --num_requests"
        )
    index = np.linspace(0, length - size, count).astype(int)[:, None] + np.arange(size)
    return dataclasses.replace(
        runs,
        latency_limit_s=np.repeat(runs.latency_limit_s, count),
        length_log_std=np.repeat(runs.length_log_std, count, axis=0),
        arrival_s=runs.arrival_s[0][index],
        requests=jax.tree.map(lambda x: x[0][index], runs.requests),
        seed=np.arange(count, dtype=np.uint32),
    )


def main() -> None:
    """Measure what the flags ask for."""
    try:
        environments = [int(text) for text in _ENVIRONMENTS.value]
    except ValueError as error:
        raise input_error(str(error), field="environments", remedy="give whole numbers") from None
    for count in environments:
        if count < 1 or (count > CPU_BLOCK_RUNS and count % CPU_BLOCK_RUNS):
            raise input_error(
                f"{count} is no valid number",
                field="environments",
                remedy=f"use 1 to {CPU_BLOCK_RUNS}, or multiples of {CPU_BLOCK_RUNS}",
            )
    for flag in (_EXPERTS, _REQUESTS, _REPEATS):
        if flag.value < 1:
            raise input_error(f"{flag.value} is below 1", field=flag.name, remedy="give at least 1")
    router = policy(_POLICY.value)
    serving, runs = _runs()
    folder = open_run_folder(
        _OUT.value,
        {
            "launcher": "benchmark",
            "experts": _EXPERTS.value,
            "policy": _POLICY.value,
            "scheduler": _SCHEDULER.value,
            "trace": _TRACE.value,
            "environments": environments,
            "num_requests": _REQUESTS.value,
            "repeats": _REPEATS.value,
            "seed": _SEED.value,
            "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
            "jax": jax.__version__,
        },
        overwrite=_OVERWRITE.value,
    )
    speeds = []
    if _REFERENCE_RUNS.value > 0:
        few = min(_REFERENCE_RUNS.value, runs.shape[0])
        part = dataclasses.replace(
            runs,
            latency_limit_s=runs.latency_limit_s[:few],
            length_log_std=runs.length_log_std[:few],
            arrival_s=runs.arrival_s[:few],
            requests=jax.tree.map(lambda x: x[:few], runs.requests),
            seed=runs.seed[:few],
        )
        decided = simulate(serving, router, part).records.expert
        speeds.append(measure_reference(part, decided, _SCHEDULER.value, _REPEATS.value))
        folder.append_metrics(dataclasses.asdict(speeds[-1]))
    for count in environments:
        speeds.append(measure_closed_form(serving, router, runs, count, _REPEATS.value))
        folder.append_metrics(dataclasses.asdict(speeds[-1]))
        print(f"{count} environments: {speeds[-1].requests_per_cpu_s:,.0f} requests / CPU-second", flush=True)
    table = render_speeds(speeds)
    print(f"\n{table}\n\nresults in {folder.path}")


if __name__ == "__main__":
    common.run(main)
