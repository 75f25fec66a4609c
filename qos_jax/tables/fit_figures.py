"""Fit the shipped figures to public data: synthetic tables to a real one, rates and lengths to traces.

Everything is a moment or a quantile match, so the fit is deterministic; only three noises of the predictor
are found by bisection, on a fixed sample.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from qos_jax.errors import input_error
from qos_jax.files import Path, write_csv
from qos_jax.tables.answers.lookahead import read_arrays
from qos_jax.tables.scores import area_under_curve, explained_share
from qos_jax.workload import profiles, synthetic
from qos_jax.workload.request_table import RequestTable
from qos_jax.workload.synthetic_params import SyntheticParams, save_params
from qos_jax.workload.trace import read_trace

EXCLUDED_TASKS = ("alpacaeval",)  # derives from a non-commercial set: never in anything shipped
LATENT_LIMIT = 6.0  # thresholds beyond it are certain in any sample
RUNAWAY_SHARE_OF_CAP = 0.97  # answers this close to the longest seen count as cut off
# Scores of a ridge regression on hashed word n-grams of the prompt, which the synthetic predictions match.
TARGET_AUC, TARGET_LENGTH_R2, TARGET_TYPICAL_R2, TARGET_BETWEEN_R2 = 0.81, 0.47, 0.515, 0.02
OWN_QUALITY_NOISE, OWN_LENGTH_NOISE = 10.0, 2.0  # of an expert's own part, hardly anything is predicted
FIT_ROWS, FIT_SEED, BISECTIONS = 40_000, 20_250, 14

Array = npt.NDArray[np.float64]
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def fit_tables(
    score: Array, out_tokens: Array, prompt_tokens: Array, task: npt.NDArray[Any], names: Sequence[str]
) -> SyntheticParams:
    """Fit a :class:`SyntheticParams` to a real table.

    Args:
      score: [R, N] in [0, 1], NaN = missing.
      out_tokens: [R, N], -1 = missing.
      prompt_tokens: [R].
      task: [R] task names; rows of ``EXCLUDED_TASKS`` are left out.
      names: N expert names.

    Raises:
      InputError: no row is left.
    """
    tasks = [str(t) for t in np.unique(task) if t not in EXCLUDED_TASKS]
    if not tasks:
        raise input_error("the table has no usable row", remedy="give a table with other tasks")
    fits = []
    for name in tasks:
        rows = task == name
        fits.append(fit_task(score[rows], out_tokens[rows], prompt_tokens[rows]))
    kept = np.array([np.sum(task == name) for name in tasks], dtype=np.float64)
    n = len(names)
    leaves: dict[str, Any] = {field: np.stack([fit[field] for fit in fits]) for field in fits[0]}
    leaves |= {"task_weight": kept / kept.sum(), "error_level": 1.0}
    leaves |= {"quality_bias": np.zeros(n), "length_bias_log": np.zeros(n)}
    leaves |= {"own_quality_noise": OWN_QUALITY_NOISE, "own_length_noise": OWN_LENGTH_NOISE}
    leaves |= {"typical_length_noise": np.sqrt(1 / TARGET_TYPICAL_R2 - 1)}
    leaves |= {"difficulty_noise": 1.0, "length_noise": 1.0, "quality_jitter": 0.0}
    arrays = {field: jnp.asarray(value, jnp.float32) for field, value in leaves.items()}
    return _fit_predictor(SyntheticParams(**arrays, expert_names=tuple(names)))


def fit_task(score: Array, out_tokens: Array, prompt_tokens: Array) -> dict[str, Any]:
    """Fit the figures of one task; an expert without answers gets the mean of the others' figures."""
    present: npt.NDArray[np.bool_] = np.logical_not(np.isnan(score).all(axis=0))
    seen, tokens = score[:, present], out_tokens[:, present]
    complete = ~np.isnan(seen).any(axis=1) & (tokens > 0).all(axis=1)
    seen, log_tokens = seen[complete], np.log(tokens[complete])
    log_prompt = np.log(prompt_tokens[complete])
    levels = np.round(seen * 4) / 4
    cumulative = np.stack([(levels <= q / 4).mean(axis=0) for q in range(4)], axis=-1)  # [n, 4]
    threshold = np.clip(stats.norm.ppf(cumulative), -LATENT_LIMIT, LATENT_LIMIT)
    normal = stats.norm.ppf((stats.rankdata(log_tokens, axis=0) - 0.5) / len(log_tokens))  # [R, n]
    normal_prompt = stats.norm.ppf((stats.rankdata(log_prompt) - 0.5) / len(log_prompt))
    body = [_fit_lengths(normal[:, i], log_tokens[:, i]) for i in range(normal.shape[1])]
    mean, std, runaway, cap = (np.array(column) for column in zip(*body, strict=True))

    n = normal.shape[1]
    others = ~np.eye(n, dtype=bool)
    corr_x = np.corrcoef(normal.T)
    length_shared = float(np.clip(corr_x[others].mean(), 0.02, 0.98))
    rho = _fit_shared_quality(levels, threshold)
    # corr(score latent i, any standard normal y) = cov(quality_i, y) / (0.25 sum of densities at thresholds)
    density = 0.25 * stats.norm.pdf(threshold).sum(axis=1)  # [n]
    centred = levels - levels.mean(axis=0)
    cross = (centred.T @ normal) / len(normal) / density[:, None]  # [n, n], corr(z_i, x_j)
    with_length = cross[others].mean() / np.sqrt(rho * length_shared)
    with_prompt = ((centred.T @ normal_prompt) / len(normal) / density).mean() / np.sqrt(rho)
    own = (np.diag(cross).mean() - cross[others].mean()) / np.sqrt((1 - rho) * (1 - length_shared))
    prompt_length = (normal.T @ normal_prompt).mean() / len(normal) / np.sqrt(length_shared)
    shared = np.array(
        [[1, with_length, prompt_length], [with_length, 1, with_prompt], [prompt_length, with_prompt, 1]]
    )
    shared = np.clip(shared, -0.95, 0.95)
    np.fill_diagonal(shared, 1.0)
    return {
        "prompt_log_mean": log_prompt.mean(),
        "prompt_log_std": log_prompt.std(),
        "shared_factor": np.linalg.cholesky(_nearest_correlation(shared)),
        "quality_threshold": _fill(threshold, present),
        "quality_shared": rho,
        "length_log_mean": _fill(mean, present),
        "length_log_std": _fill(std, present),
        "length_shared": length_shared,
        "runaway_threshold": _fill(runaway, present),
        "cap_tokens": np.round(np.exp(_fill(np.log(cap), present))),
        "own_correlation": np.clip(own, -0.95, 0.95),
    }


