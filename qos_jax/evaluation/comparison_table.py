"""Compare policies: mean, interval and paired difference to a baseline, as rows, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qos_jax.errors import input_error
from qos_jax.files import atomic_write
from qos_jax.policies.registry import router_of
from qos_jax.policies.types import PROFILES
from qos_jax.runs.folder import to_json
from qos_jax.runs.statistics import Estimate, mean_ci, paired_difference, runs_ci
from qos_jax.serving import LIMITS
from qos_jax.simulation.metrics import ALL_METRICS
from qos_jax.simulation.policy_runs import PolicyResult

OTHER_LIMITS = LIMITS[1:]  # besides L

Case = tuple[str, float, tuple[float | None, ...]]
"""Workload, arrival rate (requests / s) and limits, in the order of ``LIMITS``."""


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """One metric of one policy on one workload at one rate; NaN where undefined.

    A router of several training runs has a row, and each of its runs, ``ROUTER#1`` and so on, another.
    """

    policy: str
    workload: str
    arrival_rate_per_s: float  # requests / s
    latency_limit_s: float  # s/token
    metric: str  # name in ALL_METRICS, whose unit the figures below have
    mean: float  # over seeds; of several runs the interquartile mean of theirs
    ci_low: float  # 95% bootstrap interval of the mean
    ci_high: float
    diff: float  # mean of this policy - the baseline, paired by seed
    diff_low: float  # 95% bootstrap interval of the difference
    diff_high: float
    n: int  # seeds
    ttft_limit_s: float | None = None  # seconds, as the two below; None = not set
    tpot_limit_s: float | None = None
    e2e_limit_s: float | None = None
    knows: str = PROFILES  # what the policy goes by, one of ``KNOWLEDGE``
    runs: int | None = None  # training runs taken together; None = this is one policy
    least: float | None = None  # mean of the run that has the least; None as above
    most: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Every policy on every workload and rate, against one of them."""

    baseline: str  # name of the policy that differences are taken to
    rows: tuple[ComparisonRow, ...]  # in the order of the results, then of the metrics
    # Average QoS in the mean of all cases, where there are several; their rate is NaN.
    over_cases: tuple[ComparisonRow, ...] = ()


