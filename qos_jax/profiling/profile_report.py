"""A plot of predicted against measured times of a fitted profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from qos_jax.runs import plot_style

_MAX_POINTS = 4000  # of a panel, evenly chosen


class Agreement(NamedTuple):
    """Predicted and measured times of R rows."""

    predicted_s: np.ndarray  # [R] seconds
    measured_s: np.ndarray  # [R] seconds
    held_out: np.ndarray | None  # [R] bool, rows the prediction never saw; None = it saw all


def predicted_against_measured(panels: Mapping[str, Agreement]) -> Any:
    """Return a figure with a panel per kind of time, both axes logarithmic, the diagonal and +-10% drawn.

    Args:
      panels: what to draw by name, at least one.

    Returns:
      A ``matplotlib.figure.Figure``, with the errors of :func:`qos_jax.runs.plot_style.new_figure`.
    """
    figure = plot_style.new_figure(4.4 * len(panels), 4.2)
    fitted, unseen = plot_style.expert_styles(["fitted", "held out"])
    for axes, (name, pair) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        some = np.unique(np.linspace(0, pair.measured_s.size - 1, _MAX_POINTS).astype(int))
        measured_ms, predicted_ms = 1e3 * pair.measured_s[some], 1e3 * pair.predicted_s[some]
        held_out = np.zeros(some.size, bool) if pair.held_out is None else pair.held_out[some]
        for rows, style, label in ((~held_out, fitted, "fitted"), (held_out, unseen, "held out")):
            if rows.any():
                axes.plot(
                    measured_ms[rows],
                    predicted_ms[rows],
                    linestyle="",
                    marker=style.marker,
                    color=style.colour,
                    markersize=3.5,
                    alpha=0.6,
                    label=label,
                )
        ends = np.array([measured_ms.min(), measured_ms.max()])
        for factor, dashes in ((1.0, "-"), (1.1, ":"), (1 / 1.1, ":")):
            axes.plot(ends, factor * ends, color="#555555", linewidth=0.8, linestyle=dashes)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(name, fontsize=10)
        plot_style.tidy(axes, "measured (ms)", "predicted (ms)")
        if pair.held_out is not None:
            axes.legend(frameon=False, fontsize=9)
    return figure
