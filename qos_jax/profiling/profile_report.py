"""Report a fitted profile: as text, and as a plot of predicted against measured times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from qos_jax.profiling.coefficients import WEAK_SHARE
from qos_jax.runs import plot_style

NOT_CONVERGED = (
    "no coefficient is identified, only typical iterations may be right; add requests at other loads, "
    "or give some coefficients by --fix=NAME=VALUE"
)
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


def render_profile(summary: Mapping[str, Any]) -> str:
    """Return the coefficients, what they mean for typical iterations and how well they fit.

    Args:
      summary: the content of ``profile.json``.
    """
    coefficients = [
        [
            name,
            f"{found['value']:.4g}",
            _error(found["standard_error"], found["value"]),
            f"[{found['ci_low']:.3g}, {found['ci_high']:.3g}]" if found["ci_low"] == found["ci_low"] else "-",
            found["confidence"],
        ]
        for name, found in summary["coefficients"].items()
    ]
    parts = [
        f"{summary['expert']}: {summary['notes']}",
        _table(["coefficient", "seconds", "std. error", "95% interval", ""], coefficients),
    ]
    if any(found["confidence"] == "weak" for found in summary["coefficients"].values()):
        parts.append(
            f"weak: the standard error is above {WEAK_SHARE:.0%} of the value, the log identifies sums alone"
        )
    if not summary.get("converged", True):
        parts.append(f"did not converge: {NOT_CONVERGED}")
    typical = [
        [
            f"{item['iteration']}, " + ", ".join(_load(item)),
            f"{1e3 * item['duration_s']:.2f}",
            f"{1e3 * item['standard_error_s']:.2f}",
        ]
        for item in summary.get("typical_iterations", ())
    ]
    if typical:
        parts.append(_table(["typical iteration", "ms", "std. error"], typical))
    for law, errors in summary.get("decode_law", {}).items():
        tried = ", ".join(f"{name} {100 * error:.1f} %" for name, error in errors.items())
        parts.append(f"decode times: {law}" + (f" (mean relative error held out: {tried})" if tried else ""))
    quality = _quality("all", summary["quality"])
    if "test" in summary:
        quality += _quality("held out", summary["test"]["quality"])
    parts.append(
        _table(
            ["rows", "time", "number", "R2", "mean rel. error", "worst", "mean predicted / measured"], quality
        )
    )
    rows = [
        [found["file"], name, statistic.removesuffix("_s").replace("_", " "), *_pair(statistic, times)]
        for found in summary.get("predicted", ())
        for name, times in found["times"].items()
        for statistic in times["measured"]
    ]
    if rows:
        parts.append(_table(["predicted log", "time", "", "measured", "predicted", "off"], rows))
    return "\n\n".join(parts)


def _pair(statistic: str, times: Mapping[str, Any]) -> list[str]:
    """Return a statistic measured, predicted and compared: seconds in ms, shares in per cent."""
    measured, predicted = times["measured"][statistic], times["predicted"][statistic]
    if statistic == "share_within":
        return [f"{measured:.1%}", f"{predicted:.1%}", f"{100 * (predicted - measured):+.1f} points"]
    return [f"{1e3 * measured:.4g} ms", f"{1e3 * predicted:.4g} ms", f"{predicted / measured - 1:+.1%}"]


def _load(item: Mapping[str, Any]) -> list[str]:
    names = {"prompt_tokens": "prompt tokens", "batch": "requests", "context_tokens": "context tokens"}
    return [f"{item[name]:,.0f} {text}" for name, text in names.items() if name in item]


def _error(error: float, value: float) -> str:
    if error != error:
        return "-"
    return f"{100 * error / value:.1f} %" if value > 0 else f"{error:.2g}"


def _quality(rows: str, quality: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            rows,
            name,
            f"{found['rows']:,}",
            f"{found['r2']:.4f}" if found["r2"] == found["r2"] else "-",
            f"{100 * found['mean_relative_error']:.2f} %",
            f"{100 * found['worst_relative_error']:.1f} %",
            f"{found['mean_ratio']:.4f}",
        ]
        for name, found in quality.items()
    ]


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
