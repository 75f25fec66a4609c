"""The cost frontier: average quality against mean busy seconds per request, routed by predicted quality.

Capacity is left out: every expert serves whatever it is given. A way of routing chooses argmax of quality -
price x cost for each of a range of prices; mixtures of two prices are allowed, so a frontier is the concave
hull of its points. Four frontiers: *predicted* routing; a *static* mixture of single experts; the *task
oracle*, which sends a whole task to the expert best on it; the *oracle*, which knows every answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from tabulate import tabulate

from qos_jax.errors import input_error
from qos_jax.files import Path, write_csv

PREDICTED, STATIC, TASK_ORACLE, ORACLE = "predicted", "static", "task_oracle", "oracle"
SHARES = (1.0, 0.98)  # of the best single expert's quality, at which a frontier's cost is reported

_PRICES = 81  # tried, evenly spaced in log


@dataclasses.dataclass(frozen=True)
class FrontierPoint:
    """A point of a frontier: mean quality and cost at one price."""

    frontier: str
    price: float  # quality given up per busy second; NaN for a single expert
    expert: str  # of a single expert, else empty
    quality: float  # mean over requests
    busy_s: float  # mean busy seconds per request


@dataclasses.dataclass(frozen=True)
class CostShare:
    """The cost at which a frontier reaches a share of the best single expert's quality."""

    frontier: str
    share: float  # of the best single expert's quality
    cost_share: float  # of that expert's mean busy seconds; NaN where the frontier does not reach it
    low: float  # 95% bootstrap interval over requests
    high: float


@dataclasses.dataclass(frozen=True)
class CostFrontier:
    """The frontiers of one table of requests."""

    points: tuple[FrontierPoint, ...]
    shares: tuple[CostShare, ...]
    best_single: str  # the expert of the highest mean quality
    rows: int  # requests judged: those whose answers are all known
    left_out: int  # requests with a missing answer


def cost_frontier(
    quality: np.ndarray,
    predicted_quality: np.ndarray,
    cost_s: np.ndarray,
    experts: Sequence[str],
    *,
    predicted_cost_s: np.ndarray | None = None,
    tasks: Sequence[str] | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> CostFrontier:
    """Return the cost frontiers of M requests and N experts.

    Args:
      quality: [M, N] true; NaN = missing.
      predicted_quality: [M, N].
      cost_s: [M, N] busy seconds that each answer takes, > 0, NaN = missing.
      experts: N names.
      predicted_cost_s: [M, N] as the router knows it; None = each expert's mean of ``cost_s``.
      tasks: [M] names, for the task oracle; None = no task oracle.
      resamples: of the requests, for the intervals.
      seed: of the resampling.

    Raises:
      InputError: shapes that do not fit, a cost or prediction out of range, no request with all answers.
    """
    true, cost = np.asarray(quality, np.float64), np.asarray(cost_s, np.float64)
    whole = _checked(true, predicted_quality, cost, experts, predicted_cost_s, tasks)
    true, cost = true[whole], cost[whole]
    known = cost.mean(0)[None] if predicted_cost_s is None else np.asarray(predicted_cost_s)[whole]
    scale = 1 / cost.mean()
    prices = np.concatenate([[0.0], np.geomspace(1e-4, 1e2, _PRICES) * scale])
    choices = {
        PREDICTED: _choices(np.asarray(predicted_quality, np.float64)[whole], known, prices),
        STATIC: np.repeat(np.arange(len(experts))[:, None], len(true), axis=1),
        ORACLE: _choices(true, cost, prices),
    }
    if tasks is not None:
        _, at = np.unique(np.asarray(tasks)[whole], return_inverse=True)
        count = np.bincount(at)[:, None]
        mean_true, mean_cost = (
            np.stack([np.bincount(at, column) for column in values.T], 1) / count for values in (true, cost)
        )
        choices[TASK_ORACLE] = _choices(mean_true, mean_cost, prices)[:, at]
    rows = np.arange(len(true))
    paid = {name: (true[rows, c], cost[rows, c]) for name, c in choices.items()}
    values = {name: (q.mean(1), s.mean(1)) for name, (q, s) in paid.items()}
    points = []
    for name, (mean_quality, mean_cost) in values.items():
        for k, (one_quality, one_cost) in enumerate(zip(mean_quality, mean_cost, strict=True)):
            price, expert = (float("nan"), experts[k]) if name == STATIC else (float(prices[k]), "")
            points.append(FrontierPoint(name, price, expert, float(one_quality), float(one_cost)))
    shares = _shares(values)
    rng = np.random.default_rng(seed)
    drawn: list[dict[tuple[str, float], float]] = []
    for _ in range(resamples):
        weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows))) / len(rows)
        drawn.append(_shares({name: (q @ weights, s @ weights) for name, (q, s) in paid.items()}))
    found = []
    for (name, share), value in shares.items():
        samples = np.array([one[name, share] for one in drawn])
        # A resample that does not reach the quality has no cost: it counts as infinite.
        low, high = np.quantile(np.nan_to_num(samples, nan=np.inf), [0.025, 0.975], method="nearest")
        found.append(CostShare(name, share, value, float(low), float(high)))
    best = experts[int(values[STATIC][0].argmax())]
    return CostFrontier(tuple(points), tuple(found), best, len(true), int((~whole).sum()))


