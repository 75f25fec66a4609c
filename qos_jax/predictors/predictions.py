"""Predicted quality, and predicted output length as a distribution over buckets: its mean and quantiles."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from qos_jax.errors import input_error
from qos_jax.predictors.config import PredictorConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted quality and output length of the answers of N experts to M prompts.

    Within a bucket, lengths are taken as equally likely in log tokens: mean and quantiles follow from that.
    """

    quality: np.ndarray  # [M, N] float32, in [0, 1]: expected quality, which is P(correct) where it is 0 or 1
    bucket_probability: np.ndarray  # [M, N, B] float32, sums to 1
    bucket_edges_tokens: np.ndarray  # [B + 1] float32, tokens, rising

    @functools.cached_property
    def output_tokens(self) -> np.ndarray:
        """[M, N] float32, tokens, > 0: the MEDIAN, which is what request tables hold."""
        return self.quantile_tokens(0.5)

    @functools.cached_property
    def output_mean_tokens(self) -> np.ndarray:
        """[M, N] float32, tokens: the mean, at least the median for the skewed lengths of answers."""
        edges = self.bucket_edges_tokens.astype(np.float64)
        centres = np.diff(edges) / np.diff(np.log(edges))
        return (self.bucket_probability @ centres.astype(np.float32)).astype(np.float32)

    def quantile_tokens(self, share: float) -> np.ndarray:
        """Return the length that a share of answers does not exceed, [M, N] float32 tokens.

        Raises:
          InputError: unless ``share`` lies in [0, 1].
        """
        if not 0 <= share <= 1:
            raise input_error(f"{share!r} is out of range", field="share", remedy="give a number in [0, 1]")
        reached = np.cumsum(self.bucket_probability, axis=-1, dtype=np.float64)
        reached /= reached[..., -1:]
        at = (reached < share).sum(-1)[..., None]  # the bucket in which the share is reached
        upper = np.take_along_axis(reached, at, -1)
        lower = np.where(at > 0, np.take_along_axis(reached, np.maximum(at - 1, 0), -1), 0.0)
        within = np.where(upper > lower, (share - lower) / np.where(upper > lower, upper - lower, 1.0), 0.0)
        logs = np.log(self.bucket_edges_tokens.astype(np.float64))
        low, high = logs[at], logs[at + 1]
        return np.exp(low + within * (high - low))[..., 0].astype(np.float32)


def mean_predictions(
    config: PredictorConfig, quality: np.ndarray, output_tokens: np.ndarray, rows: int
) -> Predictions:
    """Predict each expert's mean quality and its distribution of lengths for every prompt: the baseline.

    Args:
      config: its length buckets.
      quality: [M, N] of known prompts; NaN = missing, at least one known per expert.
      output_tokens: [M, N] of known prompts; -1 = missing, at least one known per expert.
      rows: prompts to predict for.
    """
    edges = bucket_edges(config.buckets, config.max_output_tokens)
    known = (np.asarray(output_tokens) > 0)[..., None]
    count = (np.eye(config.buckets)[bucket_of(np.asarray(output_tokens), edges)] * known).sum(0)
    share = count / count.sum(-1, keepdims=True)
    mean = np.nanmean(np.asarray(quality, np.float64), axis=0)
    return Predictions(
        np.tile(mean, (rows, 1)).astype(np.float32), np.tile(share, (rows, 1, 1)).astype(np.float32), edges
    )


def bucket_edges(buckets: int, max_output_tokens: int) -> np.ndarray:
    """Return the B + 1 edges of buckets equally wide in log tokens, from half a token, float32.

    They do not depend on data, so predictors of one configuration are comparable and folds independent.
    """
    return np.geomspace(0.5, max_output_tokens + 0.5, buckets + 1).astype(np.float32)


def bucket_of(output_tokens: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bucket of each length, int32; that of a missing one (-1) is 0: mask it."""
    at = np.searchsorted(edges, output_tokens, side="right") - 1
    return np.clip(at, 0, len(edges) - 2).astype(np.int32)