def comparison_table(
    results: Sequence[PolicyResult],
    *,
    baseline: str,
    metrics: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Return mean, 95% interval and paired difference to the baseline for every result and metric.

    Args:
      results: one per policy, workload, rate and limit; those that share workload, rate and limit must
        come from identical requests, seed by seed.
      baseline: the policy to compare with, present on every workload and rate.
      metrics: names to compare; by default those of ``ALL_METRICS`` that every result of a case holds.
      resamples: bootstrap resamples.
      seed: seed of the resampling.

    Raises:
      InputError: if the baseline is missing somewhere, a result comes twice or the numbers of seeds differ.
    """
    held: dict[Case, set[str]] = {}
    for result in results:
        held[case_of(result)] = held.get(case_of(result), {*ALL_METRICS}) & result.metrics.keys()
    names_of = {key: tuple(metrics or (n for n in ALL_METRICS if n in each)) for key, each in held.items()}
    by_case: dict[Case, dict[str, np.ndarray]] = {}
    for result in results:
        case = by_case.setdefault(case_of(result), {})
        if result.policy in case:
            raise input_error(
                f"policy {result.policy!r} comes twice for {case_text(case_of(result))}",
                remedy="name it once",
            )
        names = names_of[case_of(result)]
        case[result.policy] = np.stack([np.asarray(result.metrics[name], np.float64) for name in names])
    for key, case in by_case.items():
        if len({values.shape for values in case.values()}) > 1:
            seeds = ", ".join(f"{policy} {values.shape[-1]}" for policy, values in case.items())
            raise input_error(
                f"policies ran on different numbers of seeds ({seeds})", remedy="run all on the same seeds"
            )
        _add_routers(case)
        if baseline not in case:
            fault = f"the baseline {baseline!r} was not run on {case_text(key)}"
            raise input_error(fault, remedy=f"choose one of {', '.join(case)}", field="baseline")
    rows: list[ComparisonRow] = []
    for result in _with_routers(results):
        names, case = names_of[case_of(result)], by_case[case_of(result)]
        values = case[result.policy]
        mean, difference = _estimates(values, case[baseline], resamples, seed)
        parts = (mean.mean, mean.low, mean.high, difference.mean, difference.low, difference.high)
        where = (result.policy, result.workload, float(result.arrival_rate_per_s), result.latency_limit_s)
        others = {name: getattr(result, name) for name in (*OTHER_LIMITS, "knows")}
        figures = np.stack(parts, axis=-1).tolist()  # [metrics, 6]
        for name, (value, low, high, diff, diff_low, diff_high), each in zip(
            names, figures, values, strict=True
        ):
            about = others | _of_runs(each)
            rows.append(
                ComparisonRow(*where, name, value, low, high, diff, diff_low, diff_high, mean.n, **about)
            )
    whole = _over_cases(results) if all("average_qos" in names for names in names_of.values()) else []
    how: dict[str, Any] = {"metrics": ("average_qos",), "resamples": resamples, "seed": seed}
    over_cases = comparison_table(whole, baseline=baseline, **how).rows if whole else ()
    return Comparison(baseline, tuple(rows), over_cases)


def _over_cases(results: Sequence[PolicyResult]) -> list[PolicyResult]:
    """Return the average QoS of each policy in the mean of all cases, seed by seed.

    Return [] for a single case, and where limits or numbers of seeds differ. A router of several runs needs
    all of them in every case.
    """
    cases = {case_of(result) for result in results}
    alike = {(case_of(result)[2], len(result.metrics["average_qos"])) for result in results}
    if len(alike) > 1:
        return []
    count = len(cases)
    by_policy: dict[str, list[PolicyResult]] = {}
    for result in results:
        by_policy.setdefault(result.policy, []).append(result)
    incomplete = {router_of(policy) for policy, each in by_policy.items() if len(each) < count}
    return [
        dataclasses.replace(
            each[0],
            workload=f"mean of {count} cases",
            arrival_rate_per_s=math.nan,
            metrics={"average_qos": np.mean([result.metrics["average_qos"] for result in each], axis=0)},
        )
        for policy, each in by_policy.items()
        if count > 1 and router_of(policy) not in incomplete
    ]


def _add_routers(case: dict[str, np.ndarray]) -> None:
    """Add to the policies' values [metrics, S] those of each router of several runs, [metrics, R, S]."""
    runs: dict[str, list[np.ndarray]] = {}
    for name, values in case.items():
        if router_of(name) != name:
            runs.setdefault(router_of(name), []).append(values)
    for router, each in runs.items():
        if router in case:
            fault = f"policy {router!r} and training runs of it come together"
            raise input_error(fault, remedy="name it otherwise")
        case[router] = np.stack(each, axis=1)


def _with_routers(results: Sequence[PolicyResult]) -> Iterator[PolicyResult]:
    """Yield the results, and before those of the runs of a router one that bears its name."""
    begun = set()
    for result in results:
        router = router_of(result.policy)
        if router != result.policy and (case_of(result), router) not in begun:
            begun.add((case_of(result), router))
            yield dataclasses.replace(result, policy=router)
        yield result


def _estimates(values: np.ndarray, base: np.ndarray, resamples: int, seed: int) -> tuple[Estimate, Estimate]:
    """Return the mean of a policy's values and its difference to the baseline's, [metrics] each.

    Both are [metrics, S], or [metrics, R, S] of a router of several runs.
    """
    how: dict[str, Any] = {"resamples": resamples, "seed": seed}
    if values.ndim == base.ndim == 2:
        return mean_ci(values, **how), paired_difference(values, base, **how)
    mean = mean_ci(values, **how) if values.ndim == 2 else runs_ci(values, **how)
    of_runs, of_baseline = (each if each.ndim == 3 else each[:, None] for each in (values, base))
    return mean, runs_ci(of_runs, of_baseline, **how)


def _of_runs(values: np.ndarray) -> dict[str, Any]:
    """Return the fields of a row that are of the runs of a router, from its values [R, S]; {} for [S]."""
    if values.ndim == 1:
        return {}
    of_runs = values.mean(-1)
    return {"runs": len(values), "least": float(of_runs.min()), "most": float(of_runs.max())}


def write_comparison_csv(path: str | os.PathLike[str], comparison: Comparison) -> None:
    """Write one line per policy, workload, rate, limits and metric; what is undefined is empty.

    A limit besides L that no row has set has no column, nor have runs where each policy is one.
    """
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        unset = {
            name
            for name in (*OTHER_LIMITS, "runs", "least", "most")
            if all(getattr(row, name) is None for row in comparison.rows)
        }
        columns = [field.name for field in dataclasses.fields(ComparisonRow) if field.name not in unset]
        writer.writerow([*columns, "unit", "baseline"])
        for row in comparison.rows:
            values = [getattr(row, name) for name in columns]
            shown = ["" if isinstance(v, float) and not math.isfinite(v) else v for v in values]
            writer.writerow([*shown, ALL_METRICS[row.metric].unit, comparison.baseline])


def write_comparison_json(path: str | os.PathLike[str], comparison: Comparison) -> None:
    """Write the comparison as one JSON object; what is undefined is null."""
    with atomic_write(path) as stream:
        json.dump(to_json(dataclasses.asdict(comparison)), stream, indent=1, allow_nan=False)
        stream.write("\n")


def case_of(of: PolicyResult | ComparisonRow) -> Case:
    """Return what must be equal for two policies to be compared."""
    limits = tuple(getattr(of, name) for name in LIMITS)
    rate_per_s = float(of.arrival_rate_per_s)
    # The one NaN object, since others would be keys of their own.
    return of.workload, rate_per_s if math.isfinite(rate_per_s) else math.nan, limits


def case_text(case: Case) -> str:
    """Return a case as people read it."""
    workload, rate, limits = case
    at_rate = f"{workload}, {rate:.4g} requests/s" if math.isfinite(rate) else workload
    return f"{at_rate}, {limits_text(dict(zip(LIMITS, limits, strict=True)))}"


def limits_text(limits: Mapping[str, float | None]) -> str:
    """Return the limits that are set as people read them; L alone where it is finite or the only one."""
    words = {"latency_limit_s": ("L", "s/token"), "tpot_limit_s": ("TPOT", "s/token")}
    words |= {"ttft_limit_s": ("TTFT", "s"), "e2e_limit_s": ("E2E", "s")}
    shown = {name: limit_s for name, limit_s in limits.items() if limit_s is not None}
    if not math.isfinite(shown["latency_limit_s"]) and len(shown) > 1:
        del shown["latency_limit_s"]
    return ", ".join(
        f"{words[name][0]} {'=' if name == 'latency_limit_s' else '<='} {limit_s:.4g} {words[name][1]}"
        for name, limit_s in shown.items()
    )