def _fit_lengths(normal: Array, log_tokens: Array) -> tuple[float, float, float, float]:
    """Return mu, sigma, runaway threshold and cap of one expert: a line through the normal quantiles."""
    cap = np.exp(log_tokens.max())
    free = log_tokens < np.log(RUNAWAY_SHARE_OF_CAP * cap)
    sigma, mu = np.polyfit(normal[free], log_tokens[free], 1)
    runaway = stats.norm.ppf(np.clip(free.mean(), 0.0, 1 - 1e-6))
    return float(mu), float(sigma), float(runaway), float(cap)


def _fit_shared_quality(levels: Array, threshold: Array) -> float:
    """Return rho that gives the average covariance of the experts' qualities seen in the table."""
    others = ~np.eye(levels.shape[1], dtype=bool)
    target = np.asarray(np.cov(levels.T, bias=True))[others].mean()

    def excess(rho: float) -> float:
        shift = (np.sqrt(rho) * _NODES[:, None, None] - threshold[None]) / np.sqrt(1 - rho)
        mean = stats.norm.cdf(shift).mean(axis=2)  # [nodes, n], quality given the difficulty
        centred = mean - _WEIGHTS @ mean
        return float(((centred * _WEIGHTS[:, None]).T @ centred)[others].mean() - target)

    return float(optimize.brentq(excess, 1e-4, 0.999))


def _nearest_correlation(matrix: Array) -> Array:
    """Return ``matrix`` with eigenvalues lifted to at least 0.02, scaled back to a unit diagonal."""
    value, vector = np.linalg.eigh(matrix)
    lifted = (vector * np.maximum(value, 0.02)) @ vector.T
    scale = np.sqrt(np.diag(lifted))
    return lifted / np.outer(scale, scale)


def _fill(values: Array, present: npt.NDArray[np.bool_]) -> Array:
    full = np.empty((len(present), *values.shape[1:]))
    full[present] = values
    full[~present] = values.mean(axis=0)
    return full


