"""Ridge regressions learn from known answers alone, and answer the rows of a fit without knowing theirs."""

import numpy as np
import pytest

from qos_jax.predictors.answers import Answers, groups_of
from qos_jax.predictors.encoders import Encoded, encode, fit_encoder, raw_features
from qos_jax.predictors.ridge import fit_ridge
from tests.predictors.conftest import config_of
from tests.predictors.texts import EXPERTS, make_texts

CONFIG = config_of("mlp", ridge_folds=3, min_documents=1)


@pytest.fixture(scope="module")
def given() -> tuple[Encoded, Answers, np.ndarray]:
    """150 prompts, of which 7 is a twin of 3."""
    texts = make_texts(150)
    prompts = list(texts.prompts)
    prompts[7] = "  " + prompts[3].upper()
    raw = raw_features(CONFIG, prompts)
    answers = Answers(texts.quality.astype(np.float64), texts.output_tokens)
    return encode(fit_encoder(CONFIG, raw), raw), answers, groups_of(prompts)


def test_hard_and_long_are_told(given):
    encoded, answers, groups = given
    _, hints = fit_ridge(CONFIG, encoded, answers, groups)
    assert hints.shape == (150, 2 * len(EXPERTS))
    np.testing.assert_allclose(hints.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(hints.std(0), 1, atol=1e-4)
    for expert in range(len(EXPERTS)):
        known = ~np.isnan(answers.quality[:, expert])
        assert np.corrcoef(hints[known, expert], answers.quality[known, expert])[0, 1] > 0.5
        known = answers.output_tokens[:, expert] > 0
        logs = np.log(answers.output_tokens[known, expert])
        assert np.corrcoef(hints[known, expert + len(EXPERTS)], logs)[0, 1] > 0.5


def test_a_row_is_answered_without_its_own_or_its_twins_truth(given):
    """Before standardisation, that is: its mean and scale are those of all answers."""
    encoded, answers, groups = given
    found = []
    for quality, tokens in ((0.0, 50), (1.0, 5000)):
        mine = answers.take(np.arange(150))
        mine.quality[[3, 7]], mine.output_tokens[[3, 7]] = quality, tokens
        ridge, hints = fit_ridge(CONFIG, encoded, mine, groups)
        found.append(hints * ridge.std + ridge.mean)
    np.testing.assert_allclose(found[0][[3, 7]], found[1][[3, 7]], rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_missing_answers_are_no_answers(given):
    """Rows without any answer change nothing; an expert with one answer gets hints that say nothing."""
    encoded, answers, groups = given
    mine = answers.take(np.arange(150))
    mine.quality[:, 0] = np.nan
    mine.quality[0, 0] = 1.0
    mine.quality[100:, 1] = np.nan
    ridge, hints = fit_ridge(CONFIG, encoded, mine, groups)
    assert np.isfinite(hints).all()
    assert (hints[:, 0] == 0).all()
    mine.quality[:, 2] = mine.quality[:, 1]
    again, _ = fit_ridge(CONFIG, encoded, mine, groups)
    np.testing.assert_array_equal(again.weights[:, 2], ridge.weights[:, 1])
    part = fit_ridge(CONFIG, encoded.take(np.arange(100)), mine.take(np.arange(100)), groups[:100])[0]
    np.testing.assert_allclose(part.weights[:, 1], ridge.weights[:, 1], rtol=1e-3, atol=1e-4)
