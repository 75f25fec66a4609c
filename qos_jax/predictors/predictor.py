"""Predictors of quality and output length from the prompt: fitted, asked, and asked out of fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.errors import input_error
from qos_jax.predictors.answers import Answers, check_answers, check_experts, check_prompts, groups_of
from qos_jax.predictors.calibration import Calibration, fit_calibration
from qos_jax.predictors.config import PredictorConfig
from qos_jax.predictors.encoders import Encoded, Encoder, Raw, encode, fit_encoder, raw_features
from qos_jax.predictors.neighbours import Neighbours, apply_neighbours, fit_neighbours, unit
from qos_jax.predictors.networks import Targets, apply_networks, fit_networks, network_of
from qos_jax.predictors.predictions import Predictions, bucket_edges, bucket_of
from qos_jax.predictors.ridge import Ridge, fit_ridge, uses_ridge

_CHUNK_ROWS = 256  # rows asked at once: two compiled programs, for one prompt and for so many

OnProgress = Callable[[int, int], None]
"""Takes how many units are done, and of how many."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A fitted predictor; :func:`fit_predictor` makes one."""

    config: PredictorConfig
    experts: tuple[str, ...]  # N names, the order of every N axis
    encoder: Encoder
    ridge: Ridge | None  # what the networks read beside the encoded text, if anything
    head: Any  # parameters of the networks, leaves [members, ...], or Neighbours
    calibration: Calibration
    bucket_edges_tokens: np.ndarray  # [B + 1] float32
    length_log_std: np.ndarray  # [N] float32, std of log(true) - log(predicted median) on validation rows

    def predict(self, prompts: Sequence[str]) -> Predictions:
        """Return predictions for M prompts.

        Raises:
          InputError: if one is no text, or the encoder's package is not installed.
        """
        check_prompts(prompts)
        return self._predict(raw_features(self.config, prompts))

    def _predict(self, raw: Raw) -> Predictions:
        encoded = encode(self.encoder, raw)
        hints = None if self.ridge is None else self.ridge.answers(encoded)
        inputs = _inputs(self.config, encoded, hints)
        quality, length = self.calibration.apply(*_apply(self.config, self.head, inputs))
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
      on_progress: called as it goes.

    Returns:
      The predictor. Of the prompts, ``validation_share`` (equal texts together) are kept for early stopping,
      calibration and errors.

    Raises:
      InputError: naming field, place and remedy: shapes that do not fit, a value out of range, too few
        prompts, an expert without answers, a package missing.
    """
    check_experts(experts)
    answers = check_answers(config, prompts, quality, output_tokens, experts)
    rows = np.arange(len(prompts))
    return _fit(
        config, raw_features(config, prompts), answers, rows, groups_of(prompts), experts, on_progress
    )


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

    Arguments as :func:`fit_predictor`; ``folds`` fits are made, each on all folds but one: nothing of a fit,
    the weights of n-grams included, knows the rows that it predicts.

    Raises:
      InputError: as :func:`fit_predictor`, or if there are fewer different prompts than folds.
    """
    check_experts(experts)
    answers = check_answers(config, prompts, quality, output_tokens, experts)
    groups = groups_of(prompts)
    different = int(groups.max()) + 1
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= different:
        raise input_error(
            f"{folds!r} is out of range",
            field="folds",
            remedy=f"give a whole number in [2, {different}], the number of different prompts",
        )
    order = np.random.default_rng([config.seed, 2]).permutation(different)
    fold = (np.argsort(order) % folds)[groups]
    raw = raw_features(config, prompts)
    shape = (len(prompts), len(experts))
    found_quality = np.empty(shape, np.float32)
    found_length = np.empty((*shape, config.buckets), np.float32)
    for number in range(folds):

        def tell(done: int, of: int, number: int = number) -> None:
            if on_progress is not None:
                on_progress(number * of + done, folds * of)

        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        fitted = _fit(config, raw, answers, inside, groups, experts, tell)
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
    """Fit to some rows of all; nothing is computed from the others."""
    train, validation = _split(config, rows, groups, answers, experts)
    encoder = fit_encoder(config, raw.take(train))
    part = np.concatenate([train, validation])  # from here on, rows are places in this
    learned, judged = np.split(np.arange(len(part)), [len(train)])
    encoded, known = encode(encoder, raw.take(part)), answers.take(part)
    edges = bucket_edges(config.buckets, config.max_output_tokens)
    targets = Targets(
        quality=np.nan_to_num(known.quality).astype(np.float32),
        quality_weight=(~np.isnan(known.quality)).astype(np.float32),
        bucket=bucket_of(known.output_tokens, edges),
        bucket_weight=(known.output_tokens > 0).astype(np.float32),
    )
    ridge, hints = None, None
    if uses_ridge(config):
        ridge, out_of_fold_hints = fit_ridge(
            config, encoded.take(learned), known.take(learned), groups[train]
        )
        hints = np.concatenate([out_of_fold_hints, ridge.answers(encoded.take(judged))])
    inputs = _inputs(config, encoded, hints)
    head: Any
    if config.head == "neighbours":
        head = fit_neighbours(inputs, targets, learned, config.buckets)
        if on_progress is not None:
            on_progress(1, 1)
    else:
        done = 0

        def tell(epochs: int) -> None:
            nonlocal done
            done += epochs
            if on_progress is not None:
                on_progress(done, config.max_epochs)

        head = fit_networks(config, inputs, targets, learned, judged, tell)
    held: Targets = jax.tree.map(lambda leaf: leaf[judged], targets)
    quality, length = _apply(config, head, inputs[judged])
    calibration = fit_calibration(
        quality, length, held.quality, held.quality_weight, held.bucket, held.bucket_weight
    )
    predicted = Predictions(*calibration.apply(quality, length), edges)
    true = np.maximum(known.output_tokens[judged], 1)
    error = np.where(held.bucket_weight > 0, np.log(true) - np.log(predicted.output_tokens), np.nan)
    std = np.nanstd(error, 0).astype(np.float32)
    return Predictor(config, tuple(experts), encoder, ridge, head, calibration, edges, std)


