"""A fitted profile as aligned text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from qos_jax.profiling.coefficients import WEAK_SHARE


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
            f"weak: the standard error is above {WEAK_SHARE:.0%} of the value, the log tells only sums"
        )
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
    quality = _quality("all", summary["quality"])
    if "test" in summary:
        quality += _quality("held out", summary["test"]["quality"])
    parts.append(
        _table(
            ["rows", "time", "number", "R2", "mean rel. error", "worst", "mean predicted / measured"], quality
        )
    )
    return "\n\n".join(parts)


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
