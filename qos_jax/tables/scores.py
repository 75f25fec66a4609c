"""Scores of predictions that several reports share: area under the ROC curve, explained share of variance."""

from __future__ import annotations

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
