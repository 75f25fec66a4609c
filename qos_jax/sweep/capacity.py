"""The largest arrival rate that still meets a target, found by bisection for all cells at once."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

from qos_jax.checks import check_one_of
from qos_jax.errors import input_error
from qos_jax.simulation.metrics import METRICS

SEARCHED = ("arrival_rate", "load")
FOUND, AT_LEAST, NONE = "found", "at_least", "none"

_TARGET = re.compile(r"\s*(\w+)\s*(>=|<=)\s*(\S+)\s*")


@dataclasses.dataclass(frozen=True)
class Target:
    """What the mean of a metric over seeds must be."""

    metric: str  # name in METRICS
    at_least: bool  # else at most
    value: float

    def met(self, metrics: np.ndarray) -> np.ndarray:
        """Return where metrics [c, S, len(METRICS)] meet it, [c] bool; what is undefined does not."""
        mean = metrics[:, :, list(METRICS).index(self.metric)].mean(axis=1)
        return mean >= self.value if self.at_least else mean <= self.value


@dataclasses.dataclass(frozen=True)
class Search:
    """How to look for the largest rate: where, and how closely."""

    name: str  # of SEARCHED: what ``low`` and ``high`` are
    target: Target
    low: float  # the search begins between these two: requests / s, or shares of capacity
    high: float
    tolerance: float  # relative: stop when the rates that do and do not meet it are so near

    @property
    def rounds(self) -> int:
        """How often every cell is run: at both ends, then once per halving of the log of the rate."""
        return 2 + max(math.ceil(math.log2(math.log(self.high / self.low) / math.log1p(self.tolerance))), 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Capacity:
    """What a search came to, per cell."""

    rate_per_s: np.ndarray  # [c] float64, the largest rate seen to meet the target; NaN where none did
    fails_at_per_s: np.ndarray  # [c] float64, the smallest rate above it seen to fail; NaN where none did
    outcome: list[str]  # [c] FOUND; AT_LEAST: even the highest meets it; NONE: not even the lowest does
    metrics: np.ndarray  # [c, S, len(METRICS)] float64, at the rate; at the lowest one where none did


def parse_search(
    name: str | None, target: str | None, ends: tuple[float, ...], tolerance: float
) -> Search | None:
    """Read the flags of a search; None if there is none.

    Args:
      name: what is searched for.
      target: ``METRIC>=VALUE`` or ``METRIC<=VALUE``.
      ends: (low, high).
      tolerance: relative.

    Raises:
      InputError: naming the flag, the fault and the remedy.
    """
    if name is None and target is None:
        return None
    if name is None or target is None:
        given, missing = ("capacity", "target") if target is None else ("target", "capacity")
        raise input_error(
            f"needs {missing}", field=given, remedy="give --capacity=arrival_rate --target=METRIC>=VALUE"
        )
    check_one_of("capacity", name, SEARCHED)
    match = _TARGET.fullmatch(target)
    if match is None:
        fault = f"{target!r} is not METRIC>=VALUE or METRIC<=VALUE"
        raise input_error(fault, field="target", remedy="give e.g. share_within_limit>=0.95")
    metric, sign, text = match.groups()
    check_one_of("target", metric, METRICS)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise input_error(f"{text!r} is not a finite number", field="target", remedy="give one")
    if METRICS[metric].better == ("lower" if sign == ">=" else "higher"):
        fault = f"{target!r} asks for a worse {metric}, of which {METRICS[metric].better} is better"
        remedy = f"turn the sign round: {metric}{'<=' if sign == '>=' else '>='}{text}"
        raise input_error(fault, field="target", remedy=remedy)
    if len(ends) != 2 or not 0 < ends[0] < ends[1] < math.inf:
        raise input_error(
            f"{', '.join(map(str, ends))} is no range", field="capacity_range", remedy="give LOW,HIGH above 0"
        )
    if not 0 < tolerance < 1:
        raise input_error(
            f"{tolerance} is out of range", field="capacity_tolerance", remedy="give a number between 0 and 1"
        )
    return Search(name, Target(metric, sign == ">=", value), ends[0], ends[1], tolerance)


def largest_rates(
    run: Callable[[np.ndarray], np.ndarray], low_per_s: np.ndarray, high_per_s: np.ndarray, search: Search
) -> Capacity:
    """Find for every cell the largest rate that meets the target, in ``search.rounds`` calls of ``run``.

    Bisection on the log of the rate. It takes for granted that a target once missed stays missed; with
    few seeds and requests a metric may waver near the end, and then one of the crossings is found.

    Args:
      run: rates [c], requests / s -> metrics [c, S, len(METRICS)], on the same requests every time.
      low_per_s: [c] lowest rate to try.
      high_per_s: [c] highest.
      search: target and tolerance.
    """
    best = run(low_per_s)
    none = ~search.target.met(best)
    top = run(high_per_s)
    at_least = search.target.met(top) & ~none
    best = np.where(at_least[:, None, None], top, best)
    good, bad = np.where(at_least, high_per_s, low_per_s), high_per_s.copy()
    open_ = ~none & ~at_least
    for _ in range(search.rounds - 2):
        middle = np.where(open_, np.sqrt(good * bad), good)
        metrics = run(middle)
        met = search.target.met(metrics) & open_
        best = np.where(met[:, None, None], metrics, best)
        good, bad = np.where(met, middle, good), np.where(open_ & ~met, middle, bad)
    return Capacity(
        rate_per_s=np.where(none, np.nan, good),
        fails_at_per_s=np.where(none, low_per_s, np.where(at_least, np.nan, bad)),
        outcome=[NONE if n else AT_LEAST if a else FOUND for n, a in zip(none, at_least, strict=True)],
        metrics=best,
    )
