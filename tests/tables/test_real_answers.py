"""On real prompts and answers of six models, text tells hard from easy and long from short."""

import gzip
import json

import numpy as np

from qos_jax.predictors import PredictorConfig, fit_predictor, mean_predictions
from qos_jax.tables.predictor_report import predictor_report

LEARNED, JUDGED = 1500, 800


def test_figures_on_real_answers(shared):
    """A small fit to a quarter of the rows; the whole is better, see the README."""
    folder = shared / "data" / "lookahead6"
    with gzip.open(folder / "prompts.jsonl.gz", "rt", encoding="utf-8") as stream:
        prompts = [json.loads(line)["prompt"] for line in stream]
    with np.load(folder / "scores_lengths.npz") as content:
        quality, tokens, experts = content["score"], content["out_tokens"], content["models"].tolist()
    order = np.random.default_rng(0).permutation(len(prompts))[: LEARNED + JUDGED]
    learned, judged = order[:LEARNED], order[LEARNED:]
    config = PredictorConfig(components=64, heads=1, members=1, max_epochs=25)
    fitted = fit_predictor(
        config, [prompts[row] for row in learned], quality[learned], tokens[learned], experts
    )
    predicted = fitted.predict([prompts[row] for row in judged])
    means = mean_predictions(config, quality[learned], tokens[learned], JUDGED)
    report = predictor_report(predicted, means, quality[judged], tokens[judged], experts, resamples=50)
    figures = {(row.figure, row.expert): row for row in report}
    assert figures["auc", "mean"].low > 0.72
    assert figures["log_length_r2", "mean"].low > 0.3
    assert (
        figures["length_error_tokens", "mean"].value < 0.8 * figures["length_error_tokens", "mean"].baseline
    )
    assert figures["ece", "pooled"].value < 0.08
