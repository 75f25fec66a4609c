"""How routers trained at once got better: mean and interval over seeds by setting, as CSV, plot and text."""

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
from qos_jax.runs.statistics import mean_ci
from qos_jax.training.hyper import Together, label
from qos_jax.training.judge import BASELINE

COLUMNS = ("average_qos", "ci_low", "ci_high", "difference", "diff_low", "diff_high", "seeds")


@dataclasses.dataclass(frozen=True)
class Point:
    """Where all routers stand after an update; averages over the cases of the judge."""

    update: int
    average_qos: np.ndarray  # [R], in the order of ``Together``
    difference: np.ndarray  # [R], to the baseline on the same requests


def write_curve_csv(path: str | os.PathLike[str], points: Sequence[Point], together: Together) -> None:
    """Write a line per evaluation and setting, mean and 95% interval over the seeds of training."""
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("update", *together.names, *COLUMNS))
        for point in points:
            for index, setting in enumerate(together.settings):
                qos, gain = (mean_ci(each[index]) for each in _by_setting(point, together))
                numbers = (qos.mean, qos.low, qos.high, gain.mean, gain.low, gain.high)
                shown = ["" if np.isnan(value) else float(value) for value in numbers]
                writer.writerow([point.update, *setting.values(), *shown, qos.n])


def curve(points: Sequence[Point], phase_ends: Mapping[str, int], together: Together) -> Any:
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
    """QoS and difference, [2, settings, S]."""
    both = np.stack([point.average_qos, point.difference])
    return both.reshape(2, len(together.settings), together.seeds)


def render_point(point: Point) -> str:
    """Return an evaluation in one line."""
    qos, gain = mean_ci(point.average_qos), mean_ci(point.difference)
    return (
        f"update {point.update:,}: average QoS {float(qos.mean):.4f}, {float(gain.mean):+z.4f} against "
        f"{BASELINE}, mean of {qos.n} routers"
    )
