"""Compare predicted with measured times: R2, mean and worst relative error."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class Goodness:
    """Agreement of R predicted times with measured ones."""

    rows: int
    r2: float  # share of the variance of the measured explained, NaN if they are all equal
    mean_relative_error: float  # mean of |predicted / measured - 1|
    worst_relative_error: float  # the largest
    mean_ratio: float  # mean of the predicted / mean of the measured


def goodness(predicted_s: npt.ArrayLike, measured_s: npt.ArrayLike) -> Goodness:
    """Return how well ``predicted_s`` [R] agrees with ``measured_s`` [R], both in seconds, R >= 1."""
    predicted, measured = np.asarray(predicted_s, np.float64), np.asarray(measured_s, np.float64)
    relative = np.abs(predicted / measured - 1)
    total = float(np.sum(np.square(measured - measured.mean())))
    error = float(np.sum(np.square(predicted - measured)))
    return Goodness(
        rows=int(measured.size),
        r2=1 - error / total if total > 0 else float("nan"),
        mean_relative_error=float(relative.mean()),
        worst_relative_error=float(relative.max()),
        mean_ratio=float(predicted.mean() / measured.mean()),
    )
