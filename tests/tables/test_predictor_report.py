"""Figures of predictions: each by hand or by scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from qos_jax.errors import InputError
from qos_jax.predictors import Predictions, PredictorConfig, mean_predictions
from qos_jax.predictors.predictions import bucket_edges, bucket_of
from qos_jax.tables.predictor_report import (
    predictor_report,
    render_predictor_report,
    write_predictor_report_csv,
)

EXPERTS = ("ant", "bee")
CONFIG = PredictorConfig(buckets=8, max_output_tokens=1000)


@pytest.fixture(scope="module")
def case():
    """Predictions that know something of 400 prompts, coarse enough to tie; some answers missing."""
    rng = np.random.default_rng(0)
    shape = (400, 2)
    said = np.round(rng.random(shape), 1)
    quality = (rng.random(shape) < said).astype(float)
    tokens = rng.integers(1, 900, shape)
    edges = bucket_edges(8, 1000)
    guess = bucket_of(np.where(rng.random(shape) < 0.5, tokens, rng.integers(1, 900, shape)), edges)
    length = 0.9 * np.eye(8, dtype=np.float32)[guess] + np.float32(0.1 / 8)
    quality[rng.random(shape) < 0.1] = np.nan
    tokens[rng.random(shape) < 0.1] = -1
    return Predictions(said.astype(np.float32), length, edges), quality, tokens


@pytest.fixture(scope="module")
def report(case):
    predictions, quality, tokens = case
    means = mean_predictions(CONFIG, quality, tokens, len(quality))
    return predictor_report(predictions, means, quality, tokens, EXPERTS, resamples=100)


def figure(report, name, expert):
    return next(row for row in report if (row.figure, row.expert) == (name, expert))


def test_figures_equal_those_of_scikit_learn(report, case):
    predictions, quality, tokens = case
    known, long = ~np.isnan(quality[:, 1]), tokens[:, 1] > 0
    y, p = quality[known, 1], predictions.quality[known, 1]
    t, q = tokens[long, 1], predictions.output_tokens[long, 1]
    right = predictions.bucket_probability.argmax(-1)[long, 1] == bucket_of(
        t, predictions.bucket_edges_tokens
    )
    expected = {
        "auc": metrics.roc_auc_score(y, p),
        "quality_r2": metrics.r2_score(y, p),
        "log_length_r2": metrics.r2_score(np.log(t), np.log(q)),
        "bucket_accuracy": right.mean(),
    }
    for name, value in expected.items():
        assert figure(report, name, "bee").value == pytest.approx(value, rel=1e-5), name
    error = figure(report, "length_error_tokens", "bee").value
    assert abs((np.abs(t - q) <= error).mean() - 0.5) < 0.01
    assert figure(report, "auc", "bee").n == known.sum()
    assert figure(report, "log_length_r2", "bee").n == long.sum()


def test_the_mean_tells_nothing(report):
    assert figure(report, "auc", "ant").baseline == pytest.approx(0.5)
    assert figure(report, "quality_r2", "ant").baseline == pytest.approx(0, abs=1e-6)
    assert figure(report, "between_r2", "pooled").baseline == pytest.approx(0, abs=0.01)


def test_intervals_hold_the_value(report):
    for row in report:
        assert row.low <= row.value <= row.high or row.figure == "ece", row
    ece = figure(report, "ece", "pooled")
    assert ece.value < 0.06  # resampling adds noise to it, so its interval lies above


def test_the_mean_over_experts(report):
    each = [figure(report, "auc", expert).value for expert in EXPERTS]
    assert figure(report, "auc", "mean").value == pytest.approx(np.mean(each))


def test_perfect_predictions(case):
    _, quality, tokens = case
    known = ~np.isnan(quality).any(1) & (tokens > 0).all(1)
    quality, tokens = quality[known], tokens[known]
    edges = bucket_edges(4000, 1000)
    length = np.eye(4000, dtype=np.float32)[bucket_of(tokens, edges)]
    perfect = Predictions(quality.astype(np.float32), length, edges)
    means = mean_predictions(CONFIG, quality, tokens, len(quality))
    rows = predictor_report(perfect, means, quality, tokens, EXPERTS, resamples=3)
    for name in ("auc", "quality_r2", "bucket_accuracy"):
        assert figure(rows, name, "mean").value == pytest.approx(1)
    assert figure(rows, "between_r2", "pooled").value == pytest.approx(1)
    assert figure(rows, "log_length_r2", "mean").value > 0.999
    assert figure(rows, "ece", "pooled").value == pytest.approx(0)


def test_an_expert_that_is_always_right_has_no_auc():
    edges = bucket_edges(8, 1000)
    said = Predictions(np.full((5, 1), 0.5, np.float32), np.full((5, 1, 8), 1 / 8, np.float32), edges)
    rows = predictor_report(said, said, np.ones((5, 1)), np.full((5, 1), 9), ["ant"], resamples=3)
    assert np.isnan(figure(rows, "auc", "ant").value)
    assert np.isnan(figure(rows, "quality_r2", "ant").value)


def test_shapes_that_differ_are_refused(case):
    predictions, quality, tokens = case
    with pytest.raises(InputError, match="shapes"):
        predictor_report(predictions, predictions, quality[:5], tokens, EXPERTS)


def test_text_and_csv(report, tmp_path):
    assert "auc" in render_predictor_report(report)
    write_predictor_report_csv(tmp_path / "report.csv", report)
    lines = (tmp_path / "report.csv").read_text().splitlines()
    assert lines[0] == "figure,expert,value,low,high,baseline,n"
    assert len(lines) == len(report) + 1
