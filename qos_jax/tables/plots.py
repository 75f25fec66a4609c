"""The plots of a request table: qualities, lengths, predicted against true, reliability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qos_jax.runs import plot_style
from qos_jax.runs.folder import RunFolder
from qos_jax.tables.scores import reliability
from qos_jax.workload import NamedTable

_BINS = 20
_LEAST_IN_BIN = 10  # answers behind a point of the reliability plot
_LEGEND_BELOW = {"loc": "outside lower center", "frameon": False, "ncols": 3}


def write_table_plots(folder: RunFolder, named: NamedTable) -> list[Path]:
    """Write the plots of a table's rows under ``plots/`` and return their paths.

    Raises:
      InputError: matplotlib is not installed.
    """
    figures = {
        "quality": quality_distribution(named),
        "lengths": length_distribution(named),
        "predicted_lengths": predicted_lengths(named),
        "reliability": reliability_curves(named),
    }
    paths = []
    for name, figure in figures.items():
        path = folder.file(f"plots/{name}.png")
        plot_style.save_figure(figure, path)
        paths.append(path)
    return paths


def quality_distribution(named: NamedTable) -> Any:
    """Return a figure of the share of answers by quality, true and predicted, a panel per expert."""
    figure, panels = _panels(named)
    edges = np.linspace(0, 1, _BINS + 1)
    for n, axes in enumerate(panels):
        for label, values, style in (
            ("true", named.table.quality[:, n], {"color": "#BBBBBB"}),
            ("predicted", named.table.predicted_quality[:, n], {"histtype": "step", "color": "#0072B2"}),
        ):
            share = np.full(named.num_rows, 1 / named.num_rows)
            axes.hist(np.asarray(values), edges, weights=share, label=label, **style)
        plot_style.tidy(axes, "quality", "share of answers")
    figure.legend(*panels[0].get_legend_handles_labels(), **_LEGEND_BELOW)
    return figure


def length_distribution(named: NamedTable) -> Any:
    """Return a figure of the share of answers that are at most so long, true and as predicted medians."""
    figure = plot_style.new_figure(7.6, 5.2)
    axes = figure.subplots()
    share = np.linspace(0, 1, 200)
    for n, (name, style) in enumerate(zip(named.names, plot_style.expert_styles(named.names), strict=True)):
        for values, dashes, label in (
            (named.table.output_tokens[:, n], "-", name),
            (named.table.predicted_output_tokens[:, n], ":", None),
        ):
            axes.plot(np.quantile(values, share), share, dashes, color=style.colour, label=label)
    axes.set_xscale("log")
    axes.set_title("solid: true, dotted: predicted medians", fontsize=10)
    plot_style.tidy(axes, "output tokens", "share of answers")
    figure.legend(**_LEGEND_BELOW)
    return figure


def predicted_lengths(named: NamedTable) -> Any:
    """Return a figure of true against predicted output tokens, a panel per expert."""
    figure, panels = _panels(named)
    for n, axes in enumerate(panels):
        predicted, true = named.table.predicted_output_tokens[:, n], named.table.output_tokens[:, n]
        scales = {"xscale": "log", "yscale": "log", "bins": "log"}
        axes.hexbin(predicted, true, gridsize=30, mincnt=1, cmap="Blues", **scales)
        low = float(min(np.min(predicted), np.min(true)))
        high = float(max(np.max(predicted), np.max(true)))
        axes.plot([low, high], [low, high], color="black", linewidth=1)
        plot_style.tidy(axes, "predicted output tokens", "true")
    return figure


def reliability_curves(named: NamedTable) -> Any:
    """Return a figure of mean true against mean predicted quality, over answers of like prediction."""
    figure = plot_style.new_figure(6.4, 5.8)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="black", linewidth=1)
    for n, (name, style) in enumerate(zip(named.names, plot_style.expert_styles(named.names), strict=True)):
        table = named.table
        found = reliability(np.asarray(table.predicted_quality[:, n]), np.asarray(table.quality[:, n]))
        enough = found.count >= min(_LEAST_IN_BIN, named.num_rows)
        predicted, true = found.predicted[enough], found.observed[enough]
        axes.plot(predicted, true, color=style.colour, marker=style.marker, markersize=4, label=name)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    plot_style.tidy(axes, "mean predicted quality", "mean true quality")
    figure.legend(**_LEGEND_BELOW)
    return figure


def _panels(named: NamedTable) -> tuple[Any, list[Any]]:
    columns = min(len(named.names), 3)
    rows = -(-len(named.names) // columns)
    figure = plot_style.new_figure(3.6 * columns, 3.0 * rows + 0.4)
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels[len(named.names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, named.names, strict=False):
        axes.set_title(name, fontsize=9)
    return figure, panels[: len(named.names)]