def _fit_predictor(params: SyntheticParams) -> SyntheticParams:
    """Find the predictor's noises on one fixed sample, each by bisection (all measures fall with noise)."""
    sample = jax.jit(synthetic.sample_table, static_argnums=2)
    key = jax.random.key(FIT_SEED)

    def solve(
        params: SyntheticParams, field: str, high: float, measure: Callable[[RequestTable], float], to: float
    ) -> SyntheticParams:
        low = 0.0
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            params = dataclasses.replace(params, **{field: jnp.float32(middle)})
            low, high = (middle, high) if measure(sample(key, params, FIT_ROWS)) > to else (low, middle)
        return params

    def figure(name: str) -> Callable[[RequestTable], float]:
        return lambda table: table_figures(table)[name]

    params = solve(params, "length_noise", 6.0, figure("length_r2_mean"), TARGET_LENGTH_R2)
    for _ in range(2):  # jitter costs a little AUC, so twice round
        params = solve(params, "difficulty_noise", 4.0, figure("auc"), TARGET_AUC)
        params = solve(params, "quality_jitter", 1.0, figure("between_r2"), TARGET_BETWEEN_R2)
    return params


def write_figures(out: Path, lookahead_dir: Path | None, traces: Sequence[str]) -> list[pathlib.Path]:
    """Write calibration/lookahead6.json, rates/*.csv and lengths/*.csv into ``out``; return what was written.

    Args:
      out: the data folder.
      lookahead_dir: folder of the real table, or None to leave the calibration as it is.
      traces: ``NAME=FILE`` each; all of them, since rates/summary.csv is written whole.

    Raises:
      InputError: nothing to do, a malformed NAME=FILE, or any fault of a file.
    """
    if lookahead_dir is None and not traces:
        raise input_error("nothing to do", remedy="give --lookahead_dir or --trace=NAME=FILE")
    derived = []  # all of it before any is written
    for item in traces:
        name, equals, file = item.partition("=")
        if not (name and equals and file):
            raise input_error(f"{item!r} is not NAME=FILE", field="trace", remedy="write e.g. code=trace.csv")
        trace = read_trace(file)
        named = dataclasses.replace(trace, name=file)  # so that its faults name the file
        profile = profiles.derive_rate_profile(named, profiles.choose_bin_s(named))
        derived.append((name, trace.name, profile, profiles.derive_length_cells(trace).tolist()))
    folder, written = pathlib.Path(out), []
    if lookahead_dir is not None:
        table = read_arrays(lookahead_dir)
        arrays = [np.asarray(table[f], np.float64) for f in ("score", "out_tokens", "prompt_tokens")]
        params = fit_tables(arrays[0], arrays[1], arrays[2], table["dataset"], table["models"].tolist())
        sample = synthetic.sample_table(jax.random.key(FIT_SEED + 1), params, FIT_ROWS)
        notes = {
            "source": "huangcb01/lookahead-routing (evaluation logs), MIT; alpacaeval rows left out",
            "made_by": "python -m launch.fit_tables --lookahead_dir=FOLDER",
            "tasks": [str(t) for t in np.unique(table["dataset"]) if t not in EXCLUDED_TASKS],
            "figures_of_a_sample": {name: round(v, 4) for name, v in table_figures(sample).items()},
        }
        written.append(folder / "calibration" / "lookahead6.json")
        save_params(written[-1], params, notes)
    summary = []
    for name, source_name, profile, cells in derived:
        source = f"Derived by launch.fit_tables from {source_name}; see README.md for its licence."
        numbers = [f"{v:.6g}" for v in (profile.mean_rate_per_s, profile.bin_s, profile.gap_cv)]
        summary.append([name, profile.requests, *numbers])
        written.append(folder / "rates" / f"{name}.csv")
        rates = [[k, f"{rate:.6g}"] for k, rate in enumerate(profile.relative_rate)]
        write_csv(written[-1], profiles.RATE_COLUMNS, rates, [source])
        written.append(folder / "lengths" / f"{name}.csv")
        write_csv(written[-1], profiles.LENGTH_COLUMNS, cells, [source])
    if summary:
        written.append(folder / "rates" / "summary.csv")
        note = "Rates over whole bins; gap_cv: of the gaps with the bins' rates divided out."
        write_csv(written[-1], profiles.SUMMARY_COLUMNS, summary, [note])
    return written


def table_figures(table: RequestTable) -> dict[str, float]:
    """Return figures that compare a table with a real one, predictions included.

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
    r2 = np.array([explained_share(log_tokens[:, i], predicted_log[:, i]) for i in range(n)])
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
        "auc": area_under_curve(quality.ravel() > 0.5, predicted.ravel()),
        "length_r2_mean": r2.mean(),
        "length_r2_min": r2.min(),
        "length_r2_max": r2.max(),
        "length_error_median_tokens": np.median(error_tokens),
        "between_r2": 1 - (miss**2).mean() / max(float((deviation**2).mean()), 1e-12),
        "typical_r2": explained_share(log_tokens.mean(axis=1), predicted_log.mean(axis=1)),
    }
    return {name: float(value) for name, value in figures.items()}
