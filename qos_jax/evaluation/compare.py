"""Run every policy on every case and gather their metrics, in parallel on the host's cores."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence

import jax
import numpy as np

from qos_jax.errors import input_error
from qos_jax.evaluation.cases import Case
from qos_jax.evaluation.metrics import METRICS, summarise
from qos_jax.evaluation.records import RequestRecords
from qos_jax.evaluation.simulate import CPU_BLOCK_RUNS, Runs, simulate
from qos_jax.evaluation.tables import PolicyResult
from qos_jax.policies import Policy, upper_bound
from qos_jax.serving import ServingConfig
from qos_jax.workload import RequestTable

# Called with a policy's name and its results on all cases, as soon as they are known.
OnResults = Callable[[Sequence[PolicyResult]], None]


@dataclasses.dataclass(frozen=True)
class Compared:
    """What a comparison came to."""

    results: list[PolicyResult]  # by policy, then case
    records: dict[tuple[str, float], dict[str, RequestRecords]]  # (workload, rate) -> policy -> [S, T]


def compare(
    config: ServingConfig,
    policies: Sequence[Policy],
    cases: Sequence[Case],
    *,
    with_upper_bound: bool = False,
    keep_records: Sequence[tuple[str, float]] = (),
    on_progress: Callable[[int], None] | None = None,
    on_results: OnResults | None = None,
    workers: int | None = None,
) -> Compared:
    """Run every policy on identical requests and arrivals (common random numbers).

    The seeds and rates of cases with equally many requests are one vmapped program per policy.

    Args:
      config: static sizes and the scheduler.
      policies: who routes, each once.
      cases: on what; all with the same number of seeds.
      with_upper_bound: add ``upper_bound``, the average QoS that no policy can exceed.
      keep_records: (workload, rate) of the cases whose records are kept.
      on_progress: called with the number of requests just routed, over all policies.
      on_results: called when a policy is done.
      workers: policies run side by side; by default one per core on a CPU, one elsewhere.

    Raises:
      InputError: a policy named twice.
    """
    names = [policy.name for policy in policies]
    if len(set(names)) < len(names):
        raise input_error("names a policy twice", field="policies", remedy="name each once")
    stop, lock = threading.Event(), threading.Lock()

    def advance(count: int) -> None:
        if stop.is_set():
            raise InterruptedError
        if on_progress is not None:
            with lock:
                on_progress(count)

    def run(policy: Policy) -> tuple[list[PolicyResult], dict[tuple[str, float], RequestRecords]]:
        done = _run_policy(config, policy, cases, set(keep_records), advance)
        if on_results is not None:
            with lock:
                on_results(done[0])
        return done

    if workers is None:
        workers = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run, policy) for policy in policies]
        try:
            concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
            finished = [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    results = [result for done, _ in finished for result in done]
    records: dict[tuple[str, float], dict[str, RequestRecords]] = {}
    for name, (_, kept) in zip(names, finished, strict=True):
        for case, value in kept.items():
            records.setdefault(case, {})[name] = value
    if with_upper_bound:
        bounds = [_bound(case) for case in cases]
        results += bounds
        if on_results is not None:
            on_results(bounds)
    return Compared(results, records)


def _run_policy(
    config: ServingConfig,
    policy: Policy,
    cases: Sequence[Case],
    keep: set[tuple[str, float]],
    on_progress: Callable[[int], None],
) -> tuple[list[PolicyResult], dict[tuple[str, float], RequestRecords]]:
    results: dict[int, PolicyResult] = {}
    kept = {}
    lengths = sorted({case.runs.shape[1] for case in cases})
    for length in lengths:
        group = [index for index, case in enumerate(cases) if case.runs.shape[1] == length]
        runs = join_runs([cases[index].runs for index in group])
        seeds = cases[group[0]].runs.shape[0]
        # On a CPU one block per case: one program serves every group, and a crowded case does not
        # hold up the others.
        block = min(seeds, CPU_BLOCK_RUNS) if jax.default_backend() == "cpu" else None
        done = simulate(config, policy, runs, block_runs=block, on_progress=on_progress)
        metrics = summarise(done.records, done.totals, runs.profile, runs.latency_limit_s)
        for place, index in enumerate(group):
            case, part = cases[index], slice(place * seeds, (place + 1) * seeds)
            name = (case.workload, case.arrival_rate_per_s)
            results[index] = _result(policy.name, case, {k: v[part] for k, v in metrics.items()})
            if name in keep:
                kept[name] = done.records.at(part)
    return [results[index] for index in range(len(cases))], kept


def join_runs(parts: Sequence[Runs]) -> Runs:
    """Return the runs of all parts, which share the fleet and the number of requests, as one."""
    if len(parts) == 1:
        return parts[0]

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    tables: list[RequestTable] = [part.requests for part in parts]
    return Runs(
        profile=parts[0].profile,
        latency_limit_s=join("latency_limit_s"),
        length_log_std=join("length_log_std"),
        arrival_s=join("arrival_s"),
        requests=jax.tree.map(lambda *leaves: np.concatenate(leaves), *tables),
        seed=join("seed"),
    )


def _result(policy: str, case: Case, metrics: dict[str, np.ndarray]) -> PolicyResult:
    return PolicyResult(
        policy=policy,
        workload=case.workload,
        arrival_rate_per_s=case.arrival_rate_per_s,
        latency_limit_s=float(case.runs.latency_limit_s[0]),
        metrics=metrics,
    )


def _bound(case: Case) -> PolicyResult:
    runs = case.runs
    qos = jax.jit(jax.vmap(upper_bound, in_axes=(None, 0, 0)))(
        runs.profile, runs.requests, runs.latency_limit_s
    )
    metrics = {name: np.full(runs.shape[0], np.nan) for name in METRICS}
    metrics["average_qos"] = np.asarray(qos, np.float64).mean(axis=1)
    metrics["arrived"] = np.full(runs.shape[0], float(runs.shape[1]))
    return _result("upper_bound", case, metrics)
