"""The summary of one run as aligned text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

_LATENCIES = (
    ("latency per token", "latency_per_token", "ms", 1000, 1),
    ("TPOT", "tpot", "ms", 1000, 1),
    ("TTFT", "ttft", "s", 1, 3),
    ("E2E latency", "e2e_latency", "s", 1, 2),
)


def render_run(summary: Mapping[str, Any]) -> str:
    """Return the key figures of ``single_run.summarise_run`` in three small tables."""
    s = summary
    head = (
        f"{s['policy']} on {s['fleet']}, {s['scheduler']}, {s['requests']}, "
        f"L = {1000 * s['latency_limit_s']:.4g} ms/token"
    )
    figures = [
        ["average QoS", _number(s["average_qos"], 4)],
        ["within L", _percent(s["share_within_limit"])],
        ["mean quality", _number(s["mean_quality"], 4)],
        ["arrived", f"{s['arrived']:,}"],
        ["completed", f"{s['completed']:,}"],
        ["rejected", f"{s['rejected']:,}"],
        ["dropped", f"{s['dropped']:,}"],
        ["preemptions per request", _number(s["preemptions_per_request"], 3)],
        ["busy share", _percent(s["busy_share"])],
        ["KV utilisation", _percent(s["kv_utilisation"])],
        ["QoS per busy second", _number(s["qos_per_busy_s"], 3)],
        ["QoS per kJ", _number(1000 * s["qos_per_joule"], 3)],
    ]
    latencies = [
        [f"{label} ({unit})"]
        + [_number(factor * s[f"{name}_{part}_s"], digits) for part in ("mean", "p50", "p95", "p99")]
        for label, name, unit, factor, digits in _LATENCIES
    ]
    experts = [
        [
            expert["expert"],
            f"{expert['routed']:,}",
            f"{expert['rejected']:,}",
            _percent(expert["busy_share"]),
            _percent(expert["kv_utilisation"]),
        ]
        for expert in s["experts"]
    ]
    return "\n\n".join(
        [
            head,
            _table([], figures),
            _table(["", "mean", "p50", "p95", "p99"], latencies),
            _table(["expert", "routed", "rejected", "busy", "KV used"], experts),
        ]
    )


def _table(headers: list[str], rows: list[list[str]]) -> str:
    align = ["left", *["right"] * (len(rows[0]) - 1)]
    style = "simple" if headers else "plain"
    return tabulate(rows, headers=headers, tablefmt=style, colalign=align, disable_numparse=True)


def _number(value: float, digits: int) -> str:
    """Return a number with fixed digits, "-" where undefined."""
    return f"{value:z.{digits}f}" if math.isfinite(value) else "-"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"
