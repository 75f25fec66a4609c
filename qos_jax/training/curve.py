"""Learning curves: plots, CSV files and text, of one router and of several seeds."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from qos_jax.files import atomic_write
from qos_jax.runs import plot_style
from qos_jax.runs.statistics import Estimate, mean_ci, paired_difference
from qos_jax.training.hyper import Together, label
from qos_jax.training.judge import BASELINE, LEARNED, CaseScore, Judgement

COLUMNS = (
    "update",
    "workload",
    "arrival_rate_per_s",
    "average_qos",
    "ci_low",
    "ci_high",
    "baseline_qos",
    "diff",
    "diff_low",
    "diff_high",
    "n",
    "baseline",
)


def write_learning_curve_csv(path: str | os.PathLike[str], judged: Sequence[Judgement]) -> None:
    """Write a line per evaluation and case: QoS, the baseline's, and their paired difference, with 95% CI."""
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for judgement in judged:
            for score in judgement.scores:
                ours = mean_ci(score.average_qos)
                gain = paired_difference(score.average_qos, score.baseline_qos)
                numbers = [ours.mean, ours.low, ours.high, score.baseline_qos.mean()]
                numbers += [gain.mean, gain.low, gain.high]
                case = (judgement.update, score.workload, score.arrival_rate_per_s)
                writer.writerow([*case, *map(_cell, numbers), ours.n, BASELINE])


def learning_curve(judged: Sequence[Judgement], phase_ends: Mapping[str, int]) -> Any:
    """Return a figure of QoS, and of its difference to the baseline, against updates, with 95% intervals.

    Args:
      judged: in order of updates.
      phase_ends: last update of each phase of the run, by name.

    Returns:
      A ``matplotlib.figure.Figure``, with the errors of :func:`qos_jax.runs.plot_style.new_figure`.
    """
    figure = plot_style.new_figure(10.5, 4.2)
    left, right = figure.subplots(1, 2)
    updates = [judgement.update for judgement in judged]
    names = [_case_name(score) for score in judged[0].scores]
    for index, (name, style) in enumerate(zip(names, plot_style.expert_styles(names), strict=True)):
        scores = [judgement.scores[index] for judgement in judged]
        _line(left, updates, [mean_ci(score.average_qos) for score in scores], style, name)
        left.axhline(scores[0].baseline_qos.mean(), color=style.colour, linestyle=":", linewidth=1)
        gains = [paired_difference(score.average_qos, score.baseline_qos) for score in scores]
        _line(right, updates, gains, style, None, band=False)
    every = plot_style.Style("#000000", "o", "-")
    _line(right, updates, [judgement.difference for judgement in judged], every, "mean of all")
    right.axhline(0.0, color="black", linewidth=1)
    plot_style.tidy(left, "updates", f"average QoS (dotted: {BASELINE})")
    plot_style.tidy(right, "updates", f"difference to {BASELINE}, same requests")
    for name, end in phase_ends.items():
        for axes in (left, right):
            axes.axvline(end, color="#BBBBBB", linewidth=1, zorder=0)
        left.annotate(f"{name} ", (end, 1.01), xycoords=("data", "axes fraction"), fontsize=9, ha="right")
    figure.legend(loc="outside right center", frameon=False)
    return figure


def render_judgement(judgement: Judgement) -> str:
    """Return an evaluation as a table for the terminal: a line per case, and one of their mean."""
    lines = [
        [
            _case_name(score),
            _interval(mean_ci(score.average_qos)),
            f"{score.baseline_qos.mean():.3f}",
            _interval(paired_difference(score.average_qos, score.baseline_qos), "+"),
        ]
        for score in judgement.scores
    ]
    baseline = sum(score.baseline_qos.mean() for score in judgement.scores) / len(judgement.scores)
    lines.append(["mean", _interval(judgement.qos), f"{baseline:.3f}", _interval(judgement.difference, "+")])
    heads = ("workload", f"{LEARNED} [95% CI]", BASELINE, "difference [95% CI]")
    return tabulate(lines, heads, tablefmt="simple", disable_numparse=True)


def render_difference(judgement: Judgement) -> str:
    """Return an evaluation in one line."""
    gain = _interval(judgement.difference, "+")
    return (
        f"update {judgement.update:,}: average QoS {float(judgement.qos.mean):.4f}, {gain} against {BASELINE}"
    )


def _line(
    axes: Any,
    updates: Sequence[int],
    points: Sequence[Estimate],
    style: Any,
    label: str | None,
    band: bool = True,
) -> None:
    means = [float(point.mean) for point in points]
    axes.plot(
        updates,
        means,
        color=style.colour,
        linestyle=style.dashes,
        marker=style.marker,
        markersize=4,
        label=label,
    )
    if band:
        low, high = ([float(getattr(point, end)) for point in points] for end in ("low", "high"))
        axes.fill_between(updates, low, high, color=style.colour, alpha=0.15, linewidth=0)


