"""Measure routed requests per second, alone and beside the plain-Python reference on identical work."""

from __future__ import annotations

import dataclasses

from absl import flags

from launch import common
from qos_jax.errors import input_error
from qos_jax.evaluation import check_run_folder, open_run_folder
from qos_jax.evaluation.benchmark import (
    Speed,
    check_agreement,
    cut_stretches,
    first_runs,
    machine,
    measure_closed_form,
    measure_reference,
    peak_memory_bytes,
    render_speeds,
)
from qos_jax.evaluation.cases import TRACE, CaseConfig, build_cases
from qos_jax.evaluation.run_folder import RunFolder
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

_RUNS = 64  # different ones; more environments replay them again

_EXPERTS = flags.DEFINE_integer("experts", 4, "equal experts: copies of the shipped fleet's first")
_POLICY = flags.DEFINE_string("policy", "shortest_queue", "who routes")
_SCHEDULER = flags.DEFINE_enum("scheduler", "prefill_first", list(SCHEDULERS), "iteration scheduler")
_TRACE = flags.DEFINE_string("trace", None, "trace file; default: the shipped figures of azure_conv")
_ENVIRONMENTS = flags.DEFINE_list(
    "environments", ["1", "4", "16", "64", "256", "1024", "4096"], "environments in one program"
)
_REQUESTS = flags.DEFINE_integer("num_requests", 256, "requests of an environment")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed calls; the median counts")
_REFERENCE_RUNS = flags.DEFINE_integer(
    "reference_runs", 64, "environments that the reference replays too; 0 = none"
)
_SEED = flags.DEFINE_integer("seed", 0, "of the requests")
_OUT = flags.DEFINE_string("out", "runs/benchmark", "run folder")
_OVERWRITE = flags.DEFINE_bool("overwrite", True, "replace another run's results in the folder")


def _runs() -> tuple[ServingConfig, Runs]:
    """Runs of one stretch of the workload each."""
    fleet = take(read_fleet(fleet_path("edge6")), [0] * _EXPERTS.value)
    trace = read_trace(_TRACE.value) if _TRACE.value else None
    config = CaseConfig(
        workloads=(TRACE if trace else "azure_conv",),
        seeds=1 if trace else _RUNS,
        num_requests=_REQUESTS.value,
        seed=_SEED.value,
    )
    calibration = experts_named(load_calibration(), fleet.names)
    (case,) = build_cases(config, fleet, calibration, default_latency_limit_s("edge6"), trace)
    runs = case.runs if trace is None else cut_stretches(case.runs, _RUNS, _REQUESTS.value)
    serving = ServingConfig(
        fleet.num_experts, fleet.running_slots, fleet.waiting_slots, scheduler=_SCHEDULER.value
    )
    return serving, runs


def _environments() -> list[int]:
    """The numbers of environments asked for."""
    try:
        counts = [int(text) for text in _ENVIRONMENTS.value]
    except ValueError as error:
        raise input_error(str(error), field="environments", remedy="give whole numbers") from None
    for count in counts:
        if count < 1 or (count > CPU_BLOCK_RUNS and count % CPU_BLOCK_RUNS):
            raise input_error(
                f"{count} is no valid number",
                field="environments",
                remedy=f"use 1 to {CPU_BLOCK_RUNS}, or multiples of {CPU_BLOCK_RUNS}",
            )
    return counts


def _enter(folder: RunFolder, speed: Speed) -> Speed:
    """Write a measurement's line and say it."""
    rates = {"requests_per_s": speed.requests_per_s, "requests_per_cpu_s": speed.requests_per_cpu_s}
    folder.append_metrics({**dataclasses.asdict(speed), **rates})
    print(
        f"{speed.what}, {speed.environments} environments: "
        f"{speed.requests_per_cpu_s:,.0f} requests / CPU-second",
        flush=True,
    )
    return speed


def main() -> None:
    """Measure what the flags ask for."""
    environments = _environments()
    for flag, least in ((_EXPERTS, 1), (_REQUESTS, 1), (_REPEATS, 1), (_REFERENCE_RUNS, 0)):
        if flag.value < least:
            raise input_error(
                f"{flag.value} is below {least}", field=flag.name, remedy=f"give at least {least}"
            )
    router = policy(_POLICY.value)
    where = machine()
    settings = {
        "launcher": "benchmark",
        "experts": _EXPERTS.value,
        "policy": _POLICY.value,
        "scheduler": _SCHEDULER.value,
        "trace": _TRACE.value,
        "environments": environments,
        "num_requests": _REQUESTS.value,
        "repeats": _REPEATS.value,
        "reference_runs": _REFERENCE_RUNS.value,
        "seed": _SEED.value,
        "machine": where,
    }
    check_run_folder(_OUT.value, settings, overwrite=_OVERWRITE.value)
    serving, runs = _runs()
    folder = open_run_folder(_OUT.value, settings, overwrite=_OVERWRITE.value)
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    repeats, speeds = _REPEATS.value, []
    few = min(_REFERENCE_RUNS.value, runs.shape[0])
    if few:
        same = first_runs(runs, few)
        decided = simulate(serving, router, same).records.expert
        speeds.append(_enter(folder, measure_reference(same, decided, _SCHEDULER.value, repeats)))
        environments = sorted({*environments, few})
    for count in environments:
        speeds.append(_enter(folder, measure_closed_form(serving, router, runs, count, repeats)))
        if count == few:
            check_agreement(speeds[-1], speeds[0])
    peak = peak_memory_bytes()
    folder.append_metrics({"what": "peak memory", "bytes": peak})
    print(f"\n{render_speeds(speeds)}\n")
    print("peak memory: " + ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in peak.items()))
    print(f"results in {folder.path}")


if __name__ == "__main__":
    common.run(main)
