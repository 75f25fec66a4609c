"""The key figures of a single run as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from qos_jax.evaluation.comparison_table import OTHER_LIMITS, limits_text
from qos_jax.serving import LIMITS
from qos_jax.serving.state import LLAMA_CPP
from qos_jax.simulation.metrics import ALL_METRICS, SESSION_METRICS, WITHIN
from qos_jax.simulation.records import WOULD_WAIT

_LATENCIES = (
    ("latency per token", "latency_per_token", "ms", 1000, 1),
    ("TPOT", "tpot", "ms", 1000, 1),
    ("TTFT", "ttft", "s", 1, 3),
    ("E2E latency", "e2e_latency", "s", 1, 2),
)


CACHED = ("cached", "prefill saved (s)")  # columns of an expert with prefix caching

_COUNTS = (
    ("arrived", "arrived"),
    ("completed", "completed"),
    ("rejected (full queue)", "rejected"),
    ("rejected (too long)", "rejected_too_long"),
    ("dropped", "dropped"),
    ("failed", "failed"),
)


def render_run(summary: Mapping[str, Any]) -> str:
    """Return the key figures of ``single_run.summarise_run`` in three small tables."""
    s = summary
    limits = {name: s[name] for name in LIMITS}
    only_l = all(limits[name] is None for name in OTHER_LIMITS)
    talk = s["sessions"]
    asked = s["requests"] if talk is None else f"{talk['users']:,} users who think {talk['think_s']:.4g} s"
    head = f"{s['policy']}{_world(s)} on {s['fleet']}, {s['scheduler']}, {asked}, "
    head += f"L = {1000 * s['latency_limit_s']:.4g} ms/token" if only_l else limits_text(limits)
    figures = [
        ["average QoS", _number(s["average_qos"], 4)],
        ["within L" if only_l else "within all limits", _percent(s["share_within_limit"])],
        *(
            [f"within {label}", _percent(s[f"share_within_{name}"])]
            for name, (label, limit) in WITHIN.items()
            if not only_l and limits[limit] is not None
        ),
        ["mean quality", _number(s["mean_quality"], 4)],
        *([label, f"{s[count]:,}"] for label, count in _COUNTS if s[count] or count != "failed"),
        ["preemptions per request", _number(s["preemptions_per_request"], 3)],
        ["busy share", _percent(s["busy_share"])],
        ["KV utilisation", _percent(s["kv_utilisation"])],
        *([["cached prompt tokens", _percent(s["hit_rate"])]] if "hit_rate" in s else []),
        ["QoS per busy second", _number(s["qos_per_busy_s"], 3)],
        *([ALL_METRICS[name].label, _number(s[name], 1)] for name in SESSION_METRICS if name in s),
        ["QoS per kJ", _number(1000 * s["qos_per_joule"], 3)],
    ]
    latencies = [
        [f"{label} ({unit})"]
        + [_number(factor * s[f"{name}_{part}_s"], digits) for part in ("mean", "p50", "p95", "p99")]
        for label, name, unit, factor, digits in _LATENCIES
    ]
    cached = "hit_rate" in s
    lost = {"rejected": "rejected", "too long": "rejected_too_long"} | (
        {"failed": "failed"} if s["failed"] else {}
    )
    experts = [
        [each["expert"], *(f"{each[count]:,}" for count in ("routed", *lost.values()))]
        + [_percent(each[share]) for share in ("busy_share", "kv_utilisation")]
        + ([_percent(each["hit_rate"]), _number(each["prefill_saved_s"], 1)] if cached else [])
        for each in s["experts"]
    ]
    latency_table = _table(["", "mean", "p50", "p95", "p99"], latencies)
    expert_table = _table(
        ["expert", "routed", *lost, "busy", "KV used", *(CACHED if cached else ())], experts
    )
    parts = [head, _table([], figures), latency_table, expert_table]
    if s["rejected_too_long"]:
        parts.append(
            f"note: prompt + output of {s['rejected_too_long']:,} requests exceed kv_capacity_tokens of the "
            "expert chosen, or the prompt its context limit, so no queue there can hold them"
        )
    if s["rejected"] and s["scheduler"] == LLAMA_CPP:
        parts.append(f"note: {s['rejected']:,} {WOULD_WAIT}")
    return "\n\n".join(parts)


def _world(summary: Mapping[str, Any]) -> str:
    """Return the view of a run in a world of its own as text, "" where routers see everything."""
    return f"@{summary['views'][0]}" if summary["views"] else ""


def _table(headers: list[str], rows: list[list[str]]) -> str:
    align = ["left", *["right"] * (len(rows[0]) - 1)]
    style = "simple" if headers else "plain"
    return tabulate(rows, headers=headers, tablefmt=style, colalign=align, disable_numparse=True)


def _number(value: float, digits: int) -> str:
    """Return a number with fixed digits, "-" where undefined."""
    return f"{value:z.{digits}f}" if math.isfinite(value) else "-"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"
