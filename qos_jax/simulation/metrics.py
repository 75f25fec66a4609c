"""From the records of runs to the figures a router is judged by."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.serving.limits import ServiceLimits, all_kept, as_limits, limits_kept
from qos_jax.serving.profile import FleetProfile
from qos_jax.simulation.prefix_spared import spared_in_all, traced_spared
from qos_jax.simulation.records import (
    COMPLETED,
    DROPPED,
    FAILED,
    REJECTED,
    REJECTED_TOO_LONG,
    RequestRecords,
    RunTotals,
    network_rtt_of,
)


class Metric(NamedTuple):
    """What one figure is called, is measured in, which way is better, and how it is computed."""

    label: str  # for tables and axes
    unit: str  # "" where dimensionless
    better: Literal["higher", "lower", "neither"]
    description: str  # the formula, in the words of the project


# What each limit is on: the name in ``share_within_NAME``, the words for it, and the limit's name.
WITHIN = {
    "latency_per_token": ("latency per token", "latency_limit_s"),
    "ttft": ("TTFT", "ttft_limit_s"),
    "tpot": ("TPOT", "tpot_limit_s"),
    "e2e": ("E2E latency", "e2e_limit_s"),
}


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
        "sum of QoS / arrived; QoS = quality where completed within every limit that is set, else 0",
    ),
    "share_within_limit": Metric(
        "share within limits", "", "higher", "requests completed within every limit that is set / arrived"
    ),
    **{
        f"share_within_{name}": Metric(
            f"share within {label}", "", "higher", f"requests completed within the limit on {label} / arrived"
        )
        for name, (label, _) in WITHIN.items()
    },
    "mean_quality": Metric("mean quality", "", "higher", "mean true quality of completed requests"),
    **_latency_metrics(),
    "arrived": Metric(
        "arrived", "requests", "neither", "completed + rejected + rejected_too_long + dropped + failed"
    ),
    "completed": Metric("completed", "requests", "higher", "requests that got all their output tokens"),
    "rejected": Metric("rejected", "requests", "lower", "requests refused by the full queue of their expert"),
    "rejected_too_long": Metric(
        "rejected as too long",
        "requests",
        "lower",
        "requests whose prompt + output exceed the KV capacity of their expert, whatever its queue",
    ),
    "dropped": Metric("dropped", "requests", "neither", "requests the router sent to no expert"),
    "failed": Metric("failed", "requests", "lower", "requests lost at a server that was down"),
    "completed_share": Metric("completed share", "", "higher", "completed / arrived"),
    "rejected_share": Metric("rejected share", "", "lower", "rejected / arrived"),
    "rejected_too_long_share": Metric("too long share", "", "lower", "rejected_too_long / arrived"),
    "dropped_share": Metric("dropped share", "", "neither", "dropped / arrived"),
    "failed_share": Metric("failed share", "", "lower", "failed / arrived"),
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
        "goodput", "requests/s", "higher", "requests completed within every limit that is set / makespan"
    ),
}


# With prefix caching, besides:
PREFIX_METRICS: dict[str, Metric] = {
    "cached_tokens": Metric(
        "cached tokens", "tokens", "higher", "prompt tokens found in the prefix cache, of completed requests"
    ),
    "hit_rate": Metric("hit rate", "", "higher", "cached tokens / prompt tokens of completed requests"),
    "prefill_saved_s": Metric(
        "prefill saved",
        "s",
        "higher",
        "sum over completed requests of prefill_per_token_s x cached tokens + prefill_per_token_sq_s x "
        "cached tokens^2, of their experts",
    ),
}
# Of sessions, besides: a router that answers sooner is asked more in the same time.
SESSION_METRICS: dict[str, Metric] = {
    "turns_per_session_hour": Metric(
        "turns per session-hour", "1/h", "higher", "completed / (sessions x makespan)"
    ),
    "qos_per_session_hour": Metric(
        "QoS per session-hour", "1/h", "higher", "sum of QoS / (sessions x makespan)"
    ),
}
ALL_METRICS = METRICS | PREFIX_METRICS | SESSION_METRICS


def metric_names(prefix_entries: int) -> tuple[str, ...]:
    """Return the metrics of runs with caches of so many entries, 0 = none; those of caches come last."""
    return (*METRICS, *(PREFIX_METRICS if prefix_entries else ()))


def summarise(
    records: RequestRecords, totals: RunTotals, profile: FleetProfile, limits: ServiceLimits | Any
) -> dict[str, np.ndarray]:
    """Return every metric of ``METRICS`` for each run.

    Args:
      records: the requests of the runs, [..., T].
      totals: what the experts did in the same runs, [..., N].
      profile: the fleet, leaves [N] (or [..., N], where runs differ in it).
      limits: the service levels, leaves [] or [...]; a number or an array is L alone, s/token.

    Returns:
      For each name in ``METRICS``, with prefix caching in ``PREFIX_METRICS`` too, an array [...] float64. A
      figure without a denominator (the mean latency where nothing completed, say) is NaN.
    """
    figures = _figures(np, np.float64, records, totals, profile, limits)
    if records.cached_tokens is None:
        return {name: np.asarray(figures[name], np.float64) for name in METRICS}
    figures |= spared_in_all(records, profile)
    return {name: np.asarray(figures[name], np.float64) for name in METRICS | PREFIX_METRICS}


def traced_summarise(
    records: Any, totals: Any, profile: FleetProfile, limits: ServiceLimits | jax.Array
) -> dict[str, jax.Array]:
    """Return the same in float32, for use inside a jitted function.

    Args:
      records: anything with the fields of :class:`RequestRecords` but ``arrival_s``, and ``prompt_tokens``
        where it has no ``cached_tokens``.
      totals: anything with the fields of :class:`RunTotals`.
      profile: as in :func:`summarise`.
      limits: as in :func:`summarise`.
    """
    figures = _figures(jnp, jnp.float32, records, totals, profile, limits)
    if records.cached_tokens is None:
        return {name: jnp.asarray(figures[name], jnp.float32) for name in METRICS}
    figures |= traced_spared(records, profile)
    return {name: jnp.asarray(figures[name], jnp.float32) for name in METRICS | PREFIX_METRICS}


def _figures(
    xp: ModuleType, dtype: Any, records: Any, totals: Any, profile: FleetProfile, limits: Any
) -> dict[str, Any]:
    """Work out every metric with NumPy or jax.numpy, in arithmetic of ``dtype``."""
    done = records.status == COMPLETED
    counts = {
        "completed": done.sum(-1),
        "rejected": (records.status == REJECTED).sum(-1),
        "rejected_too_long": (records.status == REJECTED_TOO_LONG).sum(-1),
        "dropped": (records.status == DROPPED).sum(-1),
        "failed": (records.status == FAILED).sum(-1),
    }
    arrived = xp.full(done.shape[:-1], done.shape[-1])
    output_tokens = xp.maximum(records.output_tokens, 1).astype(dtype)
    per_token_s = records.latency_s.astype(dtype) / output_tokens
    rtt_s = xp.asarray(profile.network_rtt_s, dtype)
    kept = limits_kept(
        jax.tree.map(lambda limit_s: xp.asarray(limit_s, dtype)[..., None], as_limits(limits)),
        records.latency_s.astype(dtype),
        records.ttft_s.astype(dtype),
        output_tokens,
        network_rtt_of(xp, rtt_s, records.expert),
        xp,
    )
    in_limit = done & all_kept(kept)
    qos_sum = _sum_where(xp, dtype, records.quality, in_limit)
    within = in_limit.sum(-1)

    def ratio(top: Any, bottom: Any) -> Any:
        """Return top / bottom, NaN where bottom is not positive."""
        top, bottom = xp.broadcast_arrays(xp.asarray(top, dtype), xp.asarray(bottom, dtype))
        return xp.where(bottom > 0, top / xp.where(bottom > 0, bottom, 1), xp.nan)

    def distribution(name: str, values: Any, counted: Any) -> dict[str, Any]:
        count = counted.sum(-1)
        mean = ratio(_sum_where(xp, dtype, values, counted), count)
        return {f"{name}_mean_s": mean} | _percentiles(xp, dtype, name, values, counted)

    figures = {
        "average_qos": ratio(qos_sum, arrived),
        "share_within_limit": ratio(within, arrived),
        **{
            f"share_within_{name}": ratio((done & kept.get(limit, True)).sum(-1), arrived)
            for name, (_, limit) in WITHIN.items()
        },
        "mean_quality": ratio(_sum_where(xp, dtype, records.quality, done), counts["completed"]),
        **distribution("latency_per_token", per_token_s, done),
        **distribution("ttft", records.ttft_s, done),
        **distribution("tpot", *_tpot(xp, dtype, records, rtt_s)),
        **distribution("e2e_latency", records.latency_s, done),
    }
    busy_s = totals.busy_s.sum(-1)
    idle_s = xp.maximum(totals.makespan_s[..., None] - totals.busy_s, 0.0)
    busy_w = xp.asarray(profile.busy_power_w, dtype)
    idle_w = xp.asarray(profile.idle_power_w, dtype)
    energy_j = (totals.busy_s * busy_w + idle_s * idle_w).sum(-1)
    capacity = xp.asarray(profile.kv_capacity_tokens, dtype).sum(-1)
    figures |= {"arrived": arrived, **counts}
    figures |= {f"{name}_share": ratio(count, arrived) for name, count in counts.items()}
    return figures | {
        "preemptions_per_request": ratio(records.preemptions.sum(-1), arrived),
        "kv_utilisation": ratio(totals.kv_token_s.sum(-1), capacity * totals.makespan_s),
        "busy_share": ratio(busy_s, totals.busy_s.shape[-1] * totals.makespan_s),
        "qos_per_busy_s": ratio(qos_sum, busy_s),
        "qos_per_joule": ratio(qos_sum, energy_j),
        "goodput_per_s": ratio(within, totals.makespan_s),
    }


def _tpot(xp: ModuleType, dtype: Any, records: Any, network_rtt_s: Any) -> tuple[Any, Any]:
    """Return TPOT [..., T] in s/token and where it is defined: completed with more than one output token."""
    rtt_s = network_rtt_of(xp, network_rtt_s, records.expert)
    decode_s = records.latency_s.astype(dtype) - rtt_s - records.ttft_s.astype(dtype)
    counted = (records.status == COMPLETED) & (records.output_tokens > 1)
    return decode_s / xp.maximum(records.output_tokens - 1, 1).astype(dtype), counted


def _percentiles(xp: ModuleType, dtype: Any, name: str, values: Any, counted: Any) -> dict[str, Any]:
    """Return p50, p95 and p99 over the last axis of the counted values [..., T]."""
    count = counted.sum(-1)
    if values.shape[-1] == 0:
        return {f"{name}_p{p}_s": xp.full(count.shape, xp.nan) for p in (50, 95, 99)}
    ordered = xp.sort(xp.where(counted, values, xp.nan), axis=-1)  # NaN goes last
    last = xp.maximum(count - 1, 0)
    figures = {}
    for p in (50, 95, 99):
        position = last.astype(dtype) * (p / 100)
        below = xp.floor(position).astype(last.dtype)
        above = xp.minimum(below + 1, last)
        low, high = (
            xp.take_along_axis(ordered, i[..., None], axis=-1)[..., 0].astype(dtype) for i in (below, above)
        )
        figures[f"{name}_p{p}_s"] = low + (high - low) * (position - below.astype(dtype))
    return figures


def _sum_where(xp: ModuleType, dtype: Any, values: Any, counted: Any) -> Any:
    """Return the sum over the last axis of the counted values."""
    return xp.sum(values, axis=-1, where=counted, dtype=dtype)
