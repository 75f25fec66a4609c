"""Run folders: results of two runs never mix, and lines are whole."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.runs.folder import check_run_folder, open_run_folder, settings_of

CONFIG = {"policies": ("random", "least_work"), "seeds": 4, "rates": np.array([1.0, 2.0])}


def _lines(run):
    return [json.loads(line) for line in run.file("metrics.jsonl").read_text().splitlines()]


def test_a_new_folder_holds_config_and_metrics(tmp_path):
    run = open_run_folder(tmp_path / "runs" / "a", CONFIG)
    assert json.loads(run.file("config.json").read_text()) == {
        "policies": ["random", "least_work"],
        "seeds": 4,
        "rates": [1.0, 2.0],
    }
    run.append_metrics({"policy": "random", "average_qos": np.float32(0.5), "ttft_s": np.nan})
    run.append_metrics({"policy": "least_work", "average_qos": np.array([0.5, 0.25])})
    assert _lines(run) == [
        {"policy": "random", "average_qos": 0.5, "ttft_s": None},
        {"policy": "least_work", "average_qos": [0.5, 0.25]},
    ]


def test_another_runs_results_are_kept_unless_asked(tmp_path):
    run = open_run_folder(tmp_path, CONFIG)
    run.append_metrics({"a": 1})
    with pytest.raises(InputError, match=r"another run \(it differs in seeds\).*--overwrite"):
        open_run_folder(tmp_path, CONFIG | {"seeds": 8})
    assert _lines(run) == [{"a": 1}]
    (tmp_path / "notes.txt").write_text("mine")
    run = open_run_folder(tmp_path, CONFIG | {"seeds": 8}, overwrite=True)
    assert not run.file("metrics.jsonl").exists()
    assert json.loads(run.file("config.json").read_text())["seeds"] == 8
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_same_run_starts_afresh_or_resumes(tmp_path):
    open_run_folder(tmp_path, CONFIG).append_metrics({"a": 1})
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"a": 2')  # cut short, as by a power failure
    run = open_run_folder(tmp_path, CONFIG, resume=True)
    run.append_metrics({"a": 3})
    assert _lines(run) == [{"a": 1}, {"a": 3}]
    run = open_run_folder(tmp_path, CONFIG)
    run.append_metrics({"a": 4})
    assert _lines(run) == [{"a": 4}]


def test_stale_tables_and_plots_go_with_the_run(tmp_path):
    run = open_run_folder(tmp_path, CONFIG)
    for name in ("comparison.csv", "plots/latency_cdf.png", "records.csv"):
        run.file(name).parent.mkdir(exist_ok=True)
        run.file(name).write_text("old")
    open_run_folder(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["config.json"]


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "summary.json").write_text("mine")
    with pytest.raises(InputError, match="not of a run"):
        open_run_folder(tmp_path, CONFIG)
    open_run_folder(tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / "summary.json").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        open_run_folder(tmp_path / "out", CONFIG, overwrite=True)
    with pytest.raises(InputError, match="cannot be written"):
        open_run_folder(tmp_path / "out" / "below", CONFIG)


def test_a_broken_config_counts_as_another_run(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="another run"):
        open_run_folder(tmp_path, CONFIG)


def test_a_run_stopped_before_its_first_result_is_in_nobodys_way(tmp_path):
    open_run_folder(tmp_path, CONFIG)
    (tmp_path / "plots").mkdir()
    (tmp_path / ".comparison.csv.a1b2c3d4").write_text("killed while it wrote")
    run = open_run_folder(tmp_path, CONFIG | {"seeds": 8})
    assert json.loads(run.file("config.json").read_text())["seeds"] == 8
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["config.json"]
    # A file of that name that is of something else is not a run's.
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="another run"):
        open_run_folder(tmp_path, CONFIG)


def test_checking_writes_nothing(tmp_path):
    assert check_run_folder(tmp_path / "new", CONFIG) is None
    assert not (tmp_path / "new").exists()
    open_run_folder(tmp_path, CONFIG).append_metrics({"a": 1})
    with pytest.raises(InputError, match="another run"):
        check_run_folder(tmp_path, CONFIG | {"seeds": 8})
    assert check_run_folder(tmp_path, CONFIG)["seeds"] == 4


def test_metrics_read_and_replaced(tmp_path):
    run = open_run_folder(tmp_path, CONFIG)
    assert run.read_metrics() == []
    run.append_metrics({"a": 1}, {"a": 2})
    with open(run.file("metrics.jsonl"), "a") as stream:
        stream.write("\0\0\n3\n")
    assert run.read_metrics() == [{"a": 1}, {"a": 2}]
    run.replace_metrics([{"a": 2}])
    assert _lines(run) == [{"a": 2}]


def test_settings_hold_what_was_given_what_it_came_to_and_the_files(tmp_path):
    file = tmp_path / "fleet.csv"
    file.write_bytes(b"abc")

    @dataclasses.dataclass(frozen=True)
    class Inner:
        seeds: int = 2

    @dataclasses.dataclass(frozen=True)
    class Config:
        fleet: str = "edge6"
        limit_s: float | None = None
        cases: Inner = Inner()

    digest = hashlib.sha256(b"abc").hexdigest()
    files = {"fleet": file, "trace": None, "log": [file, file]}
    assert settings_of("evaluate", Config(), files=files, flat=("cases",), limit_s=0.07) == {
        "launcher": "evaluate",
        "fleet": "edge6",
        "limit_s": 0.07,
        "seeds": 2,
        "fleet_sha256": digest,
        "trace_sha256": None,
        "log_sha256": [digest, digest],
    }
    assert settings_of("train", {"seed": 1}) == {"launcher": "train", "seed": 1}
