"""launch.prepare_data from a log to a table that launch.evaluate and launch.simulate run on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from qos_jax.predictors import load_predictor
from qos_jax.tables.report import busy_alone_s
from qos_jax.workload import fleet_path, read_fleet, read_requests, read_table
from qos_jax.workload.named_table import SPLITS
from tests.launch.conftest import FLEET

TRACE = "arrival_s,prompt_tokens,output_tokens\n0,10,3\n0.5,12,4\n1.5,14,5\n7.0,16,6\n"
TINY = (
    "--predictor.hash_bits=8",
    "--predictor.components=8",
    "--predictor.hidden=8",
    "--predictor.heads=1",
    "--predictor.members=1",
    "--predictor.max_epochs=3",
    "--predictor.buckets=8",
    "--folds=2",
)
ROWS = 90


def _log() -> str:
    """Sums that are hard (no model is right, answers are long) and easy, told by a word; one prompt twice."""
    rng = np.random.default_rng(1)
    lines = []
    for k in range(ROWS):
        hard = bool(rng.integers(0, 2))
        word = "integral of a hard" if hard else "easy sum of a"
        answers = {
            model: {
                "score": float(rng.random() < (0.15 if hard else 0.85)),
                "output_tokens": int((60 if hard else 8) * np.exp(rng.normal(0, 0.3))) + 1,
            }
            for model in ("ant", "bee")
        }
        if k == 3:
            answers["bee"] = None
        lines.append(
            {
                "prompt": f"The {word} number {k - (k == 9)}",
                "task": "hard" if hard else "easy",
                "answers": answers,
            }
        )
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def made(launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, made once: the table of a small log, paired with a trace."""
    folder = tmp_path_factory.mktemp("prepare")
    (folder / "log.jsonl").write_text(_log())
    (folder / "trace.csv").write_text(TRACE)
    (folder / "fleet.csv").write_text(FLEET)
    ended = launch(
        "launch.prepare_data",
        *TINY,
        f"--log={folder / 'log.jsonl'}",
        f"--trace={folder / 'trace.csv'}",
        f"--fleet={folder / 'fleet.csv'}",
        f"--out={folder / 'run'}",
    )
    assert ended.code == 0, ended.err
    (folder / "out.txt").write_text(ended.out)
    return folder


def test_table_and_summary(made: Path):
    named = read_table(made / "run/table.npz")
    assert named.names == ("ant", "bee")
    assert named.num_rows == ROWS - 1
    assert named.split is not None
    assert set(np.unique(named.split)) == {0, 1, 2}
    summary = json.loads((made / "run/summary.json").read_text())
    assert summary["rows"] == ROWS - 1
    assert summary["rows_dropped_for_a_missing_answer"] == 1
    assert summary["rows_by_split"] == {name: int(np.sum(named.split == k)) for k, name in enumerate(SPLITS)}
    assert any("estimated" in note for note in summary["notes"])
    text = (made / "out.txt").read_text()
    assert "rows dropped for a missing answer: 1" in text
    rows = list(csv.DictReader((made / "run/summary.csv").read_text().splitlines()))
    assert [(row["split"], row["expert"]) for row in rows] == [
        (split, expert) for split in SPLITS for expert in ("all", "ant", "bee")
    ]
    assert {path.name for path in (made / "run/plots").iterdir()} >= {"quality.png", "reliability.png"}


def test_validation_and_test_are_predicted_by_the_saved_predictor(made: Path):
    named = read_table(made / "run/table.npz")
    predictor = load_predictor(made / "run/predictor.npz")
    prompts = [json.loads(line)["prompt"] for k, line in enumerate(_log().splitlines()) if k != 3]
    assert predictor.experts == named.names
    predictions = predictor.predict(prompts)
    train = named.split == 0
    known = np.isclose(named.table.predicted_quality, predictions.quality, atol=1e-5).all(axis=1)
    assert known[~train].all()
    assert not known[train].any()  # by other fits, which did not see them
    np.testing.assert_allclose(
        named.table.predicted_output_tokens[~train], predictions.output_tokens[~train], rtol=1e-4
    )
    # What routers are told is the error out of fold.
    error = np.log(named.table.output_tokens[train]) - np.log(named.table.predicted_output_tokens[train])
    np.testing.assert_allclose(named.length_log_std, error.std(axis=0), rtol=1e-4)