def _case_name(score: CaseScore) -> str:
    return f"{score.workload}, {score.arrival_rate_per_s:.3g}/s"


def _interval(estimate: Estimate, sign: str = "") -> str:
    mean, low, high = (float(value) for value in (estimate.mean, estimate.low, estimate.high))
    if low != low:  # of one seed there is no interval
        return f"{mean:{sign}z.4f}"
    return f"{mean:{sign}z.4f} [{low:{sign}z.4f}, {high:{sign}z.4f}]"


def _cell(value: Any) -> object:
    return "" if value != value else float(value)


SEED_COLUMNS = ("average_qos", "ci_low", "ci_high", "difference", "diff_low", "diff_high", "seeds")


@dataclasses.dataclass(frozen=True)
class Point:
    """An evaluation of all routers after an update; averages over the evaluation's cases."""

    update: int
    average_qos: np.ndarray  # [R], in the order of ``Together``
    difference: np.ndarray  # [R], to the baseline on the same requests


def write_seed_curve_csv(path: str | os.PathLike[str], points: Sequence[Point], together: Together) -> None:
    """Write a line per evaluation and setting, mean and 95% interval over the seeds of training."""
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("update", *together.names, *SEED_COLUMNS))
        for point in points:
            for index, setting in enumerate(together.settings):
                qos, gain = (mean_ci(each[index]) for each in _by_setting(point, together))
                numbers = (qos.mean, qos.low, qos.high, gain.mean, gain.low, gain.high)
                shown = ["" if np.isnan(value) else float(value) for value in numbers]
                writer.writerow([point.update, *setting.values(), *shown, qos.n])


def seed_curve(points: Sequence[Point], phase_ends: Mapping[str, int], together: Together) -> Any:
    """Return a figure of QoS, and of its difference to the baseline, against updates.

    The band is the 95% interval of a setting's mean over seeds; thin lines, of a single setting, are seeds.
    """
    figure = plot_style.new_figure(10.5, 4.2)
    updates = [point.update for point in points]
    values = np.array([_by_setting(point, together) for point in points])  # [points, 2, settings, S]
    names = [label(setting) for setting in together.settings] if together.names else ["han"]
    styles = plot_style.policy_styles(names)
    labels = ("average QoS", f"difference to {BASELINE}, same requests")
    for kind, axes in enumerate(figure.subplots(1, 2)):
        for index, name in enumerate(names):
            style, estimate = styles[name], mean_ci(values[:, kind, index])
            if len(names) == 1:
                axes.plot(updates, values[:, kind, index], color=style.colour, linewidth=0.6, alpha=0.5)
            axes.plot(
                *(updates, estimate.mean),
                color=style.colour,
                linestyle=style.dashes,
                marker=style.marker,
                markersize=4,
                label=name,
            )
            axes.fill_between(
                updates, estimate.low, estimate.high, color=style.colour, alpha=0.2, linewidth=0
            )
        for end in phase_ends.values():
            axes.axvline(end, color="#BBBBBB", linewidth=1, zorder=0)
        plot_style.tidy(axes, "updates", labels[kind])
        if together.names and kind == 0:
            axes.legend(fontsize=7)
    figure.suptitle(f"{together.seeds} seeds, mean and 95% CI", fontsize=10)
    return figure


def render_points(points: Sequence[Point], together: Together) -> str:
    """Return the curve as a table for the terminal."""
    lines = []
    for point in points:
        for index, setting in enumerate(together.settings):
            estimates = [mean_ci(each[index]) for each in _by_setting(point, together)]
            cells = [f"{float(e.mean):.4f} [{float(e.low):.4f}, {float(e.high):.4f}]" for e in estimates]
            lines.append([f"{point.update:,}", *([label(setting)] if together.names else []), *cells])
    heads = ["update", *(["setting"] if together.names else [])]
    heads += ["average QoS [95% CI over seeds]", f"difference to {BASELINE} [95% CI]"]
    return tabulate(lines, heads, tablefmt="simple", disable_numparse=True)


def _by_setting(point: Point, together: Together) -> np.ndarray:
    """Return QoS and difference, [2, settings, S]."""
    both = np.stack([point.average_qos, point.difference])
    return both.reshape(2, len(together.settings), together.seeds)


def render_point(point: Point) -> str:
    """Return an evaluation in one line."""
    qos, gain = mean_ci(point.average_qos), mean_ci(point.difference)
    return (
        f"update {point.update:,}: average QoS {float(qos.mean):.4f}, {float(gain.mean):+z.4f} against "
        f"{BASELINE}, mean of {qos.n} routers"
    )
