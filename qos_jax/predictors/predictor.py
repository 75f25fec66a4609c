"""Fit predictors of quality and output length to prompts and answers; predict, also out of fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from qos_jax.errors import input_error
from qos_jax.predictors.answers import Answers, check_answers, check_prompts, groups_of
from qos_jax.predictors.config import PredictorConfig
from qos_jax.predictors.encoders import Encoder, Raw, encode, fit_encoder, raw_features
from qos_jax.predictors.heads import Head, fit_head
from qos_jax.predictors.predictions import Predictions, bucket_edges

OnProgress = Callable[[int, int], None]
"""Takes the number of units done, and the number of all."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A fitted predictor; :func:`fit_predictor` makes one."""

    config: PredictorConfig
    experts: tuple[str, ...]  # N names, the order of every N axis
    encoder: Encoder
    heads: tuple[Head, ...]  # whose predictions are averaged
    bucket_edges_tokens: np.ndarray  # [B + 1] float32
    length_log_std: np.ndarray  # [N] float32, std of log(true) - log(predicted median), each head's own rows

    def predict(self, prompts: Sequence[str]) -> Predictions:
        """Return predictions for M prompts.

        Raises:
          InputError: if one is no text, or the encoder's package is not installed.
        """
        check_prompts(prompts)
        return self._predict(raw_features(self.config, prompts))

    def _predict(self, raw: Raw) -> Predictions:
        encoded = encode(self.encoder, raw)
        answers = [head.answers(self.config, encoded) for head in self.heads]
        quality, length = (np.mean(parts, axis=0) for parts in zip(*answers, strict=True))
        return Predictions(quality, length, self.bucket_edges_tokens)


def fit_predictor(
    config: PredictorConfig,
    prompts: Sequence[str],
    quality: np.ndarray,
    output_tokens: np.ndarray,
    experts: Sequence[str],
    on_progress: OnProgress | None = None,
) -> Predictor:
    """Fit a predictor to the answers that N experts gave to M prompts.

    Args:
      config: encoder, head and training.
      prompts: [M] texts.
      quality: [M, N] in [0, 1]; NaN = missing.
      output_tokens: [M, N] whole numbers from 1; -1 = missing.
      experts: N unique names.
      on_progress: called with epochs done and epochs in all.

    Returns:
      The predictor. The encoder is fitted to all prompts, without their answers. Each head keeps another
      ``validation_share`` of the prompts (equal texts together) for early stopping, calibration and errors.

    Raises:
      InputError: naming field, index and remedy: shapes that do not fit, a value out of range, too few
        prompts, an expert without answers, a package missing.
    """
    answers = check_answers(config, prompts, quality, output_tokens, experts)
    raw, rows = raw_features(config, prompts), np.arange(len(prompts))
    return _fit(config, raw, answers, rows, groups_of(prompts), experts, on_progress)


def out_of_fold(
    config: PredictorConfig,
    prompts: Sequence[str],
    quality: np.ndarray,
    output_tokens: np.ndarray,
    experts: Sequence[str],
    folds: int = 5,
    on_progress: OnProgress | None = None,
) -> Predictions:
    """Predict every prompt by a fit that never saw it, nor an equal text.

    ``folds`` fits are made, each on all folds but one; nothing of a fit, the weights of n-grams included,
    depends on the rows that it predicts. The other arguments are those of :func:`fit_predictor`.

    Raises:
      InputError: as :func:`fit_predictor`, or if there are fewer different prompts than folds.
    """
    answers = check_answers(config, prompts, quality, output_tokens, experts)
    groups = groups_of(prompts)
    different = int(groups.max()) + 1
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= different:
        remedy = f"give a whole number in [2, {different}], the number of different prompts"
        raise input_error(f"{folds!r} is out of range", field="folds", remedy=remedy)
    order = np.random.default_rng([config.seed, 2]).permutation(different)
    fold = (np.argsort(order) % folds)[groups]
    raw = raw_features(config, prompts)
    shape = (len(prompts), len(experts))
    found_quality = np.empty(shape, np.float32)
    found_length = np.empty((*shape, config.buckets), np.float32)
    for number in range(folds):

        def report(done: int, of: int, number: int = number) -> None:
            if on_progress is not None:
                on_progress(number * of + done, folds * of)

        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        fitted = _fit(config, raw, answers, inside, groups, experts, report)
        predicted = fitted._predict(raw.take(outside))
        found_quality[outside] = predicted.quality
        found_length[outside] = predicted.bucket_probability
    return Predictions(found_quality, found_length, bucket_edges(config.buckets, config.max_output_tokens))


def _fit(
    config: PredictorConfig,
    raw: Raw,
    answers: Answers,
    rows: np.ndarray,
    groups: np.ndarray,
    experts: Sequence[str],
    on_progress: OnProgress | None,
) -> Predictor:
    """Fit to some rows; nothing is computed from the others."""
    parts = [_split(config, number, rows, groups, answers, experts) for number in range(config.heads)]
    encoder = fit_encoder(config, raw.take(rows))
    encoded = encode(encoder, raw.take(rows))
    done = 0

    def report(epochs: int) -> None:
        nonlocal done
        done += epochs
        if on_progress is not None:
            on_progress(done, config.heads * config.max_epochs)

    fits = [
        fit_head(config, number, encoded, answers.take(rows), groups[rows], learned, judged, report)
        for number, (learned, judged) in enumerate(parts)
    ]
    heads, errors = zip(*fits, strict=True)
    edges = bucket_edges(config.buckets, config.max_output_tokens)
    std = np.nanstd(np.concatenate(errors), 0).astype(np.float32)
    return Predictor(config, tuple(experts), encoder, heads, edges, std)


def _split(
    config: PredictorConfig,
    number: int,
    rows: np.ndarray,
    groups: np.ndarray,
    answers: Answers,
    experts: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into ``rows`` into those a head learns from and those it is judged on.

    Equal texts stay together. Heads of successive numbers are judged on different texts until all had a turn.
    """
    different = np.unique(groups[rows])
    order = np.random.default_rng([config.seed, 0]).permutation(different)
    size = max(1, round(config.validation_share * len(different)))
    held = np.roll(order, -number * size)[:size]
    inside = np.isin(groups[rows], held)
    parts = np.flatnonzero(~inside), np.flatnonzero(inside)
    for field, known in (
        ("quality", ~np.isnan(answers.quality[rows])),
        ("output_tokens", answers.output_tokens[rows] > 0),
    ):
        for part, use in zip(parts, ("learn from", "validate on"), strict=True):
            lacking = np.flatnonzero(known[part].sum(0) < 2)
            if lacking.size:
                count = int(known[part][:, lacking[0]].sum())
                fault = f"expert {experts[lacking[0]]!r} has {count} answers in {len(part)} prompts to {use}"
                remedy = "give more of its answers, or leave the expert out"
                raise input_error(fault, field=field, remedy=remedy)
    return parts
