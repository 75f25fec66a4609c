"""Speeds as an aligned table."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from qos_jax.benchmark.row import KEY_HEADS, REFERENCE, Speed

_RATES = ("decisions/s", "decisions/CPU-s", "vs reference")
_COSTS = ("compile s", "state B/env", "program B/env", "of memory floor")
_HEADS = (*KEY_HEADS, *_RATES, *_COSTS, "beside")


def render_speeds(speeds: Sequence[Speed]) -> str:
    """Return an aligned table, with the ratio to the reference where it was measured."""
    base = next((speed for speed in speeds if speed.what == REFERENCE), None)
    rows = [
        [
            *speed.key,
            f"{speed.decisions_per_s:,.0f}",
            f"{speed.decisions_per_cpu_s:,.0f}",
            f"{speed.decisions_per_cpu_s / base.decisions_per_cpu_s:.1f}x" if base else "-",
            f"{speed.compile_s:.1f}",
            f"{speed.state_bytes_per_environment:,}",
            f"{speed.program_bytes_per_environment:,}",
            "-" if speed.floor_share is None else f"{speed.floor_share:.2%}",
            ", ".join(f"{name} {_figure(name, value)}" for name, value in speed.figures.items()),
        ]
        for speed in speeds
    ]
    align = ("left", "left", *["right"] * (len(_HEADS) - 3), "left")
    return tabulate(rows, _HEADS, tablefmt="simple", colalign=align, disable_numparse=True)


def render_speed(speed: Speed) -> str:
    """Return a row as one line, for progress."""
    beside = "".join(f", {name} {_figure(name, value)}" for name, value in speed.figures.items())
    return (
        f"{speed.what}, {speed.name}: {speed.environments} environments, {speed.experts} experts, "
        f"{speed.slots} slots: {speed.decisions_per_cpu_s:,.0f} decisions / CPU-second{beside}"
    )


def _figure(name: str, value: float) -> str:
    if name.endswith("_share"):
        return f"{value:.0%}"
    if name.endswith("_call_s"):
        return f"{value * 1e3:.3f} ms"
    return f"{value:.5g}"