def test_reports_with_intervals_and_costs(made: Path):
    for split in SPLITS:
        figures = list(csv.DictReader((made / f"run/predictor_report_{split}.csv").read_text().splitlines()))
        assert {row["expert"] for row in figures} == {"ant", "bee", "mean", "pooled"}
        points = list(csv.DictReader((made / f"run/cost_frontier_{split}.csv").read_text().splitlines()))
        assert {row["frontier"] for row in points} == {"predicted", "static", "oracle", "task_oracle"}
        assert all(float(row["busy_s"]) > 0 for row in points)
    text = (made / "out.txt").read_text()
    assert "predictions of test rows" in text
    assert "best single expert" in text
    assert (made / "run/plots/cost_frontier.png").exists()


def test_busy_alone_is_by_the_closed_form():
    fleet = read_fleet(fleet_path("edge6"))
    busy_s = busy_alone_s(fleet.profile, [100, 7], np.full((2, 6), 1))
    profile = fleet.profile
    prompt = np.array([[100.0], [7.0]])
    expected_s = (
        profile.prefill_base_s
        + profile.prefill_per_token_s * prompt
        + profile.prefill_per_token_sq_s * prompt**2
    )
    np.testing.assert_allclose(busy_s, expected_s, rtol=1e-5)
    assert (busy_alone_s(fleet.profile, [100, 7], np.full((2, 6), 2)) > busy_s).all()


def test_paired_requests(made: Path):
    requests = read_requests(made / "run/requests.csv", ("ant", "bee"))
    np.testing.assert_allclose(requests.arrival_s, [0, 0.5, 1.5, 7.0])
    named = read_table(made / "run/table.npz")
    test = named.split == 2
    rows = np.hstack([named.table.output_tokens[test], named.table.predicted_output_tokens[test]])
    mine = np.hstack([requests.table.output_tokens, requests.table.predicted_output_tokens])
    assert {tuple(row) for row in np.float32(mine).tolist()} <= {
        tuple(row) for row in np.float32(rows).tolist()
    }
    paired = json.loads((made / "run/summary.json").read_text())["paired"]
    assert paired["requests"] == 4
    assert "nearest" in paired["matched"]


def test_evaluated_under_all_predictions(launch, made: Path):
    arguments = (
        f"--fleet={made / 'fleet.csv'}",
        f"--table={made / 'run/table.npz'}",
        "--table_split=test",
        "--predictions=fitted,mean,shuffled,true",
        "--policies=best_quality,upper_bound",
        "--baseline=best_quality@mean",
        "--workloads=poisson",
        "--loads=0.3",
        "--seeds=2",
        "--num_requests=64",
        "--latency_limit_s=0.5",
        "--noplots",
        f"--out={made / 'evaluated'}",
    )
    ended = launch("launch.evaluate", *arguments)
    assert ended.code == 0, ended.err
    again = launch("launch.evaluate", *arguments, "--resume")
    assert (again.code, again.out) == (0, ended.out)
    rows = list(csv.DictReader((made / "evaluated/comparison.csv").read_text().splitlines()))
    quality = {row["policy"]: float(row["mean"]) for row in rows if row["metric"] == "average_qos"}
    assert set(quality) == {
        "best_quality@fitted",
        "best_quality@mean",
        "best_quality@shuffled",
        "best_quality@true",
        "upper_bound",
    }
    # Whatever the predictions, who knows the truth does best.
    assert quality["best_quality@true"] >= max(quality[f"best_quality@{kind}"] for kind in ("fitted", "mean"))
    assert quality["upper_bound"] >= quality["best_quality@true"] - 1e-6


def test_verify(launch, made: Path):
    ended = launch(
        "launch.prepare_data", f"--verify={made / 'run/table.npz'}", f"--out={made / 'verified'}", "--noplots"
    )
    assert ended.code == 0, ended.err
    assert (made / "verified/summary.csv").read_text() == (made / "run/summary.csv").read_text()
    assert not (made / "verified/plots").exists()


def test_same_seed_same_bytes(launch, made: Path):
    ended = launch(
        "launch.prepare_data", *TINY, f"--log={made / 'log.jsonl'}", f"--out={made / 'again'}", "--noplots"
    )
    assert ended.code == 0, ended.err
    assert (made / "again/table.npz").read_bytes() == (made / "run/table.npz").read_bytes()


def test_held_out_task(launch, made: Path):
    ended = launch(
        "launch.prepare_data",
        *TINY,
        f"--log={made / 'log.jsonl'}",
        "--held_out_task=hard",
        "--missing=fill",
        f"--out={made / 'held_out'}",
        "--noplots",
    )
    assert ended.code == 0, ended.err
    named = read_table(made / "held_out/table.npz")
    assert named.num_rows == ROWS
    hard = np.array([json.loads(line)["task"] == "hard" for line in _log().splitlines()])
    np.testing.assert_array_equal(named.split == 2, hard)
    assert "answers filled: 1" in ended.out
