"""Run every policy on every case and gather their metrics, in parallel on the host's cores."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from qos_jax.errors import input_error
from qos_jax.policies import Policy, upper_bound
from qos_jax.policies.types import PROFILES, TRUTH
from qos_jax.serving import ServingConfig
from qos_jax.simulation.blocks import cpu_block_runs
from qos_jax.simulation.cases import Case
from qos_jax.simulation.metrics import METRICS, PREFIX_METRICS, SESSION_METRICS, summarise
from qos_jax.simulation.records import RequestRecords
from qos_jax.simulation.sessions import SessionRuns, session_metrics, simulate_sessions
from qos_jax.simulation.simulate import Runs, simulate
from qos_jax.simulation.threads import default_workers, map_in_threads
from qos_jax.simulation.world import World, simulate_world
from qos_jax.workload.request_table import prefix_levels, with_prefixes, without_prefixes
from qos_jax.workload.setting import limit_record

UPPER_BOUND = "upper_bound"

CaseName = tuple[str, float]
"""Workload and arrival rate (requests / s) of a case."""


@dataclasses.dataclass(frozen=True)
class PolicyRun:
    """What one policy did on every case."""

    policy: str
    results: list[PolicyResult]  # by case
    records: dict[CaseName, RequestRecords]  # of the cases to keep, [S, T] each


@dataclasses.dataclass(frozen=True)
class Compared:
    """What a comparison came to."""

    results: list[PolicyResult]  # by policy, then case
    records: dict[CaseName, dict[str, RequestRecords]]  # case -> policy -> [S, T]


def compare(
    config: ServingConfig,
    policies: Sequence[Policy],
    cases: Sequence[Case],
    *,
    with_upper_bound: bool = False,
    keep_records: Collection[CaseName] = (),
    finished: Mapping[str, PolicyRun] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_policy: Callable[[PolicyRun], None] | None = None,
    workers: int | None = None,
    worlds: Mapping[str, World] | None = None,
) -> Compared:
    """Run every policy on identical requests and arrivals (common random numbers).

    The seeds and rates of cases with equally many requests are one vmapped program per policy, and those of
    each case of sessions another. When
    interrupted, it returns to the caller at once, and ``on_policy`` is neither running nor called again.

    Args:
      config: static sizes and the scheduler.
      policies: who routes, each once.
      cases: on what; all with the same number of seeds.
      with_upper_bound: add ``upper_bound``, the average QoS that no policy can exceed.
      keep_records: the cases whose records are kept.
      finished: what an earlier, interrupted comparison of the same cases left, by policy: not run again.
      on_progress: called with the number of requests just routed, over all policies.
      on_policy: called when a policy is done, by one thread at a time.
      workers: policies run side by side and, shared out among them at the start if they are fewer, blocks
        of each; by default one per core on a CPU, one elsewhere.
      worlds: by policy, where its routers do not see everything or servers may fail.

    Raises:
      InputError: a policy named twice.
    """
    names = [policy.name for policy in policies]
    if len(set(names)) < len(names):
        raise input_error("names a policy twice", field="policies", remedy="name each once")
    runs = dict(finished or {})
    stopped, lock = False, threading.Lock()

    def advance(count: int) -> None:
        with lock:
            if stopped:
                raise InterruptedError
            if on_progress is not None:
                on_progress(count)

    def enter(run: PolicyRun) -> None:
        with lock:
            if stopped:
                raise InterruptedError
            runs[run.policy] = run
            if on_policy is not None:
                on_policy(run)

    def stop() -> None:
        nonlocal stopped
        with lock:  # whoever holds it is writing, and is let finish
            stopped = True

    workers = default_workers() if workers is None else workers
    todo = [policy for policy in policies if policy.name not in runs]
    for _ in range(len(policies) - len(todo)):
        advance(sum(case.runs.shape[0] * case.runs.shape[1] for case in cases))
    each = -(-workers // max(len(todo), 1))  # threads for the blocks of one policy

    def run(policy: Policy) -> None:
        world = (worlds or {}).get(policy.name)
        enter(_run_policy(config, policy, world, cases, set(keep_records), advance, each))

    map_in_threads(run, todo, workers, stop)
    if with_upper_bound and UPPER_BOUND not in runs:
        enter(PolicyRun(UPPER_BOUND, [_bound(case, config) for case in cases], {}))
    order = [*names, *([UPPER_BOUND] if with_upper_bound else [])]
    records: dict[CaseName, dict[str, RequestRecords]] = {}
    for name in order:
        for case, kept in runs[name].records.items():
            records.setdefault(case, {})[name] = kept
    return Compared([result for name in order for result in runs[name].results], records)


def _run_policy(
    config: ServingConfig,
    policy: Policy,
    world: World | None,
    cases: Sequence[Case],
    keep: set[CaseName],
    on_progress: Callable[[int], None],
    workers: int,
) -> PolicyRun:
    results: dict[int, PolicyResult] = {}
    kept = {}
    for group in _groups(cases):
        seeds = cases[group[0]].runs.shape[0]
        # On a CPU whole blocks per case, where they come out even: one program serves every group, and a
        # crowded case does not hold up the others.
        block = -(-seeds // -(-seeds // cpu_block_runs(config))) if jax.default_backend() == "cpu" else None
        how: Any = {"block_runs": block, "on_progress": on_progress, "workers": workers}
        first = cases[group[0]].runs
        if isinstance(first, SessionRuns):
            if world is not None:
                raise ValueError("sessions are simulated where routers see everything: leave out worlds")
            talked = simulate_sessions(config, policy, first, **how)
            records, totals = talked.records, talked.totals
            metrics = summarise(records, totals, first.profile, first.limits)
            metrics |= session_metrics(first, metrics, totals.makespan_s)
        else:
            runs = join_runs([each for each in (cases[at].runs for at in group) if isinstance(each, Runs)])
            if world is None:
                done = simulate(config, policy, runs, **how)
            else:
                done = simulate_world(config, policy, runs, world, **how)
            records = done.records
            metrics = summarise(records, done.totals, runs.profile, runs.limits)
        for place, index in enumerate(group):
            case, part = cases[index], slice(place * seeds, (place + 1) * seeds)
            results[index] = _result(
                policy.name, policy.knows, case, {k: v[part] for k, v in metrics.items()}
            )
            if case.name in keep:
                kept[case.name] = records.at(part)
    in_order = {case.name: kept[case.name] for case in cases if case.name in kept}
    return PolicyRun(policy.name, [results[index] for index in range(len(cases))], in_order)


def _groups(cases: Sequence[Case]) -> list[list[int]]:
    """Return which cases are run together: those of equally many requests, each of sessions alone."""
    found: dict[Any, list[int]] = {}
    for index, case in enumerate(cases):
        alone = index if isinstance(case.runs, SessionRuns) else -1
        found.setdefault((case.runs.shape[1], alone), []).append(index)
    return [found[key] for key in sorted(found)]


def join_runs(parts: Sequence[Runs]) -> Runs:
    """Return the runs of all parts, which share the fleet and the number of requests, as one."""
    if len(parts) == 1:
        return parts[0]

    if any(part.requests.prefix_group is not None for part in parts):
        levels = max(prefix_levels(part.requests) for part in parts)
        parts = [dataclasses.replace(part, requests=with_prefixes(part.requests, levels)) for part in parts]
    by_run = [part.by_run() for part in parts]
    joined: dict[str, Any] = jax.tree.map(lambda *each: np.concatenate(each), *by_run)
    return dataclasses.replace(parts[0], **joined)


def _result(policy: str, knows: str, case: Case, metrics: dict[str, np.ndarray]) -> PolicyResult:
    return PolicyResult(
        policy=policy,
        knows=knows,
        workload=case.workload,
        arrival_rate_per_s=case.arrival_rate_per_s,
        **{name: float(limit_s[0]) for name, limit_s in limit_record(case.runs.limits).items()},
        metrics=metrics,
    )


_upper_bounds = jax.jit(jax.vmap(upper_bound, in_axes=(None, 0, 0, None)), static_argnums=3)


def _bound(case: Case, config: ServingConfig) -> PolicyResult:
    runs, requests = case.runs, without_prefixes(case.runs.requests)
    shared = case.runs.requests.prefix_tokens if config.prefix_entries else None
    if shared is not None:  # at best all of it is cached
        left = np.maximum(np.asarray(requests.prompt_tokens) - np.asarray(shared), 1)
        requests = dataclasses.replace(requests, prompt_tokens=left)
    qos = _upper_bounds(runs.profile, requests, runs.limits, config.scheduler)
    names = [*METRICS, *(PREFIX_METRICS if config.prefix_entries else ())]
    names += SESSION_METRICS if isinstance(runs, SessionRuns) else ()
    metrics = {name: np.full(runs.shape[0], np.nan) for name in names}
    metrics["average_qos"] = np.asarray(qos, np.float64).mean(axis=1)
    metrics["arrived"] = np.full(runs.shape[0], float(runs.shape[1]))
    return _result(UPPER_BOUND, TRUTH, case, metrics)


@dataclasses.dataclass(frozen=True)
class PolicyResult:
    """What one policy reached on one workload at one arrival rate, seed by seed."""

    policy: str
    workload: str
    arrival_rate_per_s: float  # mean arrival rate of the whole fleet, requests / s
    latency_limit_s: float  # latency limit L, s/token
    metrics: dict[str, np.ndarray]  # name in METRICS -> [S], by seed; the same seeds for all policies
    ttft_limit_s: float | None = None  # seconds, as the two below; None = not set
    tpot_limit_s: float | None = None
    e2e_limit_s: float | None = None
    knows: str = PROFILES  # what the policy goes by, one of ``KNOWLEDGE``
