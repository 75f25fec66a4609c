"""Cost frontiers: worked out by hand on two experts, one dear and good, one cheap and good on half."""

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.tables.cost_frontier import cost_frontier, render_frontier, write_frontier_csv

EXPERTS = ("cheap", "dear")
ROWS = 200
EASY = np.arange(ROWS) % 2 == 0


@pytest.fixture(scope="module")
def case():
    """The cheap expert is right on easy prompts, the dear one always; they cost 1 and 10 busy seconds."""
    quality = np.stack([EASY.astype(float), np.ones(ROWS)], axis=1)
    return quality, np.tile([1.0, 10.0], (ROWS, 1))


def shares(frontier):
    return {(row.frontier, row.share): row.cost_share for row in frontier.shares}


def test_by_hand(case):
    quality, cost_s = case
    tasks = ["easy" if easy else "hard" for easy in EASY]
    frontier = cost_frontier(quality, quality, cost_s, EXPERTS, tasks=tasks)
    found = shares(frontier)
    assert frontier.best_single == "dear"
    for name in ("predicted", "oracle", "task_oracle"):
        assert found[name, 1.0] == pytest.approx(0.55)  # half at 1 second, half at 10
    assert found["static", 1.0] == pytest.approx(1.0)
    # Static: 0.98 = 0.5 * (1 - x) + x, x = 0.96 dear.
    assert found["static", 0.98] == pytest.approx((0.96 * 10 + 0.04) / 10)
    # Predicted: lots between (0.5, 1 s) and (1, 5.5 s), in the same ratio.
    assert found["predicted", 0.98] == pytest.approx((0.96 * 5.5 + 0.04) / 10)


def test_predictions_that_tell_nothing_buy_nothing(case):
    quality, cost_s = case
    nothing = np.tile(quality.mean(0), (ROWS, 1))
    found = shares(cost_frontier(quality, nothing, cost_s, EXPERTS))
    assert found["predicted", 0.98] == pytest.approx(found["static", 0.98])


def test_wrong_predictions_do_not_reach_it(case):
    quality, cost_s = case
    found = shares(cost_frontier(quality, np.tile([1.0, 0.0], (ROWS, 1)), cost_s, EXPERTS))
    assert np.isnan(found["predicted", 0.98])


def test_intervals_hold_the_value_and_missing_rows_are_told(case):
    quality, cost_s = case[0].copy(), case[1].copy()
    quality[0, 0] = cost_s[1, 1] = np.nan
    frontier = cost_frontier(quality, np.nan_to_num(quality), cost_s, EXPERTS)
    assert (frontier.rows, frontier.left_out) == (ROWS - 2, 2)
    for row in frontier.shares:
        assert row.low <= row.cost_share <= row.high
    assert "2 left out" in render_frontier(frontier)


def test_points_are_written(case, tmp_path):
    quality, cost_s = case
    frontier = cost_frontier(quality, quality, cost_s, EXPERTS, resamples=2)
    write_frontier_csv(tmp_path / "frontier.csv", frontier)
    lines = (tmp_path / "frontier.csv").read_text().splitlines()
    assert lines[0] == "frontier,price,expert,quality,busy_s"
    assert len(lines) == len(frontier.points) + 1
    assert "static,nan,dear,1.0,10.0" in lines


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"predicted_quality": np.zeros((3, 2))}, "predicted_quality.*shape"),
        ({"predicted_quality": np.full((ROWS, 2), np.nan)}, "predicted_quality.*finite"),
        ({"cost_s": np.zeros((ROWS, 2))}, "cost_s.*above 0"),
        ({"predicted_cost_s": np.full((ROWS, 2), np.nan)}, "predicted_cost_s.*above 0"),
        ({"tasks": ["one"]}, "tasks"),
        ({"quality": np.full((ROWS, 2), np.nan)}, "no request has all answers"),
    ],
)
def test_bad_arguments_are_named(case, changes, named):
    quality, cost_s = case
    arguments = {"quality": quality, "predicted_quality": quality, "cost_s": cost_s, "experts": EXPERTS}
    with pytest.raises(InputError, match=named):
        cost_frontier(**(arguments | changes))
