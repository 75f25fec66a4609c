"""The plots of a sweep: lines with intervals over the first axis, heat maps over the first two."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qos_jax.runs import plot_style
from qos_jax.simulation.metrics import ALL_METRICS
from qos_jax.sweep.axes import Axis
from qos_jax.sweep.results import SweepTable

CAPACITY = "capacity"  # what a search found, drawn like a metric
MAX_PANELS = 6


def sweep_figures(table: SweepTable, axes: Sequence[Axis], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the figures of each fleet, with the file name of each; none where no axis has two values.

    Lines run over the first axis of several values, a panel for each value of the second (evenly chosen
    ones, if there are many); heat maps over both, a panel per policy. All further axes stand at their
    middle value, which the title tells.

    Args:
      table: all rows.
      axes: in the order given.
      names: metrics, or ``CAPACITY``.
    """
    varied = [axis for axis in axes if len(axis.values) > 1]
    if not varied:
        return
    for fleet in dict.fromkeys(table.text["fleet"].tolist()):
        shown = table.text["fleet"] == fleet
        title = f"fleet {fleet}"
        for axis in varied[2:]:
            middle = sorted(axis.values)[len(axis.values) // 2]
            shown &= _is(table, axis, middle)
            title += f", {axis.name} = {middle:.4g}"
        slug = re.sub(r"[^\w.-]+", "_", fleet).strip("_")
        for name in names:
            yield f"plots/lines_{name}_{slug}.png", _lines(table, shown, varied, name, title)
            if len(varied) > 1:
                yield f"plots/heat_{name}_{slug}.png", _heat_maps(table, shown, varied, name, title)


def _lines(table: SweepTable, shown: np.ndarray, axes: Sequence[Axis], name: str, title: str) -> Any:
    """Return a figure of the metric against the first axis, mean and 95% interval, a line per policy."""
    panels: list[float | None] = [None]
    if len(axes) > 1:
        values = sorted(axes[1].values)
        picked = np.unique(np.linspace(0, len(values) - 1, MAX_PANELS).round().astype(int))
        panels = [values[place] for place in picked]
    figure, grid = plot_style.new_panels(len(panels), 4.4, 3.6, margin_in=2.2, sharey=True)
    policies = list(dict.fromkeys(table.text["policy"].tolist()))
    handles = {}
    for axes_, value in zip(grid, panels, strict=True):
        here = shown if value is None else shown & _is(table, axes[1], value)
        for policy, style in plot_style.policy_styles(policies).items():
            mine = np.flatnonzero(here & (table.text["policy"] == policy))
            x = _drawn_at(axes[0], table.numbers(axes[0].name)[mine])
            mine, x = mine[np.argsort(x)], np.sort(x)
            mean, low, high = (values[mine] for values in _figures(table, name))
            axes_.fill_between(x, low, high, color=style.colour, alpha=0.15, linewidth=0)
            (handles[policy],) = axes_.plot(
                x, mean, color=style.colour, marker=style.marker, linestyle=style.dashes, markersize=4
            )
        _set_scale(axes_, "x", axes[0])
        axes_.set_title("" if value is None else f"{axes[1].name} = {value:.4g}", fontsize=10)
        plot_style.tidy(axes_, axes[0].name, _label(name))
    figure.suptitle(title, fontsize=10)
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    return figure


def _heat_maps(table: SweepTable, shown: np.ndarray, axes: Sequence[Axis], name: str, title: str) -> Any:
    """Return a figure of the metric over the first two axes, a panel per policy, one colour scale."""
    policies = list(dict.fromkeys(table.text["policy"].tolist()))
    figure, grid = plot_style.new_panels(len(policies), 3.9, 3.4, margin_in=1.4)
    xs, ys = (np.unique(_drawn_at(axis, np.array(axis.values))) for axis in axes[:2])
    mean = _figures(table, name)[0]
    finite = mean[shown & np.isfinite(mean)]
    scale = {"vmin": finite.min(), "vmax": finite.max()} if finite.size else {}
    x, y = (_drawn_at(axis, table.numbers(axis.name)) for axis in axes[:2])
    image = None
    for axes_, policy in zip(grid, policies, strict=True):
        cells = np.full((len(ys), len(xs)), np.nan)
        mine = shown & (table.text["policy"] == policy)
        # What is read back has 9 digits, so the nearest value is meant.
        at = np.abs(y[mine, None] - ys).argmin(1), np.abs(x[mine, None] - xs).argmin(1)
        cells[at] = mean[mine]
        image = axes_.pcolormesh(_edges(xs, axes[0]), _edges(ys, axes[1]), cells, cmap="viridis", **scale)
        _set_scale(axes_, "x", axes[0])
        _set_scale(axes_, "y", axes[1])
        axes_.set_title(policy, fontsize=10)
        axes_.set_xlabel(axes[0].name)
        axes_.set_ylabel(axes[1].name)
    figure.colorbar(image, ax=grid, label=_label(name))
    figure.suptitle(title, fontsize=10)
    return figure


def _figures(table: SweepTable, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean and interval of every row; the mean alone where there is no interval."""
    if name == CAPACITY:
        rate = table.numbers("arrival_rate_per_s")
        return rate, rate, rate
    mean, low, high = (table.numbers(f"{name}{end}") for end in ("", "_ci_low", "_ci_high"))
    return mean, np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)


def _label(name: str) -> str:
    if name == CAPACITY:
        return "largest rate (requests/s)"
    unit = ALL_METRICS[name].unit
    return ALL_METRICS[name].label + (f" ({unit})" if unit else "")


def _is(table: SweepTable, axis: Axis, value: float) -> np.ndarray:
    return np.isclose(table.numbers(axis.name), value, rtol=1e-8, atol=0.0)


def _drawn_at(axis: Axis, values: np.ndarray) -> np.ndarray:
    """Return values of an axis with the infinite one, no limit, a step behind the largest."""
    finite = np.sort([value for value in axis.values if np.isfinite(value)])
    if not finite.size:
        return np.ones_like(values)
    last = finite[-1]
    before = finite[-2] if finite.size > 1 else last / 2
    return np.where(np.isinf(values), last * last / before if _is_log(axis) else 2 * last - before, values)


def _set_scale(axes_: Any, side: str, axis: Axis) -> None:
    """Set the scale of a side of a panel, and name what is drawn in the place of infinity."""
    if _is_log(axis):
        getattr(axes_, f"set_{side}scale")("log")
    if np.isinf(axis.values).any():
        at = _drawn_at(axis, np.sort(axis.values))
        getattr(axes_, f"set_{side}ticks")(at, [f"{value:.4g}" for value in np.sort(axis.values)])
        getattr(axes_, f"{side}axis").minorticks_off()


def _is_log(axis: Axis) -> bool:
    """Return whether the values lie evenly in logs, and not evenly as they are; the infinite one apart."""
    values = np.sort([value for value in axis.values if np.isfinite(value)])
    if len(values) < 3 or values[0] <= 0:
        return False
    ratio = values[1:] / values[:-1]
    return bool(np.ptp(ratio) < 0.05 * ratio.mean() and values[-1] / values[0] > 4)


def _edges(values: np.ndarray, axis: Axis) -> np.ndarray:
    """Return the edges between the cells of a heat map, halfway between values on the axis' scale."""
    scaled = np.log(values) if _is_log(axis) else values
    middle = (scaled[1:] + scaled[:-1]) / 2
    edges = np.concatenate([[2 * scaled[0] - middle[0]], middle, [2 * scaled[-1] - middle[-1]]])
    return np.exp(edges) if _is_log(axis) else edges
