"""The default encoder: hashed word and character n-grams, weighed by rarity, projected by truncated SVD.

Latent semantic analysis (Deerwester et al. 1990) on hashed features (Weinberger et al. 2009). scikit-learn
does the hashing and the SVD: its hash (MurmurHash3) is stable across machines and versions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from qos_jax.errors import input_error
from qos_jax.predictors.config import PredictorConfig


@dataclasses.dataclass(frozen=True, eq=False)
class NgramEncoder:
    """A fitted encoder; F columns are used of all that a text may fall into."""

    config: PredictorConfig
    columns: np.ndarray  # [F] int32, rising: columns of the hashed counts that are used
    rarity: np.ndarray  # [F] float32, inverse document frequency
    components: np.ndarray  # [F, K] float32, projection; each fits a float16, as which it is stored

    def weigh(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return [M, F] float32, rows of length 1, of the counts of :func:`hashed_counts`."""
        return _weighed(counts, self.columns, self.rarity)

    def project(self, weighed: sparse.csr_matrix) -> np.ndarray:
        """Return [M, K] float32 of what :func:`weigh` gave."""
        return np.asarray(weighed @ self.components, np.float32)


def hashed_columns(config: PredictorConfig) -> int:
    """Return how many columns n-grams may fall into."""
    return 2**config.hash_bits * (2 if config.char_ngram >= 2 else 1)


def hashed_counts(config: PredictorConfig, prompts: Sequence[str]) -> sparse.csr_matrix:
    """Return [M, hashed_columns] float32: log(1 + count) of every n-gram's column.

    Raises:
      InputError: if scikit-learn is not installed.
    """
    blocks = [vectorizer.transform(prompts) for vectorizer in _vectorizers(config)]
    counts = sparse.hstack(blocks, format="csr", dtype=np.float32)
    counts.data = np.log1p(counts.data)
    return counts


def fit_ngrams(config: PredictorConfig, counts: sparse.csr_matrix) -> NgramEncoder:
    """Fit rarity and projection to the counts of :func:`hashed_counts`, [M, ...]."""
    from sklearn.utils.extmath import randomized_svd

    documents = np.bincount(counts.indices, minlength=counts.shape[1])
    columns = np.flatnonzero(documents >= min(config.min_documents, counts.shape[0])).astype(np.int32)
    if not columns.size:
        fault = f"no n-gram is in {config.min_documents} prompts"
        raise input_error(fault, field="min_documents", remedy="give more prompts, or a smaller number")
    rarity = (np.log((1 + counts.shape[0]) / (1 + documents[columns])) + 1).astype(np.float32)
    weighed = _weighed(counts, columns, rarity)
    rank = min(config.components, *weighed.shape)
    _, _, directions = randomized_svd(weighed, rank, n_iter=2, random_state=config.seed)
    components = np.zeros((len(columns), config.components), np.float16)
    components[:, :rank] = directions.T
    return NgramEncoder(config, columns, rarity, components.astype(np.float32))


def _weighed(counts: sparse.csr_matrix, columns: np.ndarray, rarity: np.ndarray) -> sparse.csr_matrix:
    """Keep the columns used, weigh them, and bring every row to length 1."""
    index = np.full(counts.shape[1], -1, np.int32)
    index[columns] = np.arange(len(columns), dtype=np.int32)
    at = index[counts.indices]
    used = at >= 0
    ends = np.concatenate([[0], np.cumsum(used)])[counts.indptr]
    data = counts.data[used] * rarity[at[used]]
    squares = np.concatenate([[0.0], np.cumsum(np.square(data, dtype=np.float64))])[ends]
    norm = np.sqrt(np.maximum(np.diff(squares), 1e-12))
    data = data / np.repeat(norm, np.diff(ends)).astype(np.float32)
    return sparse.csr_matrix((data, at[used], ends), (counts.shape[0], len(columns)))


def _vectorizers(config: PredictorConfig) -> list[Any]:
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError:
        fault = "'ngrams' needs scikit-learn, which is not installed"
        raise input_error(fault, field="encoder", remedy="run: pip install 'qos_jax[predictors]'") from None
    common: dict[str, Any] = {
        "n_features": 2**config.hash_bits,
        "alternate_sign": False,
        "norm": None,
        "dtype": np.float32,
    }
    words = HashingVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, config.word_ngram), **common)
    if config.char_ngram < 2:
        return [words]
    chars = HashingVectorizer(analyzer="char_wb", ngram_range=(2, config.char_ngram), **common)
    return [words, chars]
