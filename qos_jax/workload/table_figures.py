"""The figures by which a request table is judged against a real one (host code, NumPy)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from qos_jax.workload.request_table import RequestTable

Array = npt.NDArray[np.float64]


def table_figures(table: RequestTable) -> dict[str, float]:
    """Return the figures by which a table is judged against a real one, predictions included.

    Keys: best_single, oracle (mean quality); prompt_share (intraclass correlation of scores), score_corr and
    length_corr (mean over expert pairs), length_score_corr_min / _max (per expert); auc (of
    quality > 0.5, pooled), length_r2_mean / _min / _max, length_error_median_tokens, between_r2 (share of the
    variance of quality around its row mean that predictions around theirs explain), typical_r2.
    """
    quality = np.asarray(table.quality, np.float64)
    log_tokens = np.log(np.asarray(table.output_tokens, np.float64))
    predicted = np.asarray(table.predicted_quality, np.float64)
    predicted_log = np.log(np.asarray(table.predicted_output_tokens, np.float64))
    n = quality.shape[1]
    pairs = np.triu_indices(n, 1)
    row = quality - quality.mean(axis=0)
    within = ((row - row.mean(axis=1, keepdims=True)) ** 2).sum() / ((len(row) - 1) * (n - 1))
    between = n * row.mean(axis=1).var(ddof=1)
    deviation = quality - quality.mean(axis=1, keepdims=True)
    miss = deviation - (predicted - predicted.mean(axis=1, keepdims=True))
    r2 = 1 - ((log_tokens - predicted_log) ** 2).mean(axis=0) / log_tokens.var(axis=0)
    typical = log_tokens.mean(axis=1)
    typical_miss = typical - predicted_log.mean(axis=1)
    length_score = [np.corrcoef(quality[:, i], log_tokens[:, i])[0, 1] for i in range(n)]
    error_tokens = np.abs(np.exp(log_tokens) - np.exp(predicted_log))
    figures = {
        "best_single": quality.mean(axis=0).max(),
        "oracle": quality.max(axis=1).mean(),
        "prompt_share": (between - within) / (between + (n - 1) * within),
        "score_corr": np.asarray(np.corrcoef(quality.T))[pairs].mean(),
        "length_corr": np.asarray(np.corrcoef(log_tokens.T))[pairs].mean(),
        "length_score_corr_min": min(length_score),
        "length_score_corr_max": max(length_score),
        "auc": _auc(quality.ravel() > 0.5, predicted.ravel()),
        "length_r2_mean": r2.mean(),
        "length_r2_min": r2.min(),
        "length_r2_max": r2.max(),
        "length_error_median_tokens": np.median(error_tokens),
        "between_r2": 1 - (miss**2).mean() / max(float((deviation**2).mean()), 1e-12),
        "typical_r2": 1 - (typical_miss**2).mean() / float(np.var(typical)),
    }
    return {name: float(value) for name, value in figures.items()}


def _auc(positive: npt.NDArray[np.bool_], value: Array) -> float:
    rank = stats.rankdata(value)
    ones, zeros = positive.sum(), (~positive).sum()
    return float((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
