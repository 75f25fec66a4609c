"""Estimate means over seeds and training runs: bootstrap intervals, and paired differences to a baseline."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy import stats

_BATCH_NUMBERS = 4_000_000  # resampled numbers held at once, about 32 MB


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with its confidence interval; all [...] float64."""

    mean: np.ndarray  # [...]
    low: np.ndarray  # [...] lower end of the interval; NaN where it is undefined
    high: np.ndarray  # [...] upper end
    n: int  # seeds


def mean_ci(
    samples: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    method: Literal["BCa", "percentile"] = "BCa",
    seed: int = 0,
) -> Estimate:
    """Return the mean over seeds and its bootstrap interval, for many figures at once.

    Every figure is resampled with the same seeds drawn. ``BCa`` is Efron's bias-corrected and
    accelerated interval (Efron 1987); where it is undefined (too few distinct values), the
    ``percentile`` interval stands in. Both are too narrow for few seeds: at a nominal 95% on normal data
    they cover 80% with 4 seeds, 88% with 8, 91% with 16 and 93.5% with 32.

    Args:
      samples: [..., S], one value per seed on the last axis.
      confidence: nominal coverage, in (0, 1).
      resamples: bootstrap resamples.
      method: the kind of interval.
      seed: seed of the resampling; equal input and seed give equal intervals.

    Returns:
      Mean and interval, [...]. Of one seed the interval is NaN; of equal values it is that value twice;
      where a sample is not finite, mean and interval are NaN.

    Raises:
      ValueError: if there is no seed or ``confidence`` is out of range.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim == 0 or samples.shape[-1] == 0:
        raise ValueError(f"need at least one seed on the last axis, got shape {samples.shape}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    n = samples.shape[-1]
    rows = samples.reshape(-1, n)
    finite = np.isfinite(rows).all(-1)
    varied = finite & (np.ptp(np.where(finite[:, None], rows, 0.0), axis=-1) > 0)
    constant = finite & ~varied & (n > 1)

    centre, low, high = (np.full(len(rows), np.nan) for _ in range(3))
    centre[finite] = np.mean(rows[finite], axis=-1)
    # A constant row's mean is its value, free of rounding, as its interval is.
    centre[constant] = low[constant] = high[constant] = rows[constant, 0]
    if n > 1 and varied.any():
        interval = functools.partial(_interval, confidence_level=confidence, n_resamples=resamples, seed=seed)
        low[varied], high[varied] = _intervals(rows[varied], interval, method, resamples)
    shape = samples.shape[:-1]
    return Estimate(centre.reshape(shape), low.reshape(shape), high.reshape(shape), n)


def paired_difference(samples: np.ndarray, baseline: np.ndarray, **resampling: Any) -> Estimate:
    """Return the mean of ``samples - baseline`` seed by seed, and its bootstrap interval.

    Both must come from the same requests and arrivals, seed by seed (common random numbers): then what
    the seeds share cancels, and the interval is far narrower than that of two separate means.

    Args:
      samples: [..., S], as in :func:`mean_ci`.
      baseline: [..., S], the baseline's values on the same seeds.
      **resampling: keyword arguments of :func:`mean_ci`.

    Raises:
      ValueError: if the numbers of seeds differ, or as :func:`mean_ci`.
    """
    ours, theirs = np.asarray(samples, np.float64), np.asarray(baseline, np.float64)
    if ours.shape[-1:] != theirs.shape[-1:]:
        raise ValueError(f"a paired difference needs equal seeds, got {ours.shape} and {theirs.shape}")
    return mean_ci(ours - theirs, **resampling)


def interquartile_mean(of_runs: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean of the runs along an axis without a quarter, rounded down, at each end."""
    return np.asarray(stats.trim_mean(of_runs, 0.25, axis=axis))


def runs_ci(
    samples: np.ndarray,
    baseline: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return the interquartile mean over training runs of their means over seeds, and its bootstrap interval.

    Runs and seeds are both drawn anew, so the interval holds the luck of a training run and that of the
    requests. A percentile interval is too narrow for few runs: at a nominal 95% and with the runs' luck
    alone, normal, it covers 50% with 2 runs, 75% with 3, 88% with 4, 91% with 5 and 94% with 10. Source:
    Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS 2021,
    arXiv 2108.13264, which draws within each task alone; here all runs are tested on the same seeds.

    Args:
      samples: [..., R, S], of R runs on S seeds each.
      baseline: [..., Q, S], of Q runs to take the difference to, on the same seeds; None: no difference. With
        Q = R the runs are paired in their order, as of the same weights under two views.
      confidence: nominal coverage, in (0, 1).
      resamples: bootstrap resamples.
      seed: seed of the resampling; equal input and seed give equal intervals.

    Returns:
      Mean or difference and interval, [...]; of one seed the interval is NaN, and where a sample is not
      finite, so is all.

    Raises:
      ValueError: if the numbers of seeds differ.
    """
    rng = np.random.default_rng(seed)
    seeds = samples.shape[-1]
    if baseline is not None and baseline.shape[-1] != seeds:
        raise ValueError(f"a paired difference needs equal seeds, got {samples.shape} and {baseline.shape}")
    drawn = rng.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=resamples).T / seeds  # [S, B]
    rows_of: dict[int, np.ndarray] = {}  # by the number of runs: [R, B]

    def estimates(of_runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = np.asarray(of_runs, np.float64)
        values = np.where(np.isfinite(values).all((-2, -1), keepdims=True), values, np.nan)
        runs = values.shape[-2]
        rows = rows_of.setdefault(runs, rng.integers(runs, size=(runs, resamples)))
        again = np.take_along_axis(values @ drawn, np.broadcast_to(rows, (*values.shape[:-1], resamples)), -2)
        return interquartile_mean(values.mean(-1)), interquartile_mean(again, axis=-2)

    mean, resampled = estimates(samples)
    if baseline is not None:
        of_baseline, again = estimates(baseline)
        mean, resampled = mean - of_baseline, resampled - again
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(resampled, [tail, 1.0 - tail], axis=-1)
    if seeds == 1:
        low, high = (np.full_like(mean, np.nan) for _ in range(2))
    return Estimate(mean, low, high, seeds)


def _intervals(
    rows: np.ndarray, interval: Callable[..., tuple[np.ndarray, np.ndarray]], method: str, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the interval of each row [M, S], a bounded number of rows at a time."""
    low, high = np.empty(len(rows)), np.empty(len(rows))
    step = max(1, _BATCH_NUMBERS // (resamples * rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            low[part], high[part] = interval(rows[part], method=method)
            undefined = ~(np.isfinite(low[part]) & np.isfinite(high[part]))
            if undefined.any():
                again = interval(rows[part][undefined], method="percentile")
                low[part][undefined], high[part][undefined] = again
    return low, high


def _interval(rows: np.ndarray, *, seed: int, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of SciPy's bootstrap interval of each row; NaN where BCa is undefined."""
    interval = stats.bootstrap(
        (rows,), np.mean, vectorized=True, axis=-1, rng=np.random.default_rng(seed), **how
    ).confidence_interval
    return interval.low, interval.high
