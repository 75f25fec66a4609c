"""Make a request table: fit predictors to train rows; predict those out of fold, the others by the fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from qos_jax.predictors import Predictions, Predictor, fit_predictor, out_of_fold
from qos_jax.tables.answers.log import MISSING_TOKENS, take_rows
from qos_jax.tables.answers.rows import TRAIN
from qos_jax.tables.preparation import Preparation, fitted_answers
from qos_jax.workload import NamedTable, RequestTable
from qos_jax.workload.requests import MIN_PREDICTED_TOKENS
from qos_jax.workload.table_file import MAX_LENGTH_LOG_STD


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A request table, the predictor that made its predictions, and those."""

    named: NamedTable
    predictor: Predictor
    predictions: Predictions  # [M, N], of train rows out of fold


def fit_table(plan: Preparation, on_progress: Callable[[int], None] | None = None) -> Prepared:
    """Fit the predictor on train rows and predict all rows, those of train out of fold.

    A train row's prediction comes from a fit that saw neither it nor a row of the same prompt; filled answers
    are not fitted to. The length error that routers are given is that of train rows out of fold.
    """
    log, train = plan.rows.log, plan.split == TRAIN
    answers = fitted_answers(plan.rows, train)
    progress = _Progress(plan, on_progress)
    folded = out_of_fold(
        plan.config.predictor, *answers, folds=plan.config.folds, on_progress=progress.of(plan.config.folds)
    )
    predictor = fit_predictor(plan.config.predictor, *answers, on_progress=progress.of(1))
    progress.finish()
    others = predictor.predict(take_rows(log, ~train).prompts)
    predictions = dataclasses.replace(
        folded,
        quality=_interleaved(train, folded.quality, others.quality),
        bucket_probability=_interleaved(train, folded.bucket_probability, others.bucket_probability),
    )
    leaves: dict[str, Any] = {
        "prompt_tokens": log.prompt_tokens,
        "quality": log.quality,
        "output_tokens": log.output_tokens,
        "predicted_quality": np.clip(predictions.quality, 0.0, 1.0).astype(np.float32),
    }
    length = np.maximum(predictions.output_tokens, MIN_PREDICTED_TOKENS)
    leaves["predicted_output_tokens"] = length.astype(np.float32)
    table = RequestTable(**leaves)
    named = NamedTable(log.experts, table, _known_length_error(plan, predictions), plan.split, log.file)
    return Prepared(named, predictor, predictions)


def _known_length_error(plan: Preparation, predictions: Predictions) -> npt.NDArray[np.float32]:
    """Return the std of log(true) - log(predicted) output tokens over train rows, out of fold: [N]."""
    error = np.log(plan.rows.log.output_tokens) - np.log(predictions.output_tokens)
    known = (plan.rows.given.output_tokens != MISSING_TOKENS) & (plan.split == TRAIN)[:, None]
    std = np.std(error, axis=0, where=known)
    return np.minimum(std, MAX_LENGTH_LOG_STD).astype(np.float32)


class _Progress:
    """Converts the progress of each fit, units done of all, into steps of ``Preparation.work``."""

    def __init__(self, plan: Preparation, on_progress: Callable[[int], None] | None) -> None:
        self._plan, self._on_progress = plan, on_progress
        self._begun, self._reported = 0, 0

    def of(self, fits: int) -> Callable[[int, int], None]:
        """Return the callback of the next ``fits`` fits."""
        start, self._begun = self._begun * self._plan.epochs, self._begun + fits
        return lambda done, of: self._report(start + done * fits * self._plan.epochs // of)

    def finish(self) -> None:
        """Count the steps that early stopping left out."""
        self._report(self._plan.work)

    def _report(self, done: int) -> None:
        if self._on_progress is not None and done > self._reported:
            self._on_progress(done - self._reported)
            self._reported = done


def _interleaved(at: npt.NDArray[np.bool_], first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return an array with the rows of ``first`` where ``at`` [M] holds, and of ``second`` elsewhere."""
    whole = np.empty((len(at), *first.shape[1:]), first.dtype)
    whole[at], whole[~at] = first, second
    return whole
