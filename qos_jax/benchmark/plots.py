"""Throughput against the number of environments, of slots and of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qos_jax.benchmark.row import DECISION, HAN_PATHS, REFERENCE, Speed
from qos_jax.runs import plot_style

AXES = ("environments", "slots", "experts")


def throughput(speeds: Sequence[Speed], axis: str) -> Any | None:
    """Return a figure of decisions per CPU-second against one size, a line for each setting of the others.

    Args:
      speeds: all rows; those of single programs are left out.
      axis: one of ``AXES``.

    Returns:
      A ``matplotlib.figure.Figure``, with the errors of :func:`qos_jax.runs.plot_style.new_figure`;
      None where no setting was measured at two sizes.
    """
    others = [name for name in AXES if name != axis]
    lines: dict[tuple[Any, ...], list[Speed]] = {}
    for speed in speeds:
        if speed.what not in (REFERENCE, HAN_PATHS, DECISION):
            setting = (speed.what, speed.name, *(getattr(speed, name) for name in others))
            lines.setdefault(setting, []).append(speed)
    lines = {setting: rows for setting, rows in lines.items() if len(rows) > 1}
    if not lines:
        return None
    figure = plot_style.new_figure(8.4, 4.4)
    axes = figure.subplots()
    styles = plot_style.expert_styles([str(setting) for setting in lines])
    for (setting, rows), style in zip(lines.items(), styles, strict=True):
        rows = sorted(rows, key=lambda speed: getattr(speed, axis))
        sizes = ", ".join(f"{value} {name}" for name, value in zip(others, setting[2:], strict=True))
        axes.plot(
            [getattr(speed, axis) for speed in rows],
            [speed.decisions_per_cpu_s for speed in rows],
            color=style.colour,
            marker=style.marker,
            linestyle=style.dashes,
            label=f"{setting[0]}, {setting[1]}: {sizes}",
        )
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0.0)
    plot_style.tidy(axes, axis, "decisions / CPU-second")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=1)
    return figure
