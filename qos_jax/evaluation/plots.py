"""The plots of an evaluation: QoS against rate, latency CDF, expert shares, timeline of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qos_jax.evaluation.comparison_table import ComparisonRow, limits_text
from qos_jax.policies.registry import router_of
from qos_jax.runs import plot_style
from qos_jax.serving import LIMITS, ServiceLimits
from qos_jax.simulation.records import COMPLETED, DROPPED, FAILED, REJECTED, REJECTED_TOO_LONG, RequestRecords

_LEGEND_BESIDE = {"loc": "outside right center", "frameon": False}
_MAX_POINTS = 2000  # of a curve: more than the pixels it is drawn on
_MAX_SAMPLES = 350  # of a line of the timeline


def qos_vs_rate(rows: Sequence[ComparisonRow]) -> Any:
    """Return a figure of average QoS with its 95% interval per policy, one panel per workload.

    A workload at several arrival rates is drawn as curves against the rate; one at a single rate as
    one point per policy, best first.

    Args:
      rows: of :func:`qos_jax.evaluation.comparison_table`; those of ``average_qos`` are drawn, training runs
        of a router together.

    Returns:
      A ``matplotlib.figure.Figure``; so for every function here, with the errors of
      :func:`qos_jax.runs.plot_style.new_figure`.
    """
    results = [row for row in rows if row.metric == "average_qos" and row.policy == router_of(row.policy)]
    workloads = list(dict.fromkeys(result.workload for result in results))
    policies = list(dict.fromkeys(result.policy for result in results))
    styles = plot_style.policy_styles(policies)
    figure, panels = plot_style.new_panels(len(workloads), 4.6, 4.2, margin_in=2.2)
    handles: dict[str, Any] = {}
    for axes, workload in zip(panels, workloads, strict=True):
        chosen = [result for result in results if result.workload == workload]
        limits = dict.fromkeys(limits_text({name: getattr(each, name) for name in LIMITS}) for each in chosen)
        axes.set_title(f"{workload}, {'; '.join(limits)}", fontsize=10)
        if len({result.arrival_rate_per_s for result in chosen}) > 1:
            handles |= _rate_curves(axes, chosen, styles)
        else:
            _rate_points(axes, chosen, styles)
    if handles:
        figure.legend(handles.values(), handles.keys(), **_LEGEND_BESIDE)
    return figure


def limit_cdfs(
    records: Mapping[str, RequestRecords], limits: ServiceLimits, network_rtt_s: Any
) -> dict[str, Any]:
    """Return a figure of :func:`latency_cdf` for L, and one for each other limit that is set, by its name.

    Args:
      records: per policy, of any shape; all its runs are pooled.
      limits: numbers.
      network_rtt_s: [N] seconds, of each expert.
    """
    kinds = {"ttft_limit_s": "ttft", "tpot_limit_s": "tpot", "e2e_limit_s": "e2e"}
    figures = {"latency_cdf": latency_cdf(records, float(limits.latency_limit_s))}
    for limit, kind in kinds.items():
        if getattr(limits, limit) is not None:
            figures[f"{kind}_cdf"] = latency_cdf(records, float(getattr(limits, limit)), kind, network_rtt_s)
    return figures


# What a curve may be of: the words, the limit's, the unit, and the factor to it from seconds.
_CDF_KINDS = {
    "latency_per_token": ("latency per token", "L", "ms/token", 1000),
    "ttft": ("TTFT", "TTFT limit", "s", 1),
    "tpot": ("TPOT", "TPOT limit", "ms/token", 1000),
    "e2e": ("E2E latency", "E2E limit", "s", 1),
}


def latency_cdf(
    records: Mapping[str, RequestRecords],
    limit_s: float,
    kind: str = "latency_per_token",
    network_rtt_s: Any = 0.0,
) -> Any:
    """Return a figure of the share of arrived requests that completed within a latency.

    Each curve ends at the share that completed at all (of TPOT with more than one token), and crosses the
    line of the limit at the share within it.

    Args:
      records: per policy, of any shape; all its runs are pooled.
      limit_s: the limit, seconds or s/token; an infinite one has no line.
      kind: which latency, a name in ``_CDF_KINDS``.
      network_rtt_s: of each expert, [N] seconds, for TPOT.
    """
    words, line, unit, factor = _CDF_KINDS[kind]
    figure = plot_style.new_figure(7.6, 4.4)
    axes = figure.subplots()
    ends = []
    for index, (policy, style) in enumerate(plot_style.policy_styles(list(records)).items()):
        run = records[policy]
        latency = np.sort(_completed_s(run, kind, network_rtt_s))
        if latency.size == 0:
            axes.plot([], [], color=style.colour, linestyle=style.dashes, label=f"{policy} (none completed)")
            continue
        picked = np.unique(np.linspace(0, latency.size - 1, _MAX_POINTS).round().astype(int))
        ends.append(np.quantile(latency, (0.002, 0.995)))
        axes.plot(
            latency[picked] * factor,
            (picked + 1) / run.status.size,
            color=style.colour,
            linestyle=style.dashes,
            marker=style.marker,
            markevery=(40 + 25 * index % 300, 300),  # apart from those of its neighbours
            markersize=5,
            label=policy,
        )
    if math.isfinite(limit_s):
        axes.axvline(limit_s * factor, color="black", linewidth=1)
        text = f" {line} = {limit_s * factor:.4g} {unit}"
        axes.annotate(text, (limit_s * factor, 1.01), xycoords=("data", "axes fraction"), fontsize=9)
        ends.append((limit_s, limit_s))
    if ends:
        _log_axis(axes, np.ravel(ends) * factor)
    axes.set_ylim(0, 1)
    plot_style.tidy(axes, f"{words} ({unit.removesuffix('/token')})", "share of arrived requests")
    figure.legend(**_LEGEND_BESIDE)
    return figure


def _completed_s(run: RequestRecords, kind: str, network_rtt_s: Any) -> np.ndarray:
    """Return a latency of the requests that completed, [n] seconds or s/token."""
    done = run.status == COMPLETED
    if kind == "latency_per_token":
        return np.asarray(run.latency_per_token_s()[done])
    if kind == "tpot":
        return np.asarray(run.tpot_s(network_rtt_s)[done & (run.output_tokens > 1)])
    return np.asarray((run.ttft_s if kind == "ttft" else run.latency_s)[done], np.float64)


def expert_shares(records: Mapping[str, RequestRecords], expert_names: Sequence[str]) -> Any:
    """Return a figure of where each policy's requests went: completed per expert, rejected, dropped, failed.

    Rejected ones are shown apart by cause: a full queue, or too long for the expert's KV cache.

    Args:
      records: per policy, of any shape; all its runs are pooled.
      expert_names: the N experts' names, by index.
    """
    experts = plot_style.expert_styles(expert_names)
    parts = [(name, style.colour, style.hatch) for name, style in zip(expert_names, experts, strict=True)]
    shares = np.array([_shares(run, len(expert_names)) for run in records.values()])  # [P, N + 4]
    parts += [
        ("rejected", plot_style.REJECTED_COLOUR, "///"),
        ("too long", plot_style.TOO_LONG_COLOUR, "xxx"),
        ("dropped", plot_style.DROPPED_COLOUR, "..."),
        ("failed", plot_style.FAILED_COLOUR, "ooo"),
    ]
    figure = plot_style.new_figure(8.6, 1.3 + 0.34 * len(records))
    axes = figure.subplots()
    left = np.zeros(len(records))
    for (name, colour, hatch), share in zip(parts, shares.T, strict=True):
        if name in expert_names or share.any():
            axes.barh(
                list(records),
                share,
                left=left,
                height=0.72,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                label=name,
            )
        for row, (start, width) in enumerate(zip(left, share, strict=True)):
            if width >= 0.05:
                axes.text(
                    start + width / 2, row, f"{100 * width:.0f}", ha="center", va="center", **_on(colour)
                )
        left += share
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.margins(y=0.01)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    plot_style.tidy(axes, "share of arrived requests (%)", "")
    axes.grid(False, axis="y")
    figure.legend(**_LEGEND_BESIDE)
    return figure


def timeline(
    time_s: np.ndarray,
    running: np.ndarray,
    waiting: np.ndarray,
    kv_share: np.ndarray,
    expert_names: Sequence[str],
    title: str = "",
) -> Any:
    """Return a figure of one run over time: running and waiting requests and KV cache used, per expert.

    Of more than 350 samples, means of equally many neighbours are drawn, so that lines stay apart.

    Args:
      time_s: [K] seconds since the start of the run, ascending.
      running: [K, N] requests running on each expert.
      waiting: [K, N] requests waiting at each expert.
      kv_share: [K, N] share of each expert's KV cache in use, in [0, 1].
      expert_names: the N experts' names, by index.
      title: which run it is.
    """
    every = -(-len(time_s) // _MAX_SAMPLES)
    figure = plot_style.new_figure(9.6, 6.4)
    panels = figure.subplots(3, 1, sharex=True)
    labels = ("running requests", "waiting requests", "KV cache used (%)")
    for axes, values, label in zip(
        panels, (running, waiting, 100 * np.asarray(kv_share)), labels, strict=True
    ):
        for index, style in enumerate(plot_style.expert_styles(expert_names)):
            axes.plot(
                np.asarray(time_s)[::every],
                _block_means(np.asarray(values)[:, index], every),
                color=style.colour,
                linestyle=style.dashes,
                linewidth=1.2,
                label=expert_names[index],
            )
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.yaxis.get_major_locator().set_params(integer=True)
        plot_style.tidy(axes, "", label)
    panels[0].set_title(title, fontsize=10)
    panels[-1].set_xlabel("time (s)")
    figure.legend(handles=panels[0].get_lines(), **_LEGEND_BESIDE)
    return figure


def _rate_curves(axes: Any, results: Sequence[ComparisonRow], styles: Mapping[str, Any]) -> dict[str, Any]:
    """Draw QoS against rate with its interval; return the legend's handle per policy."""
    handles = {}
    for policy in dict.fromkeys(result.policy for result in results):
        mine = sorted((r for r in results if r.policy == policy), key=lambda r: r.arrival_rate_per_s)
        mean, low, high = np.array([_qos_interval(result) for result in mine]).T
        rates = [result.arrival_rate_per_s for result in mine]
        style = styles[policy]
        axes.fill_between(rates, low, high, color=style.colour, alpha=0.15, linewidth=0)
        (handles[policy],) = axes.plot(
            rates, mean, color=style.colour, marker=style.marker, linestyle=style.dashes, markersize=5
        )
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))
    plot_style.tidy(axes, "arrival rate (requests/s)", "average QoS, mean and 95% CI")
    return handles


