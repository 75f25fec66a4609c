"""Named tables: a fleet's experts in its order, the rows of a split, clear errors where there are none."""

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.workload import NamedTable, RequestTable, split_rows, table_for_experts

ROWS = 4


@pytest.fixture
def named() -> NamedTable:
    """Cell [m, i] holds (m, i) in its digits."""
    cell = 10 * np.arange(1, ROWS + 1)[:, None] + np.arange(3)
    return NamedTable(
        names=("ant", "bee", "cat"),
        table=RequestTable(
            prompt_tokens=np.arange(1, ROWS + 1, dtype=np.int32),
            quality=(cell / 100).astype(np.float32),
            output_tokens=cell.astype(np.int32),
            predicted_quality=(cell / 200).astype(np.float32),
            predicted_output_tokens=(cell + 0.5).astype(np.float32),
        ),
        length_log_std=np.array([0.1, 0.2, 0.3], np.float32),
        split=np.array([2, 0, 0, 2], np.int32),
        file="mine.npz",
    )


def test_experts_of_a_fleet_in_its_order(named):
    fewer = table_for_experts(named, ("cat", "ant"))
    assert fewer.names == ("cat", "ant")
    np.testing.assert_array_equal(fewer.table.output_tokens, named.table.output_tokens[:, [2, 0]])
    np.testing.assert_array_equal(fewer.table.predicted_quality, named.table.predicted_quality[:, [2, 0]])
    np.testing.assert_array_equal(fewer.table.prompt_tokens, named.table.prompt_tokens)
    np.testing.assert_array_equal(fewer.length_log_std, named.length_log_std[[2, 0]])
    np.testing.assert_array_equal(fewer.split, named.split)


def test_an_expert_that_is_not_there(named):
    with pytest.raises(InputError, match=r"mine.npz, field 'experts': .*'bees' .*did you mean 'bee'.*; use"):
        table_for_experts(named, ("ant", "bees"))


def test_rows_of_a_split(named):
    test = split_rows(named, "test")
    np.testing.assert_array_equal(test.table.prompt_tokens, [1, 4])
    np.testing.assert_array_equal(test.table.quality, named.table.quality[[0, 3]])
    np.testing.assert_array_equal(test.split, [2, 2])
    np.testing.assert_array_equal(test.length_log_std, named.length_log_std)
    assert split_rows(named, "all") is named


def test_splits_that_are_not_there(named):
    with pytest.raises(
        InputError, match=r"mine.npz, field 'split': has no row of 'validation'; use train or test"
    ):
        split_rows(named, "validation")
    named = NamedTable(named.names, named.table, named.length_log_std, None, "mine.npz")
    with pytest.raises(InputError, match=r"field 'split': is missing.*; use 'all'"):
        split_rows(named, "test")
