from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from qos_jax.runs.folder import open_run_folder
from qos_jax.tables.plots import write_table_plots
from qos_jax.tables.scores import area_under_curve, explained_share, reliability
from qos_jax.tables.summary import render_summary, summarise_table, write_summary
from qos_jax.workload import NamedTable, RequestTable


def make_named(rows: int = 40, split: bool = True) -> NamedTable:
    rng = np.random.default_rng(2)
    quality = rng.integers(0, 2, (rows, 2)).astype(np.float32)
    tokens = rng.integers(5, 500, (rows, 2)).astype(np.int32)
    table = RequestTable(
        prompt_tokens=rng.integers(1, 99, rows).astype(np.int32),
        quality=quality,
        output_tokens=tokens,
        predicted_quality=np.clip(quality * 0.6 + 0.4 * rng.random((rows, 2)), 0, 1).astype(np.float32),
        predicted_output_tokens=(tokens * np.exp(rng.normal(0.1, 0.3, (rows, 2)))).astype(np.float32),
    )
    which = np.where(np.arange(rows) < rows // 2, 0, 2).astype(np.int32) if split else None
    return NamedTable(("ant", "bee"), table, np.float32([0.25, 0.5]), which, "table.npz")


@given(
    scores=hnp.arrays(np.float64, st.integers(2, 30), elements=st.integers(0, 5).map(float)),
    data=st.data(),
)
def test_area_is_the_chance_of_the_right_order(scores: np.ndarray, data: st.DataObject):
    positive = data.draw(hnp.arrays(bool, scores.shape))
    area = area_under_curve(positive, scores)
    if positive.all() or not positive.any():
        assert math.isnan(area)
        return
    pairs = scores[positive][:, None] - scores[~positive][None, :]
    assert area == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def test_explained_share():
    true = np.array([1.0, 2.0, 3.0])
    assert explained_share(true, true) == 1
    assert explained_share(true, np.full(3, 2.0)) == 0
    assert math.isnan(explained_share(np.ones(3), true))


def test_reliability_by_hand():
    table = reliability(np.array([0.05, 0.15, 0.95, 0.95, 1.0, 0.5]), np.array([0, 1, 1, 0, 1, np.nan]))
    assert table.count.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    np.testing.assert_allclose(table.predicted[[0, 1, 9]], [0.05, 0.15, 2.9 / 3])
    np.testing.assert_allclose(table.observed[[0, 1, 9]], [0, 1, 2 / 3])
    assert np.isnan(table.observed[2:9]).all()


def test_rows_by_split_and_expert():
    named = make_named()
    rows = summarise_table(named)
    assert [(row.split, row.expert) for row in rows] == [
        (split, expert) for split in ("train", "test") for expert in ("all", "ant", "bee")
    ]
    test = named.split == 2
    bee = rows[-1]
    assert bee.rows == 20
    assert bee.quality == pytest.approx(named.table.quality[test, 1].mean())
    assert bee.quality_auc == 1  # made so: no wrong answer is predicted above a right one
    ratio = np.log(named.table.output_tokens[test, 1]) - np.log(named.table.predicted_output_tokens[test, 1])
    assert bee.length_log_std == pytest.approx(ratio.std(), rel=1e-5)
    assert bee.told_length_log_std == 0.5
    assert rows[3].told_length_log_std == pytest.approx(0.375)
    assert rows[3].log_length_r2 == pytest.approx((rows[4].log_length_r2 + rows[5].log_length_r2) / 2)
    assert [row.split for row in summarise_table(make_named(split=False))] == ["all"] * 3


def test_written_and_told(tmp_path):
    rows = summarise_table(make_named())
    folder = open_run_folder(tmp_path / "run", {})
    write_summary(folder, rows)
    lines = folder.file("summary.csv").read_text().splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("split,expert,rows,quality,predicted_quality,quality_auc,")
    assert "bee" in render_summary(rows).splitlines()[-1]


def test_plots(tmp_path):
    folder = open_run_folder(tmp_path / "run", {})
    names = [path.name for path in write_table_plots(folder, make_named())]
    assert names == ["quality.png", "lengths.png", "predicted_lengths.png", "reliability.png"]
    for name in names:
        assert folder.file(f"plots/{name}").read_bytes().startswith(b"\x89PNG")
