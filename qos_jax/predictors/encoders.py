"""Encode texts as features: raw ones, which no fit changes, and those of a fitted encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from qos_jax.predictors.config import PredictorConfig
from qos_jax.predictors.minilm import MINILM_SIZE, sentence_embeddings
from qos_jax.predictors.ngrams import NgramEncoder, fit_ngrams, hashed_counts


@dataclasses.dataclass(frozen=True, eq=False)
class Raw:
    """Features of M texts that need no fit, computed once for all fits to parts of them."""

    counts: sparse.csr_matrix | None  # [M, ...] hashed, if the encoder reads n-grams
    sentences: np.ndarray | None  # [M, MINILM_SIZE], if it reads sentence embeddings
    surface: np.ndarray  # [M, S] float32

    def take(self, rows: np.ndarray) -> Raw:
        """Return some rows."""
        counts = None if self.counts is None else self.counts[rows]
        sentences = None if self.sentences is None else self.sentences[rows]
        return Raw(counts, sentences, self.surface[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A fitted encoder: projection of n-grams, and mean and scale of embedding and surface features."""

    ngrams: NgramEncoder | None  # None: sentence embeddings are all
    mean: np.ndarray  # [D] float32, of embedding and surface features over the rows of the fit
    std: np.ndarray  # [D] float32, > 0, what they are divided by: one number for all components of n-grams


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """M texts as encoded by a fitted encoder."""

    text: sparse.csr_matrix | np.ndarray  # [M, F] float32, weighed n-grams, then sentence embeddings
    embedding: np.ndarray  # [M, K] float32; projected n-grams, of length 1, then sentence embeddings
    features: np.ndarray  # [M, K + S] float32, embedding and surface features, centred and scaled

    @property
    def surface(self) -> np.ndarray:
        """[M, S] float32, the surface features, standardised."""
        return self.features[:, self.embedding.shape[1] :]

    def take(self, rows: np.ndarray) -> Encoded:
        """Return some rows."""
        return Encoded(self.text[rows], self.embedding[rows], self.features[rows])


def raw_features(config: PredictorConfig, prompts: Sequence[str]) -> Raw:
    """Return the raw features of M texts.

    Raises:
      InputError: if the encoder's package is not installed.
    """
    counts = hashed_counts(config, prompts) if config.uses_ngrams else None
    sentences = sentence_embeddings(prompts) if config.uses_minilm else None
    return Raw(counts, sentences, surface_features(prompts))


def text_size(config: PredictorConfig) -> int:
    """Return the size K of the embedding that a configuration gives."""
    return config.components * config.uses_ngrams + MINILM_SIZE * config.uses_minilm


def fit_encoder(config: PredictorConfig, raw: Raw) -> Encoder:
    """Fit the projection of n-grams, if there are any, and what features are centred and scaled by.

    Components of n-grams are scaled as one: scaled each by its own spread, those that explain
    little would weigh as much as those that explain most.
    """
    ngrams = None if raw.counts is None else fit_ngrams(config, raw.counts)
    joined = np.concatenate([_embedding(ngrams, raw)[1], raw.surface], axis=1)
    std = joined.std(0)
    components = config.components * config.uses_ngrams
    std[:components] = np.sqrt(np.mean(np.square(std[:components])) if components else 0.0)
    return Encoder(ngrams, joined.mean(0), np.where(std > 1e-6, std, 1.0).astype(np.float32))


def encode(encoder: Encoder, raw: Raw) -> Encoded:
    """Return M texts encoded."""
    text, embedding = _embedding(encoder.ngrams, raw)
    joined = np.concatenate([embedding, raw.surface], axis=1)
    return Encoded(text, embedding, (joined - encoder.mean) / encoder.std)


def unit(embedding: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; a row of zeros stays."""
    norm = np.linalg.norm(embedding, axis=-1, keepdims=True)
    return (embedding / np.maximum(norm, 1e-9)).astype(np.float32)


def _embedding(ngrams: NgramEncoder | None, raw: Raw) -> tuple[sparse.csr_matrix | np.ndarray, np.ndarray]:
    if ngrams is None or raw.counts is None:
        assert raw.sentences is not None
        return raw.sentences, raw.sentences
    weighed = ngrams.weigh(raw.counts)
    projected = unit(ngrams.project(weighed))
    if raw.sentences is None:
        return weighed, projected
    text = sparse.hstack([weighed, sparse.csr_matrix(raw.sentences)], format="csr", dtype=np.float32)
    return text, np.concatenate([projected, raw.sentences], axis=1)


_COUNTED = ("\n", "?", "\\", "$", "`", "{", "=", ",", ".", '"')


SURFACE_FEATURES = 5 + len(_COUNTED)


def surface_features(prompts: Sequence[str]) -> np.ndarray:
    """Return [M, SURFACE_FEATURES] float32: logs of lengths and counts, shares of kinds of character."""
    rows = np.empty((len(prompts), SURFACE_FEATURES), np.float64)
    for row, prompt in zip(rows, prompts, strict=True):
        size = max(len(prompt), 1)
        digits = sum(map(str.isdigit, prompt))
        capitals = sum(map(str.isupper, prompt))
        letters = sum(map(str.isalpha, prompt))
        row[:5] = len(prompt), len(prompt.split()), digits, capitals, letters
        row[5:] = [prompt.count(mark) for mark in _COUNTED]
        row[4] = row[4] / size
    rows[:, :4] = np.log1p(rows[:, :4])
    rows[:, 5:] = np.log1p(rows[:, 5:])
    return rows.astype(np.float32)
