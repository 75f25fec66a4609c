"""From the records of runs to the figures a router is judged by."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from qos_jax.evaluation.records import COMPLETED, DROPPED, REJECTED, RequestRecords, RunTotals
from qos_jax.serving.profile import FleetProfile


class Metric(NamedTuple):
    """What one figure is called, is measured in, which way is better, and how it is computed."""

    label: str  # for tables and axes
    unit: str  # "" where dimensionless
    better: Literal["higher", "lower", "neither"]
    description: str  # the formula, in the words of the project


def _latency_metrics() -> dict[str, Metric]:
    """Return the mean and the percentiles of the four latencies."""
    latencies = {
        "latency_per_token": ("latency per token", "s/token", "E2E latency / output tokens"),
        "ttft": ("TTFT", "s", "time to first token at the server"),
        "tpot": (
            "TPOT",
            "s/token",
            "(E2E latency - network round trip - TTFT) / (output tokens - 1), where output tokens > 1",
        ),
        "e2e_latency": ("E2E latency", "s", "arrival to last token, with the network round trip"),
    }
    metrics = {}
    for name, (label, unit, formula) in latencies.items():
        metrics[f"{name}_mean_s"] = Metric(
            f"{label} mean", unit, "lower", f"mean over completed requests of {formula}"
        )
        for p in (50, 95, 99):
            text = f"{p}th percentile (linear interpolation) over completed requests of {formula}"
            metrics[f"{name}_p{p}_s"] = Metric(f"{label} p{p}", unit, "lower", text)
    return metrics


METRICS: dict[str, Metric] = {
    "average_qos": Metric(
        "average QoS",
        "",
        "higher",
        "sum of QoS / arrived; QoS = quality where completed with latency per token <= L, else 0",
    ),
    "share_within_limit": Metric(
        "share within L", "", "higher", "requests completed with latency per token <= L / arrived"
    ),
    "mean_quality": Metric("mean quality", "", "higher", "mean true quality of completed requests"),
    **_latency_metrics(),
    "arrived": Metric("arrived", "requests", "neither", "completed + rejected + dropped"),
    "completed": Metric("completed", "requests", "higher", "requests that got all their output tokens"),
    "rejected": Metric(
        "rejected", "requests", "lower", "requests refused by their expert: full queue or too long"
    ),
    "dropped": Metric("dropped", "requests", "neither", "requests the router sent to no expert"),
    "completed_share": Metric("completed share", "", "higher", "completed / arrived"),
    "rejected_share": Metric("rejected share", "", "lower", "rejected / arrived"),
    "dropped_share": Metric("dropped share", "", "neither", "dropped / arrived"),
    "preemptions_per_request": Metric(
        "preemptions per request", "", "lower", "preemptions of all requests / arrived"
    ),
    "kv_utilisation": Metric(
        "KV utilisation",
        "",
        "neither",
        "sum over experts of KV tokens x seconds / (sum of KV capacities x makespan)",
    ),
    "busy_share": Metric(
        "busy share", "", "neither", "sum over experts of busy seconds / (experts x makespan)"
    ),
    "qos_per_busy_s": Metric(
        "QoS per busy expert-second", "1/s", "higher", "sum of QoS / sum over experts of busy seconds"
    ),
    "qos_per_joule": Metric(
        "QoS per joule",
        "1/J",
        "higher",
        "sum of QoS / sum over experts of (busy s x busy W + (makespan - busy s) x idle W)",
    ),
    "goodput_per_s": Metric(
        "goodput", "requests/s", "higher", "requests completed with latency per token <= L / makespan"
    ),
}


def summarise(
    records: RequestRecords, totals: RunTotals, profile: FleetProfile, latency_limit_s: Any
) -> dict[str, np.ndarray]:
    """Return every metric of ``METRICS`` for each run.

    Args:
      records: the requests of the runs, [..., T].
      totals: what the experts did in the same runs, [..., N].
      profile: the fleet, leaves [N] (or [..., N], where runs differ in it).
      latency_limit_s: latency limit L in s/token; a scalar, or [...].

    Returns:
      For each name in ``METRICS`` an array [...] float64. A figure without a denominator (the mean
      latency where nothing completed, say) is NaN.
    """
    done = records.status == COMPLETED
    counts = {
        "completed": done.sum(-1),
        "rejected": (records.status == REJECTED).sum(-1),
        "dropped": (records.status == DROPPED).sum(-1),
    }
    arrived = np.full(done.shape[:-1], done.shape[-1])
    qos_sum = records.qos(latency_limit_s).sum(-1)
    within = records.within_limit(latency_limit_s).sum(-1)

    figures: dict[str, np.ndarray] = {
        "average_qos": _ratio(qos_sum, arrived),
        "share_within_limit": _ratio(within, arrived),
        "mean_quality": _ratio(_sum_where(records.quality, done), counts["completed"]),
    }
    tpot_s, has_tpot = _tpot(records, np.asarray(profile.network_rtt_s, np.float64))
    for name, values, counted in (
        ("latency_per_token", records.latency_per_token_s(), done),
        ("ttft", records.ttft_s, done),
        ("tpot", tpot_s, has_tpot),
        ("e2e_latency", records.latency_s, done),
    ):
        figures |= _distribution(name, values, counted)

    busy_s = totals.busy_s.sum(-1)
    idle_s = np.maximum(totals.makespan_s[..., None] - totals.busy_s, 0.0)
    busy_w = np.asarray(profile.busy_power_w, np.float64)
    idle_w = np.asarray(profile.idle_power_w, np.float64)
    energy_j = (totals.busy_s * busy_w + idle_s * idle_w).sum(-1)
    capacity = np.asarray(profile.kv_capacity_tokens, np.float64).sum(-1)
    figures |= {"arrived": arrived, **counts}
    figures |= {f"{name}_share": _ratio(count, arrived) for name, count in counts.items()}
    figures |= {
        "preemptions_per_request": _ratio(records.preemptions.sum(-1), arrived),
        "kv_utilisation": _ratio(totals.kv_token_s.sum(-1), capacity * totals.makespan_s),
        "busy_share": _ratio(busy_s, totals.busy_s.shape[-1] * totals.makespan_s),
        "qos_per_busy_s": _ratio(qos_sum, busy_s),
        "qos_per_joule": _ratio(qos_sum, energy_j),
        "goodput_per_s": _ratio(within, totals.makespan_s),
    }
    return {name: np.asarray(figures[name], np.float64) for name in METRICS}


def _tpot(records: RequestRecords, network_rtt_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return TPOT [..., T] in s/token and where it is defined: completed with more than one output token."""
    expert = np.maximum(records.expert, 0)
    shape = (*expert.shape[:-1], network_rtt_s.shape[-1])
    rtt_s = np.take_along_axis(np.broadcast_to(network_rtt_s, shape), expert, axis=-1)
    decode_s = records.latency_s.astype(np.float64) - rtt_s - records.ttft_s
    counted = (records.status == COMPLETED) & (records.output_tokens > 1)
    return decode_s / np.maximum(records.output_tokens - 1, 1), counted


def _distribution(name: str, values: np.ndarray, counted: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean, p50, p95 and p99 over the last axis of the counted values [..., T]."""
    count = counted.sum(-1)
    figures = {f"{name}_mean_s": _ratio(_sum_where(values, counted), count)}
    if values.shape[-1] == 0:
        return figures | {f"{name}_p{p}_s": np.full(count.shape, np.nan) for p in (50, 95, 99)}
    ordered = np.sort(np.where(counted, values, np.nan), axis=-1)  # NaN goes last
    for p in (50, 95, 99):
        position = np.maximum(count - 1, 0) * (p / 100)
        below = np.floor(position).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(count - 1, 0))
        low, high = (
            np.take_along_axis(ordered, i[..., None], axis=-1)[..., 0].astype(np.float64)
            for i in (below, above)
        )
        figures[f"{name}_p{p}_s"] = low + (high - low) * (position - below)
    return figures


def _sum_where(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the float64 sum over the last axis of the counted values."""
    return np.asarray(np.sum(values, axis=-1, where=counted, dtype=np.float64))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return top / bottom in float64, NaN where bottom is not positive."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    result = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=result, where=bottom > 0)
    return result
