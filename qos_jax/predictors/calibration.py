"""Calibrate predicted probabilities on rows that nothing else was fitted to.

Quality is corrected per expert by Platt scaling (Platt 1999), lengths by one temperature per expert (Guo et
al. 2017). Both are regularised towards no correction.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import optimize, special

_CLIP = 1e-4  # probabilities nearer to 0 or 1 are taken as this near
_PRIOR_ROWS = 2.0  # strength of the regularisation towards no correction, in rows


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Corrections per expert; scale 1, shift 0, sharpness 1 correct nothing."""

    quality_scale: np.ndarray  # [N] float32, factor of the logit, > 0
    quality_shift: np.ndarray  # [N] float32, added to it
    length_sharpness: np.ndarray  # [N] float32, 1 / temperature of the length distribution, > 0

    def apply(self, quality: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return corrected quality [M, N] and length probabilities [M, N, B], float32."""
        logit = special.logit(np.clip(quality.astype(np.float64), _CLIP, 1 - _CLIP))
        corrected = special.expit(self.quality_scale * logit + self.quality_shift)
        logs = np.log(np.maximum(length.astype(np.float64), 1e-12)) * self.length_sharpness[:, None]
        return corrected.astype(np.float32), special.softmax(logs, axis=-1).astype(np.float32)


def fit_calibration(
    quality: np.ndarray,
    length: np.ndarray,
    true_quality: np.ndarray,
    quality_known: np.ndarray,
    true_bucket: np.ndarray,
    bucket_known: np.ndarray,
) -> Calibration:
    """Fit the corrections to rows that nothing else was fitted to.

    Args:
      quality: [M, N] predicted.
      length: [M, N, B] predicted probabilities.
      true_quality: [M, N] in [0, 1].
      quality_known: [M, N], whether it is known.
      true_bucket: [M, N] index of the length bucket.
      bucket_known: [M, N], whether it is known.
    """
    experts = quality.shape[1]
    scale, shift, sharpness = np.ones(experts), np.zeros(experts), np.ones(experts)
    for expert in range(experts):
        known = np.asarray(quality_known[:, expert], bool)
        scale[expert], shift[expert] = _platt(quality[known, expert], true_quality[known, expert])
        known = np.asarray(bucket_known[:, expert], bool)
        sharpness[expert] = _sharpness(length[known, expert], true_bucket[known, expert])
    return Calibration(*(values.astype(np.float32) for values in (scale, shift, sharpness)))


def _platt(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    logit = special.logit(np.clip(predicted.astype(np.float64), _CLIP, 1 - _CLIP))

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        log_scale, shift = at
        scale = np.exp(log_scale)
        z = scale * logit + shift
        value = np.sum(np.logaddexp(0, z) - true * z) + _PRIOR_ROWS * (log_scale**2 + shift**2)
        error = special.expit(z) - true
        slope = np.array([np.sum(error * scale * logit), np.sum(error)]) + 2 * _PRIOR_ROWS * at
        return float(value), slope

    found = optimize.minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-3, 3), (-5, 5)])
    return float(np.exp(found.x[0])), float(found.x[1])


def _sharpness(predicted: np.ndarray, bucket: np.ndarray) -> float:
    logs = np.log(np.maximum(predicted.astype(np.float64), 1e-12))

    def loss(log_sharpness: float) -> float:
        z = np.exp(log_sharpness) * logs
        chosen = np.take_along_axis(z, bucket[:, None].astype(int), -1)[:, 0]
        return float(np.sum(special.logsumexp(z, -1) - chosen) + _PRIOR_ROWS * log_sharpness**2)

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-2.0, 1.0), method="bounded").x))
