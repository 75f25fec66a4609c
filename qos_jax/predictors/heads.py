"""One head of a predictor: from encoded text to quality and length, corrected on prompts kept for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.predictors.answers import Answers
from qos_jax.predictors.calibration import Calibration, fit_calibration
from qos_jax.predictors.config import PredictorConfig
from qos_jax.predictors.encoders import Encoded, unit
from qos_jax.predictors.neighbours import Neighbours, apply_neighbours, fit_neighbours
from qos_jax.predictors.networks import Targets, apply_networks, fit_networks, network_of
from qos_jax.predictors.predictions import Predictions, bucket_edges, bucket_of
from qos_jax.predictors.ridge import Ridge, fit_ridge, uses_ridge

_CHUNK_ROWS = 256  # rows predicted at once: two compiled programs, for one prompt and for so many


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """A fitted head: quality and length from encoded text; :func:`fit_head` makes one."""

    ridge: Ridge | None  # what the networks read beside the encoded text, if anything
    body: Any  # parameters of the networks, leaves [members, ...], or Neighbours
    calibration: Calibration

    def answers(self, config: PredictorConfig, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Return quality [M, N] and probabilities of length buckets [M, N, B], float32."""
        hints = None if self.ridge is None else self.ridge.answers(encoded)
        return self.calibration.apply(*_apply(config, self.body, _inputs(config, encoded, hints)))


def fit_head(
    config: PredictorConfig,
    number: int,
    encoded: Encoded,
    answers: Answers,
    groups: np.ndarray,
    learned: np.ndarray,
    judged: np.ndarray,
    on_progress: Callable[[int], None],
) -> tuple[Head, np.ndarray]:
    """Fit a head to some of M prompts and calibrate it on others.

    Args:
      config: kind, sizes and training.
      number: of the head; heads of different numbers draw different random numbers.
      encoded: the M prompts.
      answers: theirs.
      groups: [M] int, equal for equal texts.
      learned: rows to learn from.
      judged: rows for early stopping and calibration.
      on_progress: takes how many more epochs are done, ``max_epochs`` in all.

    Returns:
      The head, and log(true) - log(predicted median) output tokens of the judged rows, [J, N]; NaN = missing.
    """
    part = np.concatenate([learned, judged])  # from here on, rows are indices into it
    learned, judged = np.split(np.arange(len(part)), [len(learned)])
    encoded, known = encoded.take(part), answers.take(part)
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
            config, encoded.take(learned), known.take(learned), groups[part[learned]]
        )
        hints = np.concatenate([out_of_fold_hints, ridge.answers(encoded.take(judged))])
    inputs = _inputs(config, encoded, hints)
    body: Any
    if config.head == "neighbours":
        body = fit_neighbours(inputs, targets, learned, config.buckets)
        on_progress(config.max_epochs)
    else:
        body = fit_networks(config, number, inputs, targets, learned, judged, on_progress)
    held: Targets = jax.tree.map(lambda leaf: leaf[judged], targets)
    quality, length = _apply(config, body, inputs[judged])
    calibration = fit_calibration(
        quality, length, held.quality, held.quality_weight, held.bucket, held.bucket_weight
    )
    predicted = Predictions(*calibration.apply(quality, length), edges)
    true = np.maximum(known.output_tokens[judged], 1)
    error = np.where(held.bucket_weight > 0, np.log(true) - np.log(predicted.output_tokens), np.nan)
    return Head(ridge, body, calibration), error


def _inputs(config: PredictorConfig, encoded: Encoded, hints: np.ndarray | None) -> np.ndarray:
    """Return what the head reads of M texts: [M, K] of length 1 for neighbours, else [M, D (+ 2 N)]."""
    if config.head == "neighbours":
        return unit(encoded.embedding)
    return encoded.features if hints is None else np.concatenate([encoded.features, hints], axis=1)


def _apply(config: PredictorConfig, body: Any, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply the head, a constant number of rows at a time; probabilities before calibration."""
    rows = len(inputs)
    chunk = 1 if rows == 1 else _CHUNK_ROWS
    found = []
    for start in range(0, rows, chunk):
        part = inputs[start : start + chunk]
        padded = jnp.asarray(np.pad(part, ((0, chunk - len(part)), (0, 0))))
        if isinstance(body, Neighbours):
            k = min(config.neighbours, len(body.embedding))
            answer = apply_neighbours(k, body, padded)
        else:
            experts = body["params"]["quality"]["bias"].shape[-1]
            answer = apply_networks(network_of(config, experts), body, padded)
        found.append([np.asarray(values)[: len(part)] for values in answer])
    quality, length = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return quality, length