def render_frontier(frontier: CostFrontier) -> str:
    """Return the costs of a share of the best single expert's quality as aligned text."""
    cells: Mapping[tuple[str, float], CostShare] = {(row.frontier, row.share): row for row in frontier.shares}
    lines = [["share of busy s", *(f"{share:.0%} of its quality [95% CI]" for share in SHARES)]]
    for name in dict.fromkeys(row.frontier for row in frontier.shares):
        row = [cells[name, share] for share in SHARES]
        lines.append([name, *(f"{c.cost_share:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in row)])
    title = (
        f"best single expert: {frontier.best_single}; {frontier.rows:,} requests, "
        f"{frontier.left_out:,} left out for a missing answer"
    )
    align = ("left", "right", "right")
    return f"{title}\n{tabulate(lines, headers='firstrow', colalign=align, disable_numparse=True)}"


def write_frontier_csv(path: Path, frontier: CostFrontier) -> None:
    """Write the points of the frontiers as CSV, a column per field of :class:`FrontierPoint`."""
    header = [field.name for field in dataclasses.fields(FrontierPoint)]
    write_csv(path, header, map(dataclasses.astuple, frontier.points))


def _choices(quality: np.ndarray, cost_s: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Return the best expert of each row at each price, [P, M]."""
    return np.stack([np.argmax(quality - price * cost_s, axis=-1) for price in prices])


def _shares(values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[tuple[str, float], float]:
    """Return the share of the best single expert's cost at which each frontier has a share of its quality."""
    quality, cost = values[STATIC]
    best = int(quality.argmax())
    return {
        (name, share): _cost_at(*values[name], share * quality[best]) / cost[best]
        for name in values
        for share in SHARES
    }


def _cost_at(quality: np.ndarray, cost_s: np.ndarray, target: float) -> float:
    """Return the least mean cost of a mixture of two points whose mean quality is the target; NaN if none."""
    reach, short = quality >= target - 1e-12, quality < target - 1e-12
    if not reach.any():
        return float("nan")
    above, below = np.flatnonzero(reach), np.flatnonzero(short)
    least = float(cost_s[above].min())
    if not below.size:
        return least
    share = (target - quality[below][None]) / (quality[above][:, None] - quality[below][None])
    mixed = share * cost_s[above][:, None] + (1 - share) * cost_s[below][None]
    return min(least, float(mixed.min()))


def _checked(
    quality: np.ndarray,
    predicted_quality: np.ndarray,
    cost_s: np.ndarray,
    experts: Sequence[str],
    predicted_cost_s: np.ndarray | None,
    tasks: Sequence[str] | None,
) -> np.ndarray:
    """Return which rows have every answer, [M] bool, or raise the error of the first fault."""
    shape = (len(quality), len(experts))
    given = {"quality": quality, "predicted_quality": predicted_quality, "cost_s": cost_s}
    if predicted_cost_s is not None:
        given["predicted_cost_s"] = predicted_cost_s
    for field, values in given.items():
        if np.shape(values) != shape:
            fault = f"has shape {np.shape(values)}, not {shape}"
            raise input_error(fault, field=field, remedy="give a row per request and a column per expert")
    if tasks is not None and len(tasks) != shape[0]:
        raise input_error(
            f"has {len(tasks)} names", field="tasks", remedy=f"give {shape[0]}, one per request"
        )
    for field in ("cost_s", "predicted_cost_s"):
        values = np.asarray(given.get(field, 1.0), np.float64)
        missing = np.isnan(values) & (field == "cost_s")
        if not (missing | (np.isfinite(values) & (values > 0))).all():
            raise input_error("is not above 0 everywhere", field=field, remedy="give seconds")
    if not np.isfinite(np.asarray(predicted_quality, np.float64)).all():
        raise input_error("is not finite everywhere", field="predicted_quality", remedy="predict every row")
    whole = ~(np.isnan(quality) | np.isnan(cost_s)).any(1)
    if not whole.any():
        raise input_error("no request has all answers", field="quality", remedy="give some that have")
    return whole
