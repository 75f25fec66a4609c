"""``launch.calibrate`` end to end on logs with known coefficients."""

import csv
import functools
import json

import numpy as np
import pytest

from qos_jax.profiling import COEFFICIENTS, SearchConfig
from qos_jax.workload import fleet_path, read_fleet
from tests.profiling.logs import LIMITS, TRUE, iterations, requests

ROW = {"expert": "mine", "kv_capacity_tokens": LIMITS.kv_capacity_tokens, "max_running": LIMITS.max_running}
ROW |= {"max_batched_tokens": LIMITS.max_batched_tokens, "max_waiting": 32}
ROOFLINE = {
    "expert": "guess",
    "parameters": "7.5e9",
    "layers": 32,
    "hidden_size": 4096,
    "kv_heads": 8,
    "head_dim": 128,
    "bandwidth_gb_per_s": 1008,
    "tflop_per_s": 165,
    "memory_gb": 25,
}


def arguments(*extra, **flags):
    return [*(f"--{name}={value}" for name, value in flags.items()), *extra]


def iteration_file(path, **changes):
    log = iterations(rows=120, **changes)
    names = [name for name in vars(log) if name not in ("file", "left_out", "notes")]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows(zip(*(getattr(log, name) for name in names), strict=True))
    return path


def request_file(path, **changes):
    log = requests(count=30, **changes)
    with path.open("w") as stream:
        for row in range(log.num_requests):
            names = [name for name in vars(log) if name not in ("file", "start_s", "left_out", "notes")]
            stream.write(
                json.dumps({name: getattr(log, name)[row].item() for name in names} | {"id": 7}) + "\n"
            )
        stream.write(json.dumps({"arrival_s": 1.0, "prompt_tokens": 9, "output_tokens": 0}) + "\n")
    return path


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_iterations_to_a_fleet(launch, tmp_path):
    log, out, fleet = iteration_file(tmp_path / "log.csv"), tmp_path / "out", tmp_path / "fleet.csv"
    fleet.write_text(fleet_path("edge6").read_text())
    flags = ROW | {"iterations": log, "test_share": 0.5, "append_to": fleet, "out": out}
    ended = launch("launch.calibrate", *arguments("--plots", **flags))
    assert ended.code == 0, ended.err
    assert files_of(out) == {
        "config.json", "profile.json", "profile.csv", "plots/predicted_against_measured.png"
    }  # fmt: skip
    summary = json.loads((out / "profile.json").read_text())
    assert summary["source"] == "iterations"
    assert list(summary["coefficients"]) == list(COEFFICIENTS)
    for name, true in zip(COEFFICIENTS, TRUE, strict=True):
        found = summary["coefficients"][name]
        assert abs(found["value"] - true) < 5 * found["standard_error"]
        assert found["ci_low"] <= found["value"] <= found["ci_high"]
    assert summary["test"]["rows"] == 60
    for quality in (*summary["quality"].values(), *summary["test"]["quality"].values()):
        assert quality["r2"] > 0.98
        assert quality["mean_relative_error"] < quality["worst_relative_error"] < 0.2
    assert "decode_base_s" in ended.out
    assert "held out" in ended.out
    alone, joined = read_fleet(out / "profile.csv"), read_fleet(fleet)
    assert alone.names == ("mine",)
    assert joined.names[-1] == "mine"
    np.testing.assert_array_equal(joined.profile.decode_base_s[-1:], alone.profile.decode_base_s)
    again = launch("launch.calibrate", *arguments("--plots", **(flags | {"expert": "other"})))
    assert again.code == 2  # the folder holds another run
    assert read_fleet(fleet).num_experts == 7


