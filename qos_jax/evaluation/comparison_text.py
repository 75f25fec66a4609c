"""Render a comparison as aligned text: a table for each workload, rate and limit, and one for their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tabulate import SEPARATING_LINE, tabulate

from qos_jax.evaluation.comparison_table import (
    OTHER_LIMITS,
    Case,
    Comparison,
    ComparisonRow,
    case_of,
    case_text,
)
from qos_jax.policies.registry import router_of
from qos_jax.policies.types import KNOWLEDGE
from qos_jax.serving import LIMITS
from qos_jax.simulation.metrics import WITHIN

# Columns after the average QoS and its difference: metric, two lines of heading, factor, digits.
_COLUMNS: tuple[tuple[str, str, str, int, int], ...] = (
    ("share_within_limit", "in all", "%", 100, 1),
    ("share_within_latency_per_token", "in L", "%", 100, 1),
    ("share_within_ttft", "in TTFT", "%", 100, 1),
    ("share_within_tpot", "in TPOT", "%", 100, 1),
    ("share_within_e2e", "in E2E", "%", 100, 1),
    ("mean_quality", "quality", "mean", 1, 3),
    ("latency_per_token_p95_s", "ms/token", "p95", 1000, 1),
    ("ttft_p95_s", "TTFT s", "p95", 1, 2),
    ("hit_rate", "cached", "%", 100, 1),
    ("prefill_saved_s", "saved", "s", 1, 1),
    ("rejected_share", "reject", "%", 100, 1),
    ("rejected_too_long_share", "too long", "%", 100, 1),
    ("dropped_share", "drop", "%", 100, 1),
    ("failed_share", "fail", "%", 100, 1),
    ("qos_per_busy_s", "QoS", "/busy s", 1, 2),
    ("qos_per_joule", "QoS", "/kJ", 1000, 2),
    ("turns_per_session_hour", "turns", "/h", 1, 1),
    ("qos_per_session_hour", "QoS", "/h", 1, 1),
)


def render_text(comparison: Comparison) -> str:
    """Return the key metrics as aligned text: a table per workload, rate and limit.

    A last one has the mean of all cases. Policies are grouped by what they know, those that know most first;
    within a group, best first. A router of several training runs has one line, and below the table what its
    runs have.

    Args:
      comparison: must hold ``average_qos``; of the other key metrics, those it holds are shown.
    """
    cases: dict[Case, dict[str, dict[str, ComparisonRow]]] = {}
    for row in (*comparison.rows, *comparison.over_cases):
        if row.policy in (router_of(row.policy), comparison.baseline):
            case = cases.setdefault(case_of(row), {})
            case.setdefault(row.policy, {})[row.metric] = row
    return "\n\n".join(_case_table(key, case, comparison.baseline) for key, case in cases.items())


def _case_table(key: Case, case: dict[str, dict[str, ComparisonRow]], baseline: str) -> str:
    """Return the table of one workload, rate and limit."""
    limits = dict(zip(LIMITS, key[2], strict=True))
    hidden = _hidden_shares(limits)
    held = {name for metrics in case.values() for name in metrics}
    columns = [column for column in _COLUMNS if column[0] in held - hidden]
    if all(limits[name] is None for name in OTHER_LIMITS):
        columns = [(c[0], c[1].replace("in all", "in L"), *c[2:]) for c in columns]
    for name in ("rejected_too_long_share", "dropped_share", "failed_share"):  # shown where there are any
        shares = [metrics[name] for metrics in case.values() if name in metrics]
        if not any(row.mean > 0 or (row.most or 0.0) > 0 for row in shares):
            columns = [column for column in columns if column[0] != name]
    lines = [
        ["policy", "knows", "average QoS", "difference to", *(column[1] for column in columns)],
        ["", "", "[95% CI]", f"{baseline} [95% CI]", *(column[2] for column in columns)],
        SEPARATING_LINE,
    ]
    for policy, metrics in sorted(case.items(), key=_by_knowledge):
        qos = metrics["average_qos"]
        difference = "-" if policy == baseline else _interval(qos.diff, qos.diff_low, qos.diff_high, "+")
        cells = [
            _number(metrics[name].mean * factor, digits) if name in metrics else "-"
            for name, _, _, factor, digits in columns
        ]
        lines.append([policy, qos.knows, _interval(qos.mean, qos.ci_low, qos.ci_high), difference, *cells])
    align = ["left", "left", "left", "left", *["right"] * len(columns)]
    table = tabulate(lines, tablefmt="simple", colalign=align, disable_numparse=True)
    seeds = next(iter(case.values()))["average_qos"].n
    together = [
        f"\n{policy}: {'interquartile mean' if qos.runs > 3 else 'mean'} of {qos.runs} training runs, "
        f"{_number(qos.least, 3)} to {_number(qos.most, 3)}"
        for policy, qos in ((policy, metrics["average_qos"]) for policy, metrics in case.items())
        if qos.runs is not None and qos.least is not None and qos.most is not None
    ]
    heading = f"{case_text(key)}, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    return f"{heading}\n{table}{''.join(together)}"


def _hidden_shares(limits: Mapping[str, float | None]) -> set[str]:
    """Return the shares that say nothing: within limits not set, or within L where it is alone."""
    plain = all(limits[name] is None for name in OTHER_LIMITS)
    hidden = {f"share_within_{name}" for name, (_, limit) in WITHIN.items() if limits[limit] is None}
    if plain or not math.isfinite(limits["latency_limit_s"] or math.inf):
        hidden.add("share_within_latency_per_token")
    return hidden


def _interval(mean: float, low: float, high: float, sign: str = "") -> str:
    """Return ``mean [low, high]`` with three digits."""
    return f"{_number(mean, 3, sign)} [{_number(low, 3, sign)}, {_number(high, 3, sign)}]"


def _number(value: float, digits: int, sign: str = "") -> str:
    """Return a number with fixed digits, no negative zero, "-" where undefined."""
    return f"{value:{sign}z.{digits}f}" if math.isfinite(value) else "-"


def _by_knowledge(item: tuple[str, dict[str, ComparisonRow]]) -> tuple[int, float]:
    """Return a sort key: who knows most first, then the best."""
    qos = item[1]["average_qos"]
    return -KNOWLEDGE.index(qos.knows), _descending(qos.mean)


def _descending(value: float) -> float:
    """Return a sort key: large first, undefined last."""
    return -value if math.isfinite(value) else math.inf
