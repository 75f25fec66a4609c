"""How several routers trained at once got better: mean and interval over seeds, as CSV, plot and text."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from qos_jax.evaluation import plot_style
from qos_jax.evaluation.judge import BASELINE
from qos_jax.evaluation.statistics import mean_ci
from qos_jax.files import atomic_write

COLUMNS = ("update", "average_qos", "ci_low", "ci_high", "difference", "diff_low", "diff_high", "seeds")


@dataclasses.dataclass(frozen=True)
class Point:
    """Where the routers of all seeds stand after an update; averages over the cases of the judge."""

    update: int
    average_qos: np.ndarray  # [S]
    difference: np.ndarray  # [S], to the baseline on the same requests


def write_curve_csv(path: str | os.PathLike[str], points: Sequence[Point]) -> None:
    """Write a line per evaluation, mean and 95% interval over the seeds of training."""
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for point in points:
            qos, gain = mean_ci(point.average_qos), mean_ci(point.difference)
            numbers = (qos.mean, qos.low, qos.high, gain.mean, gain.low, gain.high)
            shown = ["" if np.isnan(value) else float(value) for value in numbers]
            writer.writerow([point.update, *shown, qos.n])


def curve(points: Sequence[Point], phase_ends: Mapping[str, int]) -> Any:
    """Return a figure of QoS, and of its difference to the baseline, against updates.

    Thin lines are seeds; the band is the 95% interval of their mean.
    """
    figure = plot_style.new_figure(10.5, 4.2)
    updates = [point.update for point in points]
    labels = ("average QoS", f"difference to {BASELINE}, same requests")
    for axes, name, label in zip(figure.subplots(1, 2), ("average_qos", "difference"), labels, strict=True):
        values = np.array([getattr(point, name) for point in points])  # [points, S]
        estimate = mean_ci(values)
        style = plot_style.policy_styles(["han"])["han"]
        axes.plot(updates, values, color=style.colour, linewidth=0.6, alpha=0.5)
        axes.plot(updates, estimate.mean, color=style.colour, marker=style.marker, markersize=4)
        axes.fill_between(updates, estimate.low, estimate.high, color=style.colour, alpha=0.2, linewidth=0)
        for end in phase_ends.values():
            axes.axvline(end, color="#BBBBBB", linewidth=1, zorder=0)
        plot_style.tidy(axes, "updates", label)
    figure.suptitle(f"{values.shape[1]} seeds, mean and 95% CI", fontsize=10)
    return figure


def render_points(points: Sequence[Point]) -> str:
    """Return the curve as a table for the terminal."""
    lines = []
    for point in points:
        estimates = (mean_ci(point.average_qos), mean_ci(point.difference))
        cells = [f"{float(e.mean):.4f} [{float(e.low):.4f}, {float(e.high):.4f}]" for e in estimates]
        lines.append([f"{point.update:,}", *cells])
    heads = ("update", "average QoS [95% CI over seeds]", f"difference to {BASELINE} [95% CI]")
    return tabulate(lines, heads, tablefmt="simple", disable_numparse=True)


def render_point(point: Point) -> str:
    """Return an evaluation in one line."""
    qos, gain = mean_ci(point.average_qos), mean_ci(point.difference)
    return (
        f"update {point.update:,}: average QoS {float(qos.mean):.4f}, {float(gain.mean):+z.4f} against "
        f"{BASELINE}, mean of {qos.n} seeds"
    )
