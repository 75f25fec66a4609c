"""From text to features: what no fit changes (raw), and what a fitted encoder makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from qos_jax.predictors.config import PredictorConfig
from qos_jax.predictors.minilm import MINILM_SIZE, sentence_embeddings
from qos_jax.predictors.ngrams import NgramEncoder, fit_ngrams, hashed_counts
from qos_jax.predictors.surface import surface_features


@dataclasses.dataclass(frozen=True, eq=False)
class Raw:
    """What is read from M texts without any fit: computed once, whatever is fitted to parts of it."""

    text: sparse.csr_matrix | np.ndarray  # [M, ...] hashed counts, or sentence embeddings
    surface: np.ndarray  # [M, S] float32

    def take(self, rows: np.ndarray) -> Raw:
        """Return some rows."""
        return Raw(self.text[rows], self.surface[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """Turns raw features into an embedding, and into that and the surface features, standardised."""

    ngrams: NgramEncoder | None  # None: the text is embedded already
    mean: np.ndarray  # [D] float32, of embedding and surface features over the rows of the fit
    std: np.ndarray  # [D] float32, > 0


def raw_features(config: PredictorConfig, prompts: Sequence[str]) -> Raw:
    """Read M texts.

    Raises:
      InputError: if the encoder's package is not installed.
    """
    if config.encoder == "minilm":
        return Raw(sentence_embeddings(prompts), surface_features(prompts))
    return Raw(hashed_counts(config, prompts), surface_features(prompts))


def text_size(config: PredictorConfig) -> int:
    """Return the size K of the embedding that a configuration gives."""
    return MINILM_SIZE if config.encoder == "minilm" else config.components


def fit_encoder(config: PredictorConfig, raw: Raw) -> Encoder:
    """Fit the projection of n-grams, if there are any, and the standardisation."""
    ngrams = fit_ngrams(config, raw.text) if config.encoder == "ngrams" else None
    joined = np.concatenate([_embedding(ngrams, raw), raw.surface], axis=1)
    std = joined.std(0)
    return Encoder(ngrams, joined.mean(0), np.where(std > 1e-6, std, 1.0).astype(np.float32))


def encode(encoder: Encoder, raw: Raw) -> tuple[np.ndarray, np.ndarray]:
    """Return the embedding [M, K] and the standardised features [M, D] of M texts, float32."""
    embedding = _embedding(encoder.ngrams, raw)
    joined = np.concatenate([embedding, raw.surface], axis=1)
    return embedding, (joined - encoder.mean) / encoder.std


def _embedding(ngrams: NgramEncoder | None, raw: Raw) -> np.ndarray:
    return np.asarray(raw.text) if ngrams is None else ngrams.encode(raw.text)
