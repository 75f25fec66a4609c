"""Reliability: how often what was said to come true with probability p did come true."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability table of bins equally wide in the predicted probability."""

    edges: np.ndarray  # [K + 1] from 0 to 1
    count: np.ndarray  # [K] int64, predictions in the bin
    predicted: np.ndarray  # [K] float64, mean prediction; NaN where there is none
    observed: np.ndarray  # [K] float64, mean truth; NaN where there is none

    @property
    def expected_calibration_error(self) -> float:
        """Mean of |predicted - observed| over predictions (Naeini et al. 2015); NaN without any."""
        if not self.count.sum():
            return float("nan")
        gap = np.where(self.count > 0, np.abs(self.predicted - self.observed), 0.0)
        return float((gap * self.count).sum() / self.count.sum())


def reliability(predicted: np.ndarray, true: np.ndarray, bins: int = 10) -> Reliability:
    """Return the reliability table of predictions; those without a truth (NaN) are left out.

    Args:
      predicted: [...] in [0, 1].
      true: [...] in [0, 1], NaN = missing.
      bins: K.
    """
    known = ~np.isnan(true)
    said, was = np.asarray(predicted, np.float64)[known], np.asarray(true, np.float64)[known]
    edges = np.linspace(0, 1, bins + 1)
    at = np.clip(np.searchsorted(edges, said, side="right") - 1, 0, bins - 1)
    count = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(at, weights=values, minlength=bins) / count for values in (said, was)]
    return Reliability(edges, count, *means)
