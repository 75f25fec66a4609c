"""Scores of predictions: area under the ROC curve, explained share of the variance, reliability."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

WeightedScore = Callable[[np.ndarray], np.ndarray]
"""Takes weights of M rows, [R, M]; returns the score under each, [R], NaN where it is undefined."""


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, NaN where ``below`` is not above 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


def weighted_auc(positive: npt.NDArray[np.bool_], score: np.ndarray) -> WeightedScore:
    """Return the area under the ROC curve (Mann-Whitney, ties counting half) as a function of row weights.

    Args:
      positive: [M], whether a row is a positive.
      score: [M], higher for rows more likely to be one.
    """
    levels, at = np.unique(score, return_inverse=True)
    order = np.argsort(at, kind="stable")
    starts = np.searchsorted(at[order], np.arange(len(levels)))

    def area(weights: np.ndarray) -> np.ndarray:
        if not len(score):
            return np.full(len(weights), np.nan)
        right, wrong = (
            np.add.reduceat(np.where(mask[order], weights[:, order], 0.0), starts, axis=1)
            for mask in (positive, ~positive)
        )
        below = np.cumsum(wrong, axis=1) - wrong / 2
        return ratio((right * below).sum(1), right.sum(1) * wrong.sum(1))

    return area


def area_under_curve(positive: npt.NDArray[np.bool_], score: np.ndarray) -> float:
    """Return the chance that a positive scores above a negative, ties counting half; NaN without either."""
    return float(weighted_auc(positive, score)(np.ones((1, len(score))))[0])


def explained_share(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return R2, 1 - mean squared error / variance; NaN of constant values."""
    variance = np.var(true)
    return float(1 - np.mean(np.square(true - predicted)) / variance) if variance > 0 else math.nan


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """How often what was predicted with probability p came true, in K equally wide bins of p."""

    edges: np.ndarray  # [K + 1] from 0 to 1
    count: np.ndarray  # [K] int64, predictions in the bin
    predicted: np.ndarray  # [K] float64, mean prediction; NaN where there is none
    observed: np.ndarray  # [K] float64, mean truth; NaN where there is none


def reliability(predicted: np.ndarray, true: np.ndarray, bins: int = 10) -> Reliability:
    """Return the reliability table of predictions; those without a truth (NaN) are left out.

    Args:
      predicted: [...] in [0, 1].
      true: [...] in [0, 1], NaN = missing.
      bins: K.
    """
    known = ~np.isnan(true)
    guess, truth = np.asarray(predicted, np.float64)[known], np.asarray(true, np.float64)[known]
    edges = np.linspace(0, 1, bins + 1)
    at = np.clip(np.searchsorted(edges, guess, side="right") - 1, 0, bins - 1)
    count = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(at, weights=values, minlength=bins) / count for values in (guess, truth)]
    return Reliability(edges, count, *means)
