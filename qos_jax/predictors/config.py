"""The configuration of a predictor: encoder, head, sizes, training; every number that shapes a fit."""

from __future__ import annotations

import dataclasses

from qos_jax.checks import COUNT, Interval, check_range
from qos_jax.errors import input_error
from qos_jax.options import check_options, option

ENCODERS: tuple[str, ...] = ("ngrams", "minilm", "ngrams+minilm")
HEADS: tuple[str, ...] = ("mlp", "linear", "neighbours")


_ALLOWED = {
    "seed": Interval(0, 2**31 - 1, whole=True),
    "hash_bits": Interval(8, 24, whole=True),
    "word_ngram": Interval(1, 5, whole=True),
    "char_ngram": Interval(0, 8, whole=True),
    "min_documents": COUNT,
    "components": Interval(1, 4096, whole=True),
    "ridge_folds": Interval(0, 64, whole=True),
    "ridge_quality_penalty": Interval(1e-3, 1e9),
    "ridge_length_penalty": Interval(1e-3, 1e9),
    "max_output_tokens": Interval(2, 2**30, whole=True),
    "buckets": Interval(2, 1024, whole=True),
    "heads": Interval(1, 64, whole=True),
    "members": Interval(1, 256, whole=True),
    "hidden": Interval(1, 2**16, whole=True),
    "dropout": Interval(0, 0.95),
    "learning_rate": Interval(1e-8, 1),
    "weight_decay": Interval(0, 1),
    "batch_size": Interval(1, 2**20, whole=True),
    "max_epochs": Interval(1, 2**20, whole=True),
    "patience": Interval(1, 2**20, whole=True),
    "validation_share": Interval(0.02, 0.5),
    "neighbours": Interval(1, 4096, whole=True),
}


@dataclasses.dataclass(frozen=True)
class PredictorConfig:
    """Configuration of a predictor of quality and output length: encoder, head, sizes and training.

    Raises:
      InputError: naming the field, its value and what is allowed.
    """

    encoder: str = option("ngrams", known=ENCODERS)  # hashed n-grams (no weights), MiniLM, or both
    head: str = option("mlp", known=HEADS)  # what reads the encoded text
    seed: int = 0  # of everything random; same seed and data, same bits

    hash_bits: int = 18  # word n-grams, and apart from them character n-grams, fall into 2**hash_bits columns
    word_ngram: int = 2  # words of the longest word n-gram
    char_ngram: int = 4  # characters of the longest character n-gram; the shortest has 2; 0 = none
    min_documents: int = 5  # a column is used if so many prompts of the fit have it
    components: int = 128  # K, truncated SVD of the columns used

    ridge_folds: int = 5  # of the ridge regressions whose answers the networks read, on all columns; 0 = none
    ridge_quality_penalty: float = 4.0  # on squared weights; a text has length 1
    ridge_length_penalty: float = 1.0  # likewise, for log tokens

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
        check_options(self)
        for field, allowed in _ALLOWED.items():
            check_range(self, [field], allowed)
        if self.ridge_folds == 1:
            raise input_error("1 leaves no other fold", field="ridge_folds", remedy="give 0, or at least 2")
