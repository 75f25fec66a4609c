from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from qos_jax.errors import InputError
from qos_jax.tables.answers.log import MISSING_TOKENS, AnswerLog
from qos_jax.tables.answers.rows import DROP, FILL, SplitConfig, complete, split_by_prompt
from qos_jax.workload.named_table import SPLITS

TRAIN, VALIDATION, TEST = range(len(SPLITS))


def make_log(
    quality: np.ndarray, tokens: np.ndarray, prompts: list[str] | None = None, task: list[str] | None = None
) -> AnswerLog:
    rows, experts = quality.shape
    return AnswerLog(
        prompts=tuple(prompts or [f"prompt {k}" for k in range(rows)]),
        prompt_tokens=np.full(rows, 5, np.int32),
        experts=tuple(f"expert {k}" for k in range(experts)),
        quality=quality.astype(np.float32),
        output_tokens=tokens.astype(np.int32),
        task=None if task is None else tuple(task),
        file="log.jsonl",
        files=("log.jsonl",) * rows,
        line=np.arange(1, rows + 1, dtype=np.int32),
    )


def _even_log(rows: int, prompts: list[str] | None = None, task: list[str] | None = None) -> AnswerLog:
    return make_log(np.full((rows, 2), 0.5), np.full((rows, 2), 9), prompts, task)


def test_complete_drops_and_counts():
    quality = np.array([[0.1, 0.2], [np.nan, 0.4], [0.5, 0.6], [0.7, 0.8]])
    tokens = np.array([[1, 2], [3, 4], [5, MISSING_TOKENS], [7, 8]])
    done = complete(make_log(quality, tokens), DROP)
    assert done.dropped_rows == 2
    assert done.log.prompts == ("prompt 0", "prompt 3")
    assert done.given is done.log


def test_complete_fills_by_row_and_expert():
    """On data that the two-way model holds for exactly, what was taken out is put back."""
    row, column = np.array([0.1, 0.3, 0.5, 0.6]), np.array([0.0, 0.1, 0.3])
    quality = row[:, None] + column
    tokens = np.array([10, 40, 100, 400])[:, None] * np.array([1, 2, 4])
    gaps = np.zeros((4, 3), bool)
    gaps[[0, 2, 2], [1, 0, 2]] = True
    log = make_log(np.where(gaps, np.nan, quality), np.where(gaps, MISSING_TOKENS, tokens))
    done = complete(log, FILL)
    np.testing.assert_allclose(done.log.quality, quality, atol=1e-5)
    np.testing.assert_array_equal(done.log.output_tokens, tokens)
    np.testing.assert_array_equal(done.given.missing, gaps)
    assert done.dropped_rows == 0


def test_filled_answers_keep_their_ranges():
    quality = np.array([[1.0, 0.0], [np.nan, 0.0], [1.0, np.nan], [1.0, 0.0]])
    done = complete(make_log(quality, np.full((4, 2), 1)), FILL)
    assert (done.log.quality >= 0).all()
    assert (done.log.quality <= 1).all()
    assert (done.log.output_tokens >= 1).all()


def test_nothing_to_complete_from():
    quality = np.array([[0.5, 0.5], [np.nan, np.nan]])
    with pytest.raises(InputError, match=r"log\.jsonl, row 2: no answer has a score"):
        complete(make_log(quality, np.full((2, 2), 3)), FILL)
    with pytest.raises(InputError, match=r"every row misses an answer; give --missing=fill"):
        complete(make_log(np.array([[np.nan, 0.5], [0.5, np.nan]]), np.full((2, 2), 3)), DROP)


@given(
    names=st.lists(st.integers(0, 30), min_size=12, max_size=60),
    seed=st.integers(0, 2**32 - 1),
)
def test_equal_prompts_stay_together(names: list[int], seed: int):
    prompts = [f"prompt {name}{' ' * (k % 2)}" for k, name in enumerate(names)]
    log, config = _even_log(len(names), prompts), SplitConfig((0.4, 0.2, 0.4), seed)
    distinct = len(set(names))
    if distinct < 3:
        return
    split = split_by_prompt(log, config)
    np.testing.assert_array_equal(split, split_by_prompt(log, config))
    by_prompt = {name: {int(split[k]) for k, other in enumerate(names) if other == name} for name in names}
    assert all(len(splits) == 1 for splits in by_prompt.values())
    counts = np.bincount([next(iter(splits)) for splits in by_prompt.values()], minlength=3)
    assert (np.abs(counts - distinct * np.array(config.split_shares)) <= 1).all()


def test_another_seed_splits_otherwise():
    log = _even_log(100)
    one, two = (split_by_prompt(log, SplitConfig(split_seed=seed)) for seed in (0, 1))
    assert (one != two).any()
    np.testing.assert_array_equal(np.bincount(one), [60, 10, 30])


def test_a_held_out_task_is_test_and_its_prompts_are_nowhere_else():
    task = ["sums"] * 20 + ["facts"] * 20
    prompts = [f"prompt {k}" for k in range(39)] + ["prompt 0"]  # the last fact is the first sum
    split = split_by_prompt(_even_log(40, prompts, task), SplitConfig((0.6, 0.1, 0.3), 0, "facts"))
    np.testing.assert_array_equal(split[20:], TEST)
    assert split[0] == TEST
    np.testing.assert_array_equal(np.bincount(split[1:20], minlength=3), [17, 2, 0])


def test_splits_that_cannot_be():
    with pytest.raises(InputError, match="no row of 1 is left for test"):
        split_by_prompt(_even_log(1), SplitConfig())
    with pytest.raises(InputError, match="leave train or test empty"):
        SplitConfig((1.0, 0.0, 0.0))
    with pytest.raises(InputError, match="no shares"):
        SplitConfig((0.5, float("nan"), 0.5))
