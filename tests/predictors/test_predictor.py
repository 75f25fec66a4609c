"""Predictors learn what there is to learn, from no row that they predict, and tell it the same way twice."""

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.predictors import PredictorConfig, fit_predictor, mean_predictions, out_of_fold
from qos_jax.predictors.encoders import encode, raw_features
from qos_jax.tables.scores import reliability
from tests.predictors.conftest import config_of
from tests.predictors.texts import EXPERTS, make_texts


def test_quality_and_length_follow_the_text(fitted, unseen):
    """The rule gives 0.9 or 0.1, and medians of 400 or 100 tokens times 1, 1.5 and 0.5."""
    predicted = fitted.predict(unseen.prompts)
    hard = unseen.hard
    assert predicted.quality[hard].mean() < 0.3
    assert predicted.quality[~hard].mean() > 0.7
    for expert, factor in enumerate((1.0, 1.5, 0.5)):
        for rows, tokens in ((hard, 400), (~hard, 100)):
            middle = np.median(predicted.output_tokens[rows, expert])
            assert middle == pytest.approx(tokens * factor, rel=0.35)


def test_shapes_and_ranges(fitted, unseen):
    predicted = fitted.predict(unseen.prompts)
    shape, buckets = (len(unseen.prompts), len(EXPERTS)), fitted.config.buckets
    assert (
        predicted.quality.shape
        == predicted.output_tokens.shape
        == predicted.output_mean_tokens.shape
        == shape
    )
    assert predicted.bucket_probability.shape == (*shape, buckets)
    assert predicted.bucket_edges_tokens.shape == (buckets + 1,)
    assert all(
        values.dtype == np.float32
        for values in (predicted.quality, predicted.output_tokens, predicted.output_mean_tokens)
    )
    assert ((predicted.quality > 0) & (predicted.quality < 1)).all()
    assert (predicted.output_tokens > 0).all()
    np.testing.assert_allclose(predicted.bucket_probability.sum(-1), 1, rtol=1e-5)


def test_the_known_error_is_that_of_unseen_prompts(fitted, unseen):
    """It is what routers are told of how far to trust a length; 60 prompts give it roughly.

    Where the text is misread, the error is log 4, so a prompt more or less of those weighs much.
    """
    predicted = fitted.predict(unseen.prompts)
    known = unseen.output_tokens > 0
    error = np.log(np.where(known, unseen.output_tokens, 1)) - np.log(predicted.output_tokens)
    measured = np.nanstd(np.where(known, error, np.nan), axis=0)
    assert (fitted.length_log_std > 0.15).all()  # the lengths' own spread is 0.2
    ratio = fitted.length_log_std.mean() / measured.mean()
    assert 0.5 < ratio < 2, (fitted.length_log_std, measured)


def test_quality_is_calibrated(fitted, unseen):
    """Of 900 answers at most 0.08 lie between said and seen; 0.02 is the sampling error of that alone."""
    table = reliability(fitted.predict(unseen.prompts).quality, unseen.quality)
    assert np.nansum(np.abs(table.predicted - table.observed) * table.count) / table.count.sum() < 0.08


def test_one_prompt_is_predicted_as_among_many(fitted, unseen):
    among = fitted.predict(unseen.prompts[:5])
    alone = fitted.predict(unseen.prompts[3:4])
    np.testing.assert_allclose(alone.quality[0], among.quality[3], rtol=1e-4)
    np.testing.assert_allclose(alone.output_tokens[0], among.output_tokens[3], rtol=1e-4)


def test_text_without_a_known_word_is_predicted(fitted):
    predicted = fitted.predict(["", "嗯", "zzz " * 5000])
    assert np.isfinite(predicted.quality).all()
    assert np.isfinite(predicted.output_tokens).all()


