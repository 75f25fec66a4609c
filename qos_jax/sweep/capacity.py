"""The largest arrival rate that still meets a target, found by bisection for all cells at once."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

from qos_jax.checks import check_one_of
from qos_jax.errors import input_error
from qos_jax.simulation.metrics import ALL_METRICS, PREFIX_METRICS, metric_names

SEARCHED = ("arrival_rate", "load")
FOUND, AT_LEAST, NONE = "found", "at_least", "none"

_TARGET = re.compile(r"\s*(\w+)\s*(>=|<=)\s*(\S+)\s*")


@dataclasses.dataclass(frozen=True)
class Target:
    """What the mean of a metric over seeds must be."""

    metric: str  # name in ALL_METRICS, which METRICS and those of prefix caches lead
    at_least: bool  # else at most
    value: float

    def met(self, metrics: np.ndarray) -> np.ndarray:
        """Return where metrics [c, S, M] meet it, [c] bool; what is undefined does not."""
        mean = metrics[:, :, list(ALL_METRICS).index(self.metric)].mean(axis=1)
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
    metrics: np.ndarray  # [c, S, M] float64, at the rate; at the lowest one where none did


def parse_search(
    name: str | None,
    target: str | None,
    ends: tuple[float, ...],
    tolerance: float,
    prefix_entries: int = 0,
) -> Search | None:
    """Read the flags of a search; None if there is none.

    Args:
      name: what is searched for.
      target: ``METRIC>=VALUE`` or ``METRIC<=VALUE``.
      ends: (low, high).
      tolerance: relative.
      prefix_entries: of prefix caches, which have metrics of their own; 0 = none.

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
    check_metric("target", metric, prefix_entries)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise input_error(f"{text!r} is not a finite number", field="target", remedy="give one")
    if ALL_METRICS[metric].better == ("lower" if sign == ">=" else "higher"):
        fault = f"{target!r} asks for a worse {metric}, of which {ALL_METRICS[metric].better} is better"
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


def check_metric(field: str, name: str, prefix_entries: int) -> None:
    """Check the name of a metric; those of prefix caches are there with caches alone.

    Raises:
      InputError: it is unknown, or of caches that there are not.
    """
    if name in PREFIX_METRICS and not prefix_entries:
        remedy = "give --prefix_entries=64 --workload=conversation"
        raise input_error(f"{name!r} is of prefix caches, and there are none", field=field, remedy=remedy)
    check_one_of(field, name, metric_names(prefix_entries))


def largest_rates(
    run: Callable[[np.ndarray], np.ndarray], low_per_s: np.ndarray, high_per_s: np.ndarray, search: Search
) -> Capacity:
    """Find for every cell the largest rate that meets the target, in ``search.rounds`` calls of ``run``.

    Bisection on the log of the rate. It takes for granted that a target once missed stays missed; with
    few seeds and requests a metric may waver near the end, and then one of the crossings is found.

    Args:
      run: rates [c], requests / s -> metrics [c, S, M], on the same requests every time.
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