def test_the_same_log_gives_the_same_bytes(launch, tmp_path):
    log = iteration_file(tmp_path / "log.csv")
    for out in ("a", "b"):
        flags = ROW | {"iterations": log, "test_share": 0.3, "out": tmp_path / out}
        assert launch("launch.calibrate", *arguments("--noplots", **flags)).code == 0
    for name in ("profile.json", "profile.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.fixture
def quick_search(monkeypatch):
    quick = functools.partial(SearchConfig, starts=3, evaluations=4, recoveries=1)
    monkeypatch.setattr("qos_jax.profiling.profile_plan.SearchConfig", quick)


def test_a_server_of_slots_with_a_context_limit(launch, tmp_path, quick_search):
    """The limits go into the replay and into the fleet's row; all coefficients are given."""
    log, out = request_file(tmp_path / "log.jsonl"), tmp_path / "out"
    given = [f"--fix={name}={value}" for name, value in zip(COEFFICIENTS, TRUE, strict=True)]
    flags = ROW | {"requests": log, "scheduler": "llama_cpp", "context_limit_tokens": 1500, "out": out}
    flags["kv_capacity_tokens"] = 2000 * LIMITS.max_running
    ended = launch("launch.calibrate", *arguments("--noplots", *given, **flags))
    assert ended.code == 0, ended.err
    summary = json.loads((out / "profile.json").read_text())
    assert summary["notes"].partition(" by replay, ")[2].startswith("llama_cpp")
    # The log is of the same server without slots, whose cache was never full.
    assert summary["quality"]["latency"]["worst_relative_error"] < 1e-6
    np.testing.assert_array_equal(read_fleet(out / "profile.csv").profile.context_limit_tokens, [1500])
    flags |= {"kv_capacity_tokens": 50 * LIMITS.max_running, "out": tmp_path / "other"}
    ended = launch("launch.calibrate", *arguments("--noplots", *given, **flags))
    assert ended.code == 2
    assert "field 'kv_capacity_tokens': 50 tokens of a slot (/ max_running) hold no request of" in ended.err


def test_requests_by_replay_and_resumed(launch, tmp_path, quick_search):
    log, out = request_file(tmp_path / "log.jsonl", noise=0.03), tmp_path / "out"
    given = [f"--fix=prefill_per_token_sq_s={TRUE[2]}", f"--fix=decode_per_seq_s={TRUE[4]}"]
    flags = ROW | {"requests": log, "test_share": 0.4, "out": out}
    ended = launch("launch.calibrate", *arguments("--plots", *given, **flags))
    assert ended.code == 0, ended.err
    notes = [line for line in ended.err.splitlines() if line.startswith("note: ")]
    assert [note.partition(":")[2].strip() for note in notes] == [
        "what requests aborted before their first token loaded the server with is not known",
        "left out of 31 requests: 1 aborted",
        "columns not read: id",
    ]
    summary = json.loads((out / "profile.json").read_text())
    assert (summary["rows"], summary["left_out"]) == (30, {"aborted": 1})
    assert summary["source"] == "requests"
    assert "given, not fitted: prefill_per_token_sq_s, decode_per_seq_s" in summary["notes"]
    assert summary["coefficients"]["decode_per_seq_s"]["confidence"] == "fixed"
    assert summary["coefficients"]["decode_base_s"]["value"] == pytest.approx(TRUE[3], rel=0.1)
    assert set(summary["quality"]) == {"ttft", "tpot", "latency"}
    assert all(abs(quality["mean_ratio"] - 1) < 0.05 for quality in summary["quality"].values())
    assert summary["test"]["rows"] == 12
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["all"] * 4 + ["test"] * 4
    # Stopped before its end, it goes on with what is done.
    whole = (out / "profile.json").read_bytes()
    (out / "profile.json").unlink()
    (out / "metrics.jsonl").write_text("\n".join(lines[:6]) + "\n" + lines[6][:20])
    resumed = launch("launch.calibrate", *arguments("--plots", "--resume", *given, **flags))
    assert resumed.code == 0, resumed.err
    assert (out / "profile.json").read_bytes() == whole


def test_a_roofline_says_that_it_is_one(launch, tmp_path):
    out = tmp_path / "out"
    ended = launch("launch.calibrate", *arguments("--roofline", "--noplots", **(ROOFLINE | {"out": out})))
    assert ended.code == 0, ended.err
    summary = json.loads((out / "profile.json").read_text())
    assert summary["source"] == "roofline"
    assert (out / "profile.csv").read_text().startswith("# guess: ROOFLINE, NOT MEASURED: 7.5 B parameters")
    assert summary["coefficients"]["decode_base_s"]["standard_error"] is None
    assert {found["confidence"] for found in summary["coefficients"].values()} == {"assumed"}
    assert read_fleet(out / "profile.csv").profile.kv_capacity_tokens[0] == int((25e9 * 0.9 - 15e9) / 131_072)
    assert "NOT MEASURED" in ended.out


def test_another_log_is_predicted_and_a_poor_fit_ends_with_4(launch, tmp_path, quick_search):
    fitted, other = request_file(tmp_path / "a.jsonl"), request_file(tmp_path / "b.jsonl", seed=1)
    logs = [f"--requests={fitted}", f"--predict={other}"]
    flags = ROW | {"ttft_limit_s": 0.5, "tpot_limit_s": 0.03, "out": tmp_path / "good"}
    good = launch("launch.calibrate", *logs, *arguments("--plots", **flags))
    assert good.code == 0, good.err
    summary = json.loads((tmp_path / "good" / "profile.json").read_text())
    (found,) = summary["predicted"]
    assert found["file"] == str(other)
    for times in found["times"].values():
        for statistic, measured in times["measured"].items():
            assert times["predicted"][statistic] == pytest.approx(measured, rel=2e-3)
    assert "share_within" in found["times"]["ttft"]["measured"]
    assert "measured" in good.out
    assert (tmp_path / "good" / "plots" / "predicted_against_measured.png").exists()
    # A server of two slots cannot have served these: the log says how many decoded at once.
    flags = ROW | {"max_running": 2, "requests": fitted, "out": tmp_path / "poor"}
    poor = launch("launch.calibrate", *arguments("--noplots", **flags))
    assert poor.code == 4
    assert "requests decoded at once, more than max_running: give --max_running=" in poor.err
    assert "warning: " in poor.err
    assert "check --max_running" in poor.err
    assert launch("launch.calibrate", *arguments("--noplots", "--resume", "--accept", **flags)).code == 0
