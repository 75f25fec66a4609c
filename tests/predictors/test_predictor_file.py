"""Files of predictors: read again bit for bit; a fault is one error that names file, array and remedy."""

import json

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.predictors import load_predictor, save_predictor
from tests.predictors.texts import EXPERTS


@pytest.fixture
def path(fitted, tmp_path):
    save_predictor(tmp_path / "new" / "mine.npz", fitted)
    return tmp_path / "new" / "mine.npz"


def test_read_again_as_written(fitted, path, unseen):
    again = load_predictor(path)
    assert again.config == fitted.config
    assert again.experts == EXPERTS
    np.testing.assert_array_equal(again.length_log_std, fitted.length_log_std)
    first, second = (one.predict(unseen.prompts[:20]) for one in (fitted, again))
    np.testing.assert_array_equal(first.quality, second.quality)
    np.testing.assert_array_equal(first.bucket_probability, second.bucket_probability)
    assert [p.name for p in path.parent.iterdir()] == ["mine.npz"]


def spoil(name, value):
    def change(arrays):
        arrays[name] = value(arrays[name]) if callable(value) else value

    return change


def changed_config(**changes):
    return lambda stored: np.array(json.dumps(json.loads(str(stored)) | changes))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda arrays: arrays.pop("version"), "'version'.*missing"),
        (spoil("version", np.int32(2)), "version.*'2', and only 3 is known.*write it with"),
        (spoil("config", np.array("{")), "config.*no configuration"),
        (spoil("config", np.array("[1]")), "config.*no group"),
        (spoil("config", np.float32(1)), "config.*not a text"),
        (spoil("config", changed_config(colour=1)), "config.*colour"),
        (spoil("config", changed_config(head="tree")), "config.*tree"),
        (spoil("config", changed_config(components=25)), "has shape"),
        (spoil("config", changed_config(hidden=3)), "config"),
        (spoil("experts", np.array(["ant", "ant", "bee"])), "twice"),
        (spoil("experts", np.arange(3)), "experts.*names"),
        (spoil("experts", np.array(["ant"])), "has shape"),
        (lambda arrays: arrays.pop("feature_std"), "'feature_std'.*missing"),
        (spoil("feature_std", lambda values: values * 0), "feature_std.*out of range"),
        (spoil("config", changed_config(heads=3)), "'head2/quality_scale'.*missing"),
        (spoil("config", changed_config(heads=1)), "'head1/.*unknown"),
        (spoil("head1/quality_scale", lambda values: -values), "head1/quality_scale.*out of range"),
        (spoil("head1/quality_shift", lambda values: values[1:]), "head1/quality_shift.*has shape"),
        (spoil("length_log_std", lambda values: values * np.nan), "length_log_std.*out of range"),
        (spoil("bucket_edges_tokens", lambda values: values[::-1]), "does not rise"),
        (spoil("ngram_columns", lambda values: values + 10**6), "outside"),
        (spoil("ngram_columns", lambda values: values.astype(np.float32)), "not integers"),
        (spoil("ngram_rarity", lambda values: values[1:]), "has shape"),
        (spoil("other", np.zeros(3)), "'other'.*unknown"),
    ],
)
def test_a_bad_array_is_named(path, change, named):
    with np.load(path) as content:
        arrays = dict(content)
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=named) as caught:
        load_predictor(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_a_file_that_is_none(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(InputError, match="not a readable"):
        load_predictor(tmp_path / "bad.npz")


def test_half_a_file(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="not a readable"):
        load_predictor(path)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_predictor(tmp_path / "none.npz")
    with pytest.raises(InputError, match="cannot be read"):
        load_predictor(tmp_path)
