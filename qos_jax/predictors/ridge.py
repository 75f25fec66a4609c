"""Ridge regression on all columns of encoded text, whose answers the networks read as inputs.

A projection loses rare n-grams that a linear model on all columns still uses. For the rows of a fit the
answers are those of regressions on other folds of it (stacked generalisation, Wolpert 1992), so the networks
learn how far to trust them as they come on new texts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import sparse

from qos_jax.errors import input_error
from qos_jax.predictors.answers import Answers
from qos_jax.predictors.config import PredictorConfig
from qos_jax.predictors.encoders import Encoded

_SURFACE = 0.08  # of the standardised surface features beside a text of length 1: penalised much, yet used


@dataclasses.dataclass(frozen=True, eq=False)
class Ridge:
    """Linear models of N qualities, then N log lengths (tokens), on F columns of text and S of surface."""

    weights: np.ndarray  # [F + S, 2 N] float32
    bias: np.ndarray  # [2 N] float32
    mean: np.ndarray  # [2 N] float32, of the answers out of fold
    std: np.ndarray  # [2 N] float32, > 0

    def answers(self, encoded: Encoded) -> np.ndarray:
        """Return [M, 2 N] float32, standardised by what it answered out of fold."""
        return self._standardised(_inputs(encoded) @ self.weights + self.bias)

    def _standardised(self, found: np.ndarray) -> np.ndarray:
        return ((found - self.mean) / self.std).astype(np.float32)


def uses_ridge(config: PredictorConfig) -> bool:
    """Return whether a configuration's head reads answers of ridge regressions."""
    return config.ridge_folds > 0 and config.head != "neighbours"


def fit_ridge(
    config: PredictorConfig, encoded: Encoded, answers: Answers, groups: np.ndarray
) -> tuple[Ridge, np.ndarray]:
    """Fit to M prompts and answer them out of fold.

    Args:
      config: folds and penalties.
      encoded: the M prompts.
      answers: theirs.
      groups: [M] int, equal for equal texts, which share a fold.

    Returns:
      The models fitted to all M, and their standardised answers to the M out of fold, [M, 2 N] float32.
    """
    inputs = _inputs(encoded)
    truth = np.concatenate([answers.quality, _log_tokens(answers.output_tokens)], axis=1)
    different, at = np.unique(groups, return_inverse=True)
    order = np.random.default_rng([config.seed, 3]).permutation(len(different))
    fold = (order % config.ridge_folds)[at]
    found = np.empty(truth.shape, np.float32)
    for number in range(config.ridge_folds):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if outside.size:
            weights, bias = _solve(config, inputs[inside], truth[inside])
            found[outside] = inputs[outside] @ weights + bias
    weights, bias = _solve(config, inputs, truth)
    std = found.std(0)
    fitted = Ridge(weights, bias, found.mean(0), np.where(std > 1e-6, std, 1.0).astype(np.float32))
    return fitted, fitted._standardised(found)


def _inputs(encoded: Encoded) -> Any:
    """Return [M, F + S] float32, sparse if the text is."""
    surface = encoded.surface * np.float32(_SURFACE)
    if sparse.issparse(encoded.text):
        return sparse.hstack([encoded.text, sparse.csr_matrix(surface)], format="csr", dtype=np.float32)
    return np.concatenate([encoded.text, surface], axis=1)


def _log_tokens(output_tokens: np.ndarray) -> np.ndarray:
    return np.where(output_tokens > 0, np.log(np.maximum(output_tokens, 1)), np.nan)


def _solve(config: PredictorConfig, inputs: Any, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [F + S, 2 N] and bias [2 N] of the regressions on the rows whose truth is known."""
    try:
        from sklearn.linear_model import Ridge as Regression
    except ImportError:
        fault = "needs scikit-learn, which is not installed"
        remedy = "run: pip install 'qos_jax[predictors]', or give 0"
        raise input_error(fault, field="ridge_folds", remedy=remedy) from None
    size = truth.shape[1]
    penalties = np.repeat([config.ridge_quality_penalty, config.ridge_length_penalty], size // 2)
    weights, bias = np.zeros((inputs.shape[1], size), np.float32), np.zeros(size, np.float32)
    known = ~np.isnan(truth)
    for column in range(size):
        rows = np.flatnonzero(known[:, column])
        if rows.size < 2:
            continue  # nothing to learn from: it answers 0 to every text
        model = Regression(penalties[column], solver="sparse_cg", tol=1e-3)
        model.fit(inputs if len(rows) == len(truth) else inputs[rows], truth[rows, column].astype(np.float32))
        weights[:, column], bias[column] = model.coef_, model.intercept_
    return weights, bias
