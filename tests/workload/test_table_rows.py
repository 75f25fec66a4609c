"""Rows drawn evenly, and rows drawn among those nearest in length."""

import jax
import numpy as np
import pytest

from qos_jax.workload import RequestTable
from qos_jax.workload.table_rows import (
    NEIGHBOURS,
    effective_rows,
    even_rows,
    length_ratios,
    rows_near,
    take_rows,
)

KEYS = jax.random.split(jax.random.key(0), 3)


def table_of(prompt, output) -> RequestTable:
    """A table of two experts whose output tokens have the geometric mean ``output``."""
    prompt, output = np.asarray(prompt), np.asarray(output)
    tokens = np.stack([output // 2, output * 2], axis=1)
    half = np.full(tokens.shape, 0.5, np.float32)
    return RequestTable(prompt, half, tokens, half, tokens.astype(np.float32))


@pytest.fixture(scope="module")
def grid() -> RequestTable:
    """Powers of 2 apart in both lengths: 40 rows at each of 4 places."""
    place = np.arange(160) % 4
    return table_of(64 * 4 ** (place % 2), 64 * 4 ** (place // 2))


def test_even_rows_hit_all_alike():
    rows = even_rows(KEYS, 10, 4000)
    assert rows.shape == (3, 4000)
    counts = np.array([np.bincount(run, minlength=10) for run in rows])
    assert counts.shape == (3, 10)
    # Binomial, mean 400, std 19.
    assert np.all(np.abs(counts - 400) < 100)
    assert not np.array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows, even_rows(KEYS, 10, 4000))


@pytest.mark.parametrize("shared", [True, False])
def test_near_rows_are_near(grid, shared):
    """Lengths asked for: nearest to one place each; [T] the same for every run, or [S, T]."""
    place = np.tile(np.arange(4), 50)
    prompt, output = 64 * 4 ** (place % 2) + 9, 64 * 4 ** (place // 2) - 9
    if not shared:
        prompt, output = (np.stack([x, x[::-1], x]) for x in (prompt, output))
    rows = rows_near(KEYS, grid, prompt, output)
    drawn = take_rows(grid, rows)
    assert drawn.prompt_tokens.shape == (3, 200)
    assert drawn.quality.shape == (3, 200, 2)
    np.testing.assert_array_equal(drawn.prompt_tokens, np.broadcast_to(prompt - 9, (3, 200)))
    np.testing.assert_array_equal(drawn.output_tokens[..., 1], 2 * np.broadcast_to(output + 9, (3, 200)))
    # Seeds differ, and each place gives NEIGHBOURS rows of its 40.
    assert not np.array_equal(rows[0], rows[2])
    assert len(np.unique(rows)) == 4 * NEIGHBOURS
    np.testing.assert_array_equal(rows, rows_near(KEYS, grid, prompt, output))


def test_nearest_by_both_lengths_in_logs():
    """One row is nearest at a time: of 17 rows, all but the farthest are drawn from."""
    prompt = 2 ** np.arange(17)
    rows = rows_near(KEYS, table_of(prompt, np.full(17, 64)), np.full(500, 2), np.full(500, 64))
    assert set(np.unique(rows)) == set(range(16))
    output = 2 ** np.arange(1, 18)
    rows = rows_near(KEYS, table_of(np.full(17, 64), output), np.full(500, 64), np.full(500, 2**16))
    assert set(np.unique(rows)) == set(range(1, 17))


def test_a_small_table_is_drawn_from_whole():
    rows = rows_near(KEYS, table_of([10, 20, 5000], [8, 8, 800]), np.full(200, 12), np.full(200, 8))
    assert set(np.unique(rows)) == {0, 1, 2}
    one = rows_near(KEYS, table_of([10], [8]), np.full(20, 900), np.full(20, 8))
    np.testing.assert_array_equal(one, 0)


def test_effective_rows():
    assert effective_rows(np.array([[3, 5], [7, 9]], np.int32)) == pytest.approx(4)
    assert effective_rows(np.array([2, 2, 2], np.int32)) == pytest.approx(1)
    assert effective_rows(np.array([0, 0, 0, 1], np.int32)) == pytest.approx(16 / 10)


def test_length_ratios():
    drawn = take_rows(table_of([10, 20, 40], [8, 16, 32]), np.array([[0, 1, 2], [1, 1, 1]], np.int32))
    assert length_ratios(drawn, [40, 80, 160], [16, 16, 16]) == pytest.approx((0.25, 1.0))
    assert length_ratios(drawn, [[10, 20, 40], [20, 20, 20]], [[4, 8, 16], [8, 8, 8]]) == pytest.approx(
        (1, 2)
    )
