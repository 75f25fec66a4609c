"""Speeds beside those of an earlier run, row by row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from qos_jax.benchmark.row import KEY_HEADS, Speed, speed_of
from qos_jax.errors import input_error
from qos_jax.runs.folder import to_json

FORMAT = 1  # of the lines of metrics.jsonl
HEADER = "benchmark"
# Settings that make the work of a row what it is; sizes are in its key.
_WORK = ("policy", "scheduler", "trace", "arrival_rate", "num_requests", "seed", "preset", "checkpoint")
_REMEDY = "give the metrics.jsonl of a run of launch.benchmark"


def header(settings: Mapping[str, Any], bandwidth_bytes_per_s: float) -> dict[str, Any]:
    """Return the first line of ``metrics.jsonl``: what makes its rows comparable, and the memory's speed."""
    bandwidth = {"copy_bandwidth_bytes_per_s": bandwidth_bytes_per_s}
    return {"what": HEADER, "format": FORMAT, **bandwidth, "settings": dict(settings)}


def read_speeds(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> list[Speed]:
    """Read the rows of an earlier run, of the same work as ``settings``.

    Raises:
      InputError: no such file, a line that is none of a benchmark, no row, or a run of other work.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise input_error(f"cannot be read ({reason})", file=path, remedy=_REMEDY) from error
    if not lines:
        raise input_error("is empty", file=path, remedy=_REMEDY)
    records = [_record(path, number, line) for number, line in enumerate(lines, start=1)]
    head, *rest = records
    if head.get("what") != HEADER or not isinstance(head.get("settings"), dict):
        raise input_error("is not of a benchmark", file=path, row=1, remedy=_REMEDY)
    if head.get("format") != FORMAT:
        fault = f"has format {head.get('format')!r}, not {FORMAT}"
        raise input_error(fault, file=path, row=1, remedy="measure it anew with this version")
    wanted = to_json(settings)
    differing = [name for name in _WORK if head["settings"].get(name) != wanted.get(name)]
    if differing:
        name = differing[0]
        fault = f"measured other work ({name} {head['settings'].get(name)!r}, not {wanted.get(name)!r})"
        raise input_error(fault, file=path, field=name, remedy=f"give the same --{name}")
    speeds = []
    for number, record in enumerate(rest, start=2):
        try:
            speeds.append(speed_of(record))
        except ValueError as error:
            raise input_error(str(error), file=path, row=number, remedy=_REMEDY) from error
    if not speeds:
        raise input_error("holds no measurement", file=path, remedy=_REMEDY)
    return speeds


def same_machine(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> bool:
    """Return whether a file that :func:`read_speeds` accepts was measured on a machine like this."""
    with open(path, encoding="utf-8") as stream:
        there = json.loads(stream.readline())["settings"]
    return bool(there.get("machine") == to_json(settings["machine"]))


def render_comparison(now: Sequence[Speed], before: Sequence[Speed]) -> str:
    """Return a table of the rows in both, with ratios now / before of decisions a second: above 1 = faster.

    Rows in only one of them are counted below it, with the geometric mean of the ratios.
    """
    earlier = {speed.key: speed for speed in before}
    both = [(speed, earlier[speed.key]) for speed in now if speed.key in earlier]
    heads = (*KEY_HEADS, "before/CPU-s", "now/CPU-s", "ratio", "ratio/s")
    rows, ratios = [], []
    for speed, old in both:
        rates = [f"{each.decisions_per_cpu_s:,.0f}" for each in (old, speed)]
        ratios.append(speed.decisions_per_cpu_s / old.decisions_per_cpu_s)
        wall_ratio = speed.decisions_per_s / old.decisions_per_s
        rows.append([*speed.key, *rates, f"{ratios[-1]:.2f}", f"{wall_ratio:.2f}"])
    align = ("left", "left", *["right"] * (len(heads) - 2))
    lines = []
    if rows:
        lines.append(tabulate(rows, heads, tablefmt="simple", colalign=align, disable_numparse=True))
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(f"geometric mean of the ratios per CPU-second: {mean:.2f}")
    only_now, only_before = len(now) - len(both), len(before) - len(both)
    if only_now or only_before:
        lines.append(f"not compared: {only_now} rows only measured now, {only_before} only before")
    return "\n".join(lines)


def _record(path: str | os.PathLike[str], number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise input_error("is no JSON object", file=path, row=number, remedy=_REMEDY)
    return record
