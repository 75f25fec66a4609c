"""What a predictor is made of: encoder, head, sizes, training; every number that shapes a fit."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from qos_jax.errors import input_error

Encoder = Literal["ngrams", "minilm", "ngrams+minilm"]
Head = Literal["mlp", "linear", "neighbours"]

ENCODERS: tuple[str, ...] = ("ngrams", "minilm", "ngrams+minilm")
HEADS: tuple[str, ...] = ("mlp", "linear", "neighbours")


@dataclasses.dataclass(frozen=True)
class PredictorConfig:
    """How predictors of quality and output length are fitted.

    Raises:
      InputError: naming the field, its value and what is allowed.
    """

    encoder: Encoder = "ngrams"  # hashed n-grams (no weights), the sentence encoder MiniLM, or both
    head: Head = "mlp"  # what reads the encoded text
    seed: int = 0  # of everything random; same seed and data, same bits

    hash_bits: int = 18  # word n-grams, and apart from them character n-grams, fall into 2**hash_bits columns
    word_ngram: int = 2  # words of the longest word n-gram
    char_ngram: int = 4  # characters of the longest character n-gram; the shortest has 2; 0 = none
    min_documents: int = 5  # a column is used if so many prompts of the fit have it
    components: int = 128  # K, truncated SVD of the columns used

    ridge_folds: int = 5  # of the ridge regressions whose answers the networks read, on all columns; 0 = none
    ridge_quality_penalty: float = 4.0  # on squared weights; a text has length 1
    ridge_length_penalty: float = 1.0  # the same, for log tokens

    max_output_tokens: int = 16_384  # upper end of the last length bucket
    buckets: int = 40  # B, length buckets, equally wide in log tokens from 1 token

    heads: int = 4  # fits whose predictions are averaged, each judged on other prompts
    members: int = 2  # networks of a head, whose probabilities are averaged
    hidden: tuple[int, ...] = (256, 128)  # units of each hidden layer of the head "mlp"
    dropout: float = 0.4  # share of inputs and hidden units left out in training
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    batch_size: int = 256  # prompts of a gradient step, at most; fewer where an epoch had few steps
    max_epochs: int = 60
    patience: int = 6  # epochs without a better validation loss before training stops
    validation_share: float = 0.12  # of prompts: kept by a head for early stopping, calibration, errors

    neighbours: int = 25  # k of the head "neighbours"

    @property
    def uses_ngrams(self) -> bool:
        """Whether the encoder reads n-grams."""
        return self.encoder != "minilm"

    @property
    def uses_minilm(self) -> bool:
        """Whether the encoder reads sentence embeddings."""
        return self.encoder != "ngrams"

    def __post_init__(self) -> None:
        for field, known in (("encoder", ENCODERS), ("head", HEADS)):
            value = getattr(self, field)
            if value not in known:
                raise input_error(
                    f"{value!r} is unknown", field=field, remedy=f"use one of {', '.join(known)}"
                )
        counts = {
            "seed": (0, 2**31 - 1),
            "hash_bits": (8, 24),
            "word_ngram": (1, 5),
            "char_ngram": (0, 8),
            "min_documents": (1, 2**31 - 1),
            "components": (1, 4096),
            "ridge_folds": (0, 64),
            "max_output_tokens": (2, 2**30),
            "buckets": (2, 1024),
            "heads": (1, 64),
            "members": (1, 256),
            "batch_size": (1, 2**20),
            "max_epochs": (1, 2**20),
            "patience": (1, 2**20),
            "neighbours": (1, 4096),
        }
        for field, (low, high) in counts.items():
            _check(field, getattr(self, field), low, high, whole=True)
        for units in self.hidden:
            _check("hidden", units, 1, 2**16, whole=True)
        if self.ridge_folds == 1:
            raise input_error("1 leaves no other fold", field="ridge_folds", remedy="give 0, or at least 2")
        for field in ("ridge_quality_penalty", "ridge_length_penalty"):
            _check(field, getattr(self, field), 1e-3, 1e9)
        _check("dropout", self.dropout, 0, 0.95)
        _check("learning_rate", self.learning_rate, 1e-8, 1)
        _check("weight_decay", self.weight_decay, 0, 1)
        _check("validation_share", self.validation_share, 0.02, 0.5)


def _check(field: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    fine = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fine or not math.isfinite(float(str(value))) or not low <= float(str(value)) <= high:
        raise input_error(
            f"{value!r} is out of range", field=field, remedy=f"give {kind} in [{low:g}, {high:.10g}]"
        )
