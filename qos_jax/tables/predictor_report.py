"""Score predictions of quality and length against predicting each expert's mean, with 95% intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from qos_jax.errors import input_error
from qos_jax.files import Path, write_csv
from qos_jax.predictors import Predictions
from qos_jax.predictors.predictions import bucket_of
from qos_jax.tables.scores import WeightedScore, ratio, weighted_auc

MEAN, POOLED = "mean", "pooled"  # in place of an expert: the mean over experts; all answers together

_BATCH_NUMBERS = 2_000_000  # resampled weights held at once
_BINS = 10  # of the expected calibration error

# Per figure: digits to show.
FIGURES = dict.fromkeys(("auc", "quality_r2", "ece", "between_r2", "log_length_r2"), 3)
FIGURES |= {"length_error_tokens": 1, "bucket_accuracy": 3}


@dataclasses.dataclass(frozen=True)
class PredictorFigure:
    """One figure of one expert, of the predictions and of predicting its mean.

    The figures: ``auc`` of quality >= 0.5 against below; ``quality_r2``, R2 of quality; ``ece``, its
    expected calibration error; ``between_r2``, R2 of how the qualities of one prompt differ between experts,
    beyond the experts' means; ``log_length_r2``, R2 of log output tokens by the predicted median;
    ``length_error_tokens``, median of its absolute error; ``bucket_accuracy``, share of lengths in the
    likeliest bucket.
    """

    figure: str
    expert: str  # or MEAN, POOLED
    value: float
    low: float  # 95% bootstrap interval over prompts
    high: float
    baseline: float  # of predicting each expert's mean
    n: int  # known answers


def predictor_report(
    predictions: Predictions,
    baseline: Predictions,
    quality: np.ndarray,
    output_tokens: np.ndarray,
    experts: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[PredictorFigure]:
    """Score predictions of rows that the predictor has not seen.

    Args:
      predictions: of M prompts.
      baseline: of the same prompts, see ``mean_predictions``.
      quality: [M, N] true; NaN = missing.
      output_tokens: [M, N] true; -1 = missing.
      experts: N names.
      resamples: of the prompts, for the intervals.
      seed: of the resampling.

    Returns:
      Every figure for each expert, their mean and, where it makes sense, all answers pooled. NaN where a
      figure is undefined, such as the AUC of an expert that is always right.
    """
    m, n = predictions.quality.shape
    if np.shape(quality) != (m, n) or np.shape(output_tokens) != (m, n) or len(experts) != n:
        raise input_error(
            f"have shapes {np.shape(quality)}, {np.shape(output_tokens)} and {len(experts)} names, "
            f"predictions {(m, n)}",
            field="quality, output_tokens, experts",
            remedy="give the truth of what was predicted",
        )
    ours = _figures(predictions, quality, output_tokens)
    theirs = _figures(baseline, quality, output_tokens)
    rng = np.random.default_rng(seed)
    batch = max(1, min(resamples, _BATCH_NUMBERS // m))
    drawn: dict[tuple[str, str | int], list[np.ndarray]] = {key: [] for key in ours}
    for start in range(0, resamples, batch):
        weights = rng.multinomial(m, np.full(m, 1 / m), size=min(batch, resamples - start)).astype(np.float64)
        for key, figure in ours.items():
            drawn[key].append(figure(weights))
    samples = {key: np.concatenate(parts) for key, parts in drawn.items()}
    once = np.ones((1, m))
    values = {key: float(figure(once)[0]) for key, figure in ours.items()}
    means = {key: float(figure(once)[0]) for key, figure in theirs.items()}
    known_quality, known_length = (~np.isnan(quality)).sum(0), (np.asarray(output_tokens) > 0).sum(0)
    rows = []
    for name in FIGURES:
        own = [key for key in ours if key[0] == name and isinstance(key[1], int)]
        counts = known_length if "length" in name or "bucket" in name else known_quality
        if own:
            samples[name, MEAN] = np.mean([samples[key] for key in own], axis=0)
            for table in (values, means):
                table[name, MEAN] = float(np.mean([table[key] for key in own]))
        for key in (*own, (name, MEAN), (name, POOLED)):
            if key in values:
                low, high = np.quantile(samples[key], [0.025, 0.975])
                column = key[1]
                expert = experts[column] if isinstance(column, int) else column
                count = int(counts[column] if isinstance(column, int) else counts.sum())
                interval = float(low), float(high)
                rows.append(PredictorFigure(name, expert, values[key], *interval, means[key], count))
    return rows


def render_predictor_report(report: Sequence[PredictorFigure]) -> str:
    """Return the report as aligned text: a line per figure and expert."""
    lines = [["figure", "expert", "value [95% CI]", "each model's mean", "answers"]]
    for row in report:
        digits = FIGURES[row.figure]
        numbers = [f"{value:.{digits}f}" for value in (row.value, row.low, row.high, row.baseline)]
        value = f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
        lines.append([row.figure, row.expert, value, numbers[3], f"{row.n:,}"])
    align = ("left", "left", "right", "right", "right")
    return tabulate(lines, headers="firstrow", colalign=align, disable_numparse=True)


def write_predictor_report_csv(path: Path, report: Sequence[PredictorFigure]) -> None:
    """Write the report as CSV, a column per field of :class:`PredictorFigure`."""
    header = [field.name for field in dataclasses.fields(PredictorFigure)]
    write_csv(path, header, map(dataclasses.astuple, report))


def _figures(
    predictions: Predictions, quality: np.ndarray, output_tokens: np.ndarray
) -> dict[tuple[str, str | int], WeightedScore]:
    """Return what computes each figure from weights of the M prompts, by figure and expert."""
    true = np.asarray(quality, np.float64)
    tokens = np.where(np.asarray(output_tokens) > 0, output_tokens, np.nan).astype(np.float64)
    said = predictions.quality.astype(np.float64)
    median = predictions.output_tokens.astype(np.float64)
    likeliest = predictions.bucket_probability.argmax(-1)
    hit = likeliest == bucket_of(np.nan_to_num(tokens, nan=1.0), predictions.bucket_edges_tokens)
    figures: dict[tuple[str, str | int], WeightedScore] = {}
    singles: list[tuple[str | int, slice]] = [(j, slice(j, j + 1)) for j in range(true.shape[1])]
    for name, columns in [*singles, (POOLED, slice(None))]:
        rows, which = np.nonzero(~np.isnan(true[:, columns]))
        y, p = true[:, columns][rows, which], said[:, columns][rows, which]
        figures["auc", name] = _on(rows, weighted_auc(y >= 0.5, p))
        figures["quality_r2", name] = _on(rows, _r2(y, p))
        figures["ece", name] = _on(rows, _ece(y, p))
        rows, which = np.nonzero(~np.isnan(tokens[:, columns]))
        t, q = tokens[:, columns][rows, which], median[:, columns][rows, which]
        figures["log_length_r2", name] = _on(rows, _r2(np.log(t), np.log(q)))
        figures["length_error_tokens", name] = _on(rows, _median(np.abs(t - q)))
        figures["bucket_accuracy", name] = _on(rows, _mean(hit[:, columns][rows, which].astype(np.float64)))
    whole = np.flatnonzero(~np.isnan(true).any(1))
    if len(whole) and true.shape[1] > 1:
        figures["between_r2", POOLED] = _on(whole, _between(true[whole], said[whole]))
    return figures


def _on(rows: np.ndarray, figure: WeightedScore) -> WeightedScore:
    """Compute a figure of some rows, a row perhaps more than once, from weights of all."""
    return lambda weights: figure(weights[:, rows])


def _mean(values: np.ndarray) -> WeightedScore:
    return lambda w: ratio(w @ values, w.sum(1))


def _r2(y: np.ndarray, p: np.ndarray) -> WeightedScore:
    def figure(w: np.ndarray) -> np.ndarray:
        total = w.sum(1)
        spread = w @ np.square(y) - ratio(np.square(w @ y), total)
        return 1 - ratio(w @ np.square(y - p), np.where(spread > 1e-9 * total, spread, 0))

    return figure


def _between(y: np.ndarray, p: np.ndarray) -> WeightedScore:
    y, p = (values - values.mean(1, keepdims=True) for values in (y, p))

    def figure(w: np.ndarray) -> np.ndarray:
        means = ratio(w @ y, w.sum(1)[:, None])
        spread = w @ np.square(y).sum(1) - w.sum(1) * np.square(means).sum(1)
        return 1 - ratio(w @ np.square(y - p).sum(1), spread)

    return figure


def _ece(y: np.ndarray, p: np.ndarray) -> WeightedScore:
    at = np.clip((p * _BINS).astype(int), 0, _BINS - 1)
    gap = np.eye(_BINS)[at] * (p - y)[:, None]
    return lambda w: ratio(np.abs(w @ gap).sum(1), w.sum(1))


def _median(values: np.ndarray) -> WeightedScore:
    order = np.argsort(values, kind="stable")

    def figure(w: np.ndarray) -> np.ndarray:
        if not len(values):
            return np.full(len(w), np.nan)
        reached = np.cumsum(w[:, order], axis=1)
        return values[order][(reached < reached[:, -1:] / 2).sum(1).clip(max=len(values) - 1)]

    return figure