def _rate_points(axes: Any, results: Sequence[ComparisonRow], styles: Mapping[str, Any]) -> None:
    """Draw one point per policy with its interval, best at the top."""
    ordered = sorted(results, key=lambda result: result.mean)
    for row, result in enumerate(ordered):
        mean, low, high = _qos_interval(result)
        style = styles[result.policy]
        axes.plot([low, high], [row, row], color=style.colour, linewidth=2)
        axes.plot([mean], [row], color=style.colour, marker=style.marker, markersize=6)
    axes.set_yticks(range(len(ordered)), [result.policy for result in ordered])
    axes.set_xlim(left=max(axes.get_xlim()[0], 0))
    rate = ordered[0].arrival_rate_per_s
    plot_style.tidy(axes, f"average QoS at {rate:.4g} requests/s, mean and 95% CI", "")


def _qos_interval(row: ComparisonRow) -> tuple[float, float, float]:
    """Return mean, low and high of the average QoS; the mean alone where there is no interval."""
    low, high = (end if np.isfinite(end) else row.mean for end in (row.ci_low, row.ci_high))
    return row.mean, low, high


def _shares(run: RequestRecords, experts: int) -> np.ndarray:
    """Return the shares of arrived requests: completed at each expert, then lost by cause; [N + 4]."""
    served = np.bincount(run.expert[run.status == COMPLETED], minlength=experts)
    lost = [(run.status == cause).sum() for cause in (REJECTED, REJECTED_TOO_LONG, DROPPED, FAILED)]
    return np.append(served, lost) / max(run.status.size, 1)


def _block_means(values: np.ndarray, every: int) -> np.ndarray:
    """Return the mean of each ``every`` neighbours of [K] values, the last block perhaps shorter."""
    starts = np.arange(0, len(values), every)
    return np.add.reduceat(values.astype(np.float64), starts) / np.diff(np.append(starts, len(values)))


def _log_axis(axes: Any, values: np.ndarray) -> None:
    """Show the x axis from the least to the largest value, in logs where they span a decade."""
    low, high = values.min(), values.max()
    if high / low > 8:
        axes.set_xscale("log", subs=(2, 5))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        axes.set_xlim(low / 1.1, high * 1.1)
    else:
        axes.set_xlim(0, high * 1.05)


def _on(colour: str) -> dict[str, Any]:
    """Return text options legible on a bar of the colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    return {"color": "black" if bright else "white", "fontsize": 8}
