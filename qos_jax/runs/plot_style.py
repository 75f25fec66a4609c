"""How plots look: figures without global state, one style per policy and expert, files written whole."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from qos_jax.errors import InputError
from qos_jax.files import atomic_write

# Okabe and Ito's colours (safe for colour-blind readers), the yellow darkened to be legible on white.
_BLUE, _ORANGE, _GREEN, _VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_PINK, _SKY, _BLACK, _GREY, _OLIVE = "#CC79A7", "#56B4E9", "#000000", "#8C8C8C", "#9A8B00"
_PURPLE = "#6A3D9A"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _VERMILLION, _PINK, _SKY, _BLACK, _OLIVE)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_HATCHES = ("", "///", "...", "xxx")

REJECTED_COLOUR, TOO_LONG_COLOUR, DROPPED_COLOUR = "#BDBDBD", "#D2D2D2", "#E8E8E8"
FAILED_COLOUR = "#9E9E9E"


class Style(NamedTuple):
    """Colour, marker, dash pattern and hatch, together distinct even in grey."""

    colour: str
    marker: str
    dashes: Any
    hatch: str = ""


# One fixed style for each policy this project knows, so that it looks the same in every plot.
_POLICIES = {
    "random": Style(_GREY, ".", ":"),
    "round_robin": Style(_GREY, "o", "-"),
    "shortest_queue": Style(_SKY, "s", "-"),
    "least_work": Style(_SKY, "v", "--"),
    "power_of_two": Style(_OLIVE, "P", "-."),
    "best_quality": Style(_PINK, "D", "-"),
    "quality_within_limit": Style(_PINK, "<", "--"),
    "impact_greedy": Style(_ORANGE, "^", "--"),
    "projected_greedy": Style(_ORANGE, "X", "-"),
    "projected_greedy@never_drops": Style(_ORANGE, "x", ":"),
    "load_aware_greedy": Style(_VERMILLION, "X", "-."),
    "load_aware_greedy@never_drops": Style(_VERMILLION, "x", ":"),
    "mlp": Style(_GREEN, "p", "--"),
    "han": Style(_GREEN, "h", "-"),
    "clairvoyant_greedy": Style(_BLACK, "*", "--"),
    "upper_bound": Style(_BLACK, "+", ":"),
    "assigned": Style(_BLUE, "d", "-"),
}


def policy_styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a style per policy: a fixed one for those known, the next of a cycle for others."""
    others = sorted(set(names) - _POLICIES.keys())
    cycle = {name: _cycled((_BLUE, _VERMILLION, _GREEN, _PURPLE), i) for i, name in enumerate(others)}
    return {name: _POLICIES.get(name) or cycle[name] for name in names}


def expert_styles(names: Sequence[str]) -> list[Style]:
    """Return a style per expert, in order."""
    return [_cycled(_COLOURS, i) for i in range(len(names))]


def plots_available() -> bool:
    """Return whether Matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width_in: float, height_in: float) -> Any:
    """Return an empty Matplotlib ``Figure`` with the Agg canvas, outside pyplot's global state.

    Raises:
      InputError: if Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        fault = "plots need matplotlib, which is not installed; run: pip install 'qos_jax[plot]'"
        raise InputError(fault) from error
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_panels(
    count: int, width_in: float, height_in: float, *, margin_in: float, sharey: bool = False
) -> tuple[Any, list[Any]]:
    """Return a new figure and its ``count`` panels, ``width_in`` x ``height_in`` each, three a row."""
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = new_figure(width_in * columns + margin_in, height_in * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for spare in panels[count:]:
        spare.set_axis_off()
    return figure, panels[:count]


def tidy(axes: Any, xlabel: str, ylabel: str) -> None:
    """Label both axes, draw a light grid behind the data and drop the frame's idle sides."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save_figure(figure: Any, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Save a figure as PNG, whole or not at all; missing parent folders are made."""
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=dpi)


def _cycled(colours: Sequence[str], index: int) -> Style:
    """Return the style of an index in the cycle; colours change first, then dashes and hatches."""
    turn = index // len(colours)
    return Style(
        colours[index % len(colours)],
        _MARKERS[index % len(_MARKERS)],
        _DASHES[turn % len(_DASHES)],
        _HATCHES[turn % len(_HATCHES)],
    )
