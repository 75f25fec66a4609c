from __future__ import annotations

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.workload import NamedTable, RequestTable, measure_length_log_std
from qos_jax.workload.degraded import FITTED, MEAN, PREDICTIONS, SHUFFLED, TRUE, with_predictions


def _named(rows: int = 60, split: bool = True) -> NamedTable:
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 500, (rows, 2))
    quality = rng.random((rows, 2))
    table = RequestTable(
        prompt_tokens=rng.integers(1, 99, rows).astype(np.int32),
        quality=quality.astype(np.float32),
        output_tokens=tokens.astype(np.int32),
        predicted_quality=np.clip(quality + rng.normal(0, 0.1, quality.shape), 0, 1).astype(np.float32),
        predicted_output_tokens=(tokens * np.exp(rng.normal(0, 0.3, tokens.shape))).astype(np.float32),
    )
    which = np.repeat(np.arange(3, dtype=np.int32), [rows // 2, 0, rows - rows // 2]) if split else None
    return NamedTable(("ant", "bee"), table, np.float32([0.3, 0.3]), which, "table.npz")


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_truths_stay(kind: str):
    named = _named()
    other = with_predictions(named, kind, seed=3)
    for field in ("prompt_tokens", "quality", "output_tokens"):
        np.testing.assert_array_equal(getattr(other.table, field), getattr(named.table, field))
    assert other.table.predicted_quality.dtype == other.table.predicted_output_tokens.dtype == np.float32
    assert other.length_log_std.dtype == np.float32


def test_fitted_is_the_table_itself():
    named = _named()
    assert with_predictions(named, FITTED) is named


def test_mean_is_of_train_rows():
    named = _named()
    train = named.split == 0
    other = with_predictions(named, MEAN)
    expected = named.table.quality[train].mean(axis=0)
    np.testing.assert_allclose(other.table.predicted_quality, np.tile(expected, (60, 1)), rtol=1e-6)
    median = np.median(named.table.output_tokens[train], axis=0)
    np.testing.assert_allclose(other.table.predicted_output_tokens, np.tile(median, (60, 1)))
    spread = np.log(named.table.output_tokens[train]).std(axis=0)
    np.testing.assert_allclose(other.length_log_std, spread, rtol=1e-5)


def test_shuffled_permutes_whole_rows_within_splits():
    named = _named()
    other = with_predictions(named, SHUFFLED, seed=1)
    for split in (0, 2):
        at = named.split == split
        before = np.hstack([named.table.predicted_quality[at], named.table.predicted_output_tokens[at]])
        after = np.hstack([other.table.predicted_quality[at], other.table.predicted_output_tokens[at]])
        assert (before != after).any()
        assert sorted(map(tuple, before)) == sorted(map(tuple, after))
    # Told honestly: as wide as predictions of other rows are wrong.
    train = jax.tree.map(lambda leaf: leaf[named.split == 0], other.table)
    np.testing.assert_allclose(other.length_log_std, measure_length_log_std(train), rtol=1e-6)
    assert (other.length_log_std > 2 * named.length_log_std).all()
    again = with_predictions(named, SHUFFLED, seed=1)
    np.testing.assert_array_equal(again.table.predicted_quality, other.table.predicted_quality)


def test_true_is_exact_and_known_to_be():
    other = with_predictions(_named(), TRUE)
    np.testing.assert_array_equal(other.table.predicted_quality, other.table.quality)
    np.testing.assert_array_equal(other.table.predicted_output_tokens, other.table.output_tokens)
    np.testing.assert_array_equal(other.length_log_std, 0)


@pytest.mark.parametrize("kind", [MEAN, SHUFFLED])
def test_a_table_without_train_rows(kind: str):
    with pytest.raises(InputError, match=r"table\.npz, field 'split': has no train rows"):
        with_predictions(_named(split=False), kind)