def _split(
    config: PredictorConfig, rows: np.ndarray, groups: np.ndarray, answers: Answers, experts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows into those to learn from and those to validate on; equal texts stay together."""
    different = np.unique(groups[rows])
    order = np.random.default_rng([config.seed, 0]).permutation(different)
    held = order[: max(1, round(config.validation_share * len(different)))]
    inside = np.isin(groups[rows], held)
    parts = rows[~inside], rows[inside]
    for field, known in (
        ("quality", ~np.isnan(answers.quality)),
        ("output_tokens", answers.output_tokens > 0),
    ):
        for part, use in zip(parts, ("learn from", "validate on"), strict=True):
            lacking = np.flatnonzero(known[part].sum(0) < 2)
            if lacking.size:
                count = int(known[part][:, lacking[0]].sum())
                raise input_error(
                    f"expert {experts[lacking[0]]!r} has {count} answers in {len(part)} prompts to {use}",
                    field=field,
                    remedy="give more of its answers, or leave the expert out",
                )
    return parts


def _inputs(config: PredictorConfig, encoded: Encoded, hints: np.ndarray | None) -> np.ndarray:
    """Return what the head reads of M texts: [M, K] of length 1 for neighbours, else [M, D (+ 2 N)]."""
    if config.head == "neighbours":
        return unit(encoded.embedding)
    return encoded.features if hints is None else np.concatenate([encoded.features, hints], axis=1)


def _apply(config: PredictorConfig, head: Any, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ask the head, a constant number of rows at a time; probabilities as they are before calibration."""
    rows = len(inputs)
    chunk = 1 if rows == 1 else _CHUNK_ROWS
    found = []
    for start in range(0, rows, chunk):
        part = inputs[start : start + chunk]
        padded = jnp.asarray(np.pad(part, ((0, chunk - len(part)), (0, 0))))
        if isinstance(head, Neighbours):
            k = min(config.neighbours, len(head.embedding))
            answer = apply_neighbours(k, head, padded)
        else:
            experts = head["params"]["quality"]["bias"].shape[-1]
            answer = apply_networks(network_of(config, experts), head, padded)
        found.append([np.asarray(values)[: len(part)] for values in answer])
    quality, length = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return quality, length
