"""A comparison of policies as aligned text for the terminal."""

from __future__ import annotations

import math

from tabulate import SEPARATING_LINE, tabulate

from qos_jax.evaluation.comparison_table import Comparison, ComparisonRow, case_text


def render_text(comparison: Comparison) -> str:
    """Return the key metrics as aligned text: a table per workload, rate and limit, best first.

    Args:
      comparison: must hold ``average_qos``; of the other key metrics, those it holds are shown.
    """
    cases: dict[tuple[str, float, float], dict[str, dict[str, ComparisonRow]]] = {}
    for row in comparison.rows:
        case = cases.setdefault((row.workload, row.arrival_rate_per_s, row.latency_limit_s), {})
        case.setdefault(row.policy, {})[row.metric] = row
    return "\n\n".join(_case_table(key, case, comparison.baseline) for key, case in cases.items())


# Columns after the average QoS and its difference: metric, two lines of heading, factor, digits.
_COLUMNS = (
    ("share_within_limit", "in L", "%", 100, 1),
    ("mean_quality", "quality", "mean", 1, 3),
    ("latency_per_token_p95_s", "ms/token", "p95", 1000, 1),
    ("ttft_p95_s", "TTFT s", "p95", 1, 2),
    ("rejected_share", "reject", "%", 100, 1),
    ("dropped_share", "drop", "%", 100, 1),
    ("qos_per_busy_s", "QoS", "/busy s", 1, 2),
    ("qos_per_joule", "QoS", "/kJ", 1000, 2),
)


def _case_table(
    key: tuple[str, float, float], case: dict[str, dict[str, ComparisonRow]], baseline: str
) -> str:
    """Return the table of one workload, rate and limit."""
    columns = [column for column in _COLUMNS if any(column[0] in metrics for metrics in case.values())]
    if not any(metrics["dropped_share"].mean > 0 for metrics in case.values() if "dropped_share" in metrics):
        columns = [column for column in columns if column[0] != "dropped_share"]
    lines = [
        ["policy", "average QoS", "difference to", *(column[1] for column in columns)],
        ["", "[95% CI]", f"{baseline} [95% CI]", *(column[2] for column in columns)],
        SEPARATING_LINE,
    ]
    for policy, metrics in sorted(case.items(), key=lambda item: _descending(item[1]["average_qos"].mean)):
        qos = metrics["average_qos"]
        difference = "-" if policy == baseline else _interval(qos.diff, qos.diff_low, qos.diff_high, "+")
        cells = [
            _number(metrics[name].mean * factor, digits) if name in metrics else "-"
            for name, _, _, factor, digits in columns
        ]
        lines.append([policy, _interval(qos.mean, qos.ci_low, qos.ci_high), difference, *cells])
    align = ["left", "left", "left", *["right"] * len(columns)]
    table = tabulate(lines, tablefmt="simple", colalign=align, disable_numparse=True)
    seeds = next(iter(case.values()))["average_qos"].n
    return f"{case_text(key)}, {seeds} {'seed' if seeds == 1 else 'seeds'}\n{table}"


def _interval(mean: float, low: float, high: float, sign: str = "") -> str:
    """Return ``mean [low, high]`` with three digits."""
    return f"{_number(mean, 3, sign)} [{_number(low, 3, sign)}, {_number(high, 3, sign)}]"


def _number(value: float, digits: int, sign: str = "") -> str:
    """Return a number with fixed digits, no negative zero, "-" where undefined."""
    return f"{value:{sign}z.{digits}f}" if math.isfinite(value) else "-"


def _descending(value: float) -> float:
    """Return a sort key: large first, undefined last."""
    return -value if math.isfinite(value) else math.inf
