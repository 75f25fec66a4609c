"""Learning curves: plots, CSV files and text, of one router and of several seeds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from qos_jax.files import write_csv
from qos_jax.runs import plot_style
from qos_jax.runs.statistics import Estimate, mean_ci, paired_difference
from qos_jax.training.hyper import Together, label
from qos_jax.training.judge import BASELINE, LEARNED, CaseScore, Judgement

_CASE = ("update", "workload", "arrival_rate_per_s")
_FIGURES = ("average_qos", "ci_low", "ci_high", "baseline_qos", "diff", "diff_low", "diff_high")
COLUMNS = (*_CASE, *_FIGURES, "n", "baseline")
SEED_COLUMNS = ("average_qos", "ci_low", "ci_high", "difference", "diff_low", "diff_high", "seeds")


@dataclasses.dataclass(frozen=True)
class Point:
    """An evaluation of all routers after an update; averages over the evaluation's cases."""

    update: int
    average_qos: np.ndarray  # [R], in the order of ``Together``
    difference: np.ndarray  # [R], to the baseline on the same requests


def write_learning_curve_csv(path: str | os.PathLike[str], judged: Sequence[Judgement]) -> None:
    """Write a line per evaluation and case: QoS, the baseline's, and their paired difference, with 95% CI."""
    rows = []
    for judgement in judged:
        for score in judgement.scores:
            ours, base = mean_ci(score.average_qos), score.baseline_qos
            gain = paired_difference(score.average_qos, base)
            numbers = (ours.mean, ours.low, ours.high, base.mean(), gain.mean, gain.low, gain.high)
            case = (judgement.update, score.workload, score.arrival_rate_per_s)
            rows.append([*case, *map(_cell, numbers), ours.n, BASELINE])
    write_csv(path, COLUMNS, rows)


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
        _line(left, updates, [mean_ci(score.average_qos) for score in scores], style, name, band=0.15)
        left.axhline(scores[0].baseline_qos.mean(), color=style.colour, linestyle=":", linewidth=1)
        gains = [paired_difference(score.average_qos, score.baseline_qos) for score in scores]
        _line(right, updates, gains, style)
    every = plot_style.Style("#000000", "o", "-")
    _line(right, updates, [judgement.difference for judgement in judged], every, "mean of all", band=0.15)
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
    axes: Any, updates: Sequence[int], points: Sequence[Estimate], style: Any, name: str = "", band: float = 0
) -> None:
    """Draw means against updates, and their intervals as a band of that opacity; 0 = no band."""
    mean, low, high = ([float(getattr(point, part)) for point in points] for part in ("mean", "low", "high"))
    look = {"color": style.colour, "linestyle": style.dashes, "marker": style.marker}
    axes.plot(updates, mean, markersize=4, label=name, **look)
    if band:
        axes.fill_between(updates, low, high, color=style.colour, alpha=band, linewidth=0)


def _case_name(score: CaseScore) -> str:
    return f"{score.workload}, {score.arrival_rate_per_s:.3g}/s"


def _interval(estimate: Estimate, sign: str = "") -> str:
    mean, low, high = (float(value) for value in (estimate.mean, estimate.low, estimate.high))
    if low != low:  # of one seed there is no interval
        return f"{mean:{sign}z.4f}"
    return f"{mean:{sign}z.4f} [{low:{sign}z.4f}, {high:{sign}z.4f}]"


def _cell(value: Any) -> object:
    return "" if value != value else float(value)


def write_seed_curve_csv(path: str | os.PathLike[str], points: Sequence[Point], together: Together) -> None:
    """Write a line per evaluation and setting, mean and 95% interval over the seeds of training."""
    rows = []
    for point in points:
        for index, setting in enumerate(together.settings):
            qos, gain = (mean_ci(each[index]) for each in _by_setting(point, together))
            numbers = (qos.mean, qos.low, qos.high, gain.mean, gain.low, gain.high)
            rows.append([point.update, *setting.values(), *map(_cell, numbers), qos.n])
    write_csv(path, ("update", *together.names, *SEED_COLUMNS), rows)


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
            style, ours = styles[name], values[:, kind, index]  # [points, S]
            if len(names) == 1:
                axes.plot(updates, ours, color=style.colour, linewidth=0.6, alpha=0.5)
            _line(axes, updates, [mean_ci(each) for each in ours], style, name, band=0.2)
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