@pytest.mark.parametrize("head", ["mlp", "neighbours"])
def test_same_seed_same_bits(head):
    texts = make_texts(120)
    config = config_of(head, max_epochs=3)
    first, second = (
        fit_predictor(config, texts.prompts, texts.quality, texts.output_tokens, EXPERTS).predict(
            texts.prompts
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.quality, second.quality)
    np.testing.assert_array_equal(first.bucket_probability, second.bucket_probability)


def test_another_seed_is_another_fit():
    texts = make_texts(120)
    first, second = (
        fit_predictor(
            config_of("mlp", max_epochs=3, seed=seed),
            texts.prompts,
            texts.quality,
            texts.output_tokens,
            EXPERTS,
        ).predict(texts.prompts)
        for seed in (0, 1)
    )
    assert (first.quality != second.quality).any()


def test_heads_are_averaged_and_differ(fitted, unseen):
    """They are judged on different prompts, so that not even two equal ones would agree."""
    raw = raw_features(fitted.config, unseen.prompts)
    encoded = encode(fitted.encoder, raw)
    (first, first_length), (second, second_length) = (
        head.answers(fitted.config, encoded) for head in fitted.heads
    )
    assert (first != second).any()
    predicted = fitted.predict(unseen.prompts)
    np.testing.assert_allclose(predicted.quality, (first + second) / 2, rtol=1e-5)
    np.testing.assert_allclose(
        predicted.bucket_probability, (first_length + second_length) / 2, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("head", ["linear", "neighbours"])
def test_out_of_fold_does_not_know_its_own_rows(head):
    """Other answers to a prompt and its twin change the prediction of neither, only those of others."""
    texts = make_texts(150)
    prompts = list(texts.prompts)
    prompts[7] = "  " + prompts[3].upper()  # a twin of prompt 3
    config = config_of(head, max_epochs=3, neighbours=3)
    quality, output_tokens = texts.quality.copy(), texts.output_tokens.copy()
    quality[[3, 7]], output_tokens[[3, 7]] = 0.0, 50
    first = out_of_fold(config, prompts, quality, output_tokens, EXPERTS, folds=3)
    quality[[3, 7]], output_tokens[[3, 7]] = 1.0, 5000
    second = out_of_fold(config, prompts, quality, output_tokens, EXPERTS, folds=3)
    np.testing.assert_array_equal(first.quality[[3, 7]], second.quality[[3, 7]])
    np.testing.assert_array_equal(first.bucket_probability[[3, 7]], second.bucket_probability[[3, 7]])
    assert (first.bucket_probability != second.bucket_probability).any()


def test_out_of_fold_on_noise_predicts_nothing():
    """Twins with one random answer: a fit that saw either would match it; correlation 0 +- 0.06 otherwise."""
    rng = np.random.default_rng(5)
    prompts = [f"word{number} word{number + 1} word{number * 7}" for number in range(150)] * 2
    answers = np.tile((rng.random((150, 3)) < 0.5).astype(float), (2, 1))
    config = config_of("neighbours", neighbours=1, min_documents=1)
    found = out_of_fold(config, prompts, answers, np.full((300, 3), 10), EXPERTS)
    assert abs(np.corrcoef(found.quality.ravel(), answers.ravel())[0, 1]) < 0.25
    seen = fit_predictor(config, prompts, answers, np.full((300, 3), 10), EXPERTS).predict(prompts)
    assert np.corrcoef(seen.quality.ravel(), answers.ravel())[0, 1] > 0.6


def test_progress_is_told_to_its_end(texts):
    part = texts.take(np.arange(60))
    told: list[tuple[int, int]] = []
    out_of_fold(
        config_of("linear", max_epochs=4),
        part.prompts,
        part.quality,
        part.output_tokens,
        EXPERTS,
        folds=2,
        on_progress=lambda done, of: told.append((done, of)),
    )
    assert told[-1] == (16, 16)  # folds, heads, epochs
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_mean_predictions_are_the_means(texts):
    config = config_of("mlp")
    means = mean_predictions(config, texts.quality, texts.output_tokens, 4)
    np.testing.assert_allclose(means.quality, np.tile(np.nanmean(texts.quality, 0), (4, 1)), rtol=1e-6)
    known = np.where(texts.output_tokens > 0, texts.output_tokens, np.nan)
    np.testing.assert_allclose(means.output_tokens[0], np.nanmedian(known, 0), rtol=0.25)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": "one text"}, "prompts"),
        ({"prompts": ["a"] * 59 + [None]}, r"prompts\[59\] is a NoneType"),
        ({"prompts": ["same"] * 60}, "only 1 different"),
        ({"quality": np.zeros((60, 2))}, "quality.*shape"),
        ({"quality": np.full((60, 3), 1.5)}, r"1.5 at quality\[0, 0\]"),
        ({"quality": np.full((60, 3), "x")}, "quality.*is <U1"),
        ({"quality": np.full((60, 3), np.nan)}, "'ant' has 0 answers"),
        ({"output_tokens": np.zeros((60, 3), int)}, r"0 at output_tokens\[0, 0\]"),
        ({"output_tokens": np.full((60, 3), 10**6)}, "max_output_tokens"),
        ({"output_tokens": np.full((60, 3), 2.5)}, "output_tokens.*float64"),
        ({"output_tokens": np.full((60, 3), -1)}, "'ant' has 0 answers"),
        ({"experts": ("ant", "bee", "ant")}, "appears twice"),
        ({"experts": ("ant", " ", "cat")}, "empty"),
        ({"experts": ()}, "experts"),
        ({"folds": 1}, "folds"),
        ({"folds": 61}, "folds"),
        ({"folds": 2.0}, "folds"),
    ],
)
def test_bad_answers_are_named(texts, changes, named):
    part = texts.take(np.arange(60))
    arguments = {
        "prompts": part.prompts,
        "quality": part.quality,
        "output_tokens": part.output_tokens,
        "experts": EXPERTS,
    }
    with pytest.raises(InputError, match=named):
        out_of_fold(config_of("linear", max_epochs=1), **(arguments | changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder", "bert"),
        ("head", "tree"),
        ("seed", -1),
        ("components", 0),
        ("components", 2.5),
        ("ridge_folds", 1),
        ("heads", 0),
        ("ridge_length_penalty", 0),
        ("buckets", True),
        ("hidden", (0,)),
        ("dropout", 1.0),
        ("learning_rate", float("nan")),
        ("validation_share", "half"),
    ],
)
def test_bad_configurations_are_named(field, value):
    with pytest.raises(InputError, match=field):
        PredictorConfig(**{field: value})


def test_predicting_no_text_is_refused(fitted):
    with pytest.raises(InputError, match="prompts"):
        fitted.predict([3])
