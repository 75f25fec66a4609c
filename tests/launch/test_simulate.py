"""``launch.simulate`` end to end: records as the reference has them, a summary that follows, whole files."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from qos_jax.evaluation.run_config import SingleRunConfig
from qos_jax.simulation import records
from qos_jax.simulation.metrics import METRICS
from qos_jax.simulation.world_config import WorldConfig
from qos_jax.workload import read_fleet
from tests.launch import golden
from tests.serving.replay import SHARED_MEMORY

TOLERANCE = 1e-4
FLEET = golden.FOLDER / "fleet.csv"
FIGURES = ("ttft_s", "latency_s", "latency_per_token_s", "quality", "qos")


def arguments(out: Path, **flags: object) -> list[str]:
    given = {
        "fleet": FLEET,
        "requests": golden.FOLDER / "requests.csv",
        "policy": "assigned",
        "latency_limit_s": golden.LIMIT_S,
        "plots": False,
        "out": out,
    }
    return [f"--{name}={value}" for name, value in (given | flags).items()]


def assert_same_records(actual: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """Equal but for the figures, which may be ``TOLERANCE`` apart."""
    assert len(actual) == len(expected)
    for mine, wanted in zip(actual, expected, strict=True):
        where = f"{mine} is not {wanted}"
        for name, value in wanted.items():
            if name in FIGURES and value:
                assert float(mine[name]) == pytest.approx(float(value), rel=TOLERANCE), where
            else:
                assert mine[name] == value, where


@pytest.mark.parametrize("scheduler", SHARED_MEMORY)
def test_golden(launch, tmp_path, scheduler):
    ended = launch("launch.simulate", *arguments(tmp_path / "run", scheduler=scheduler))
    assert ended.code == 0, ended.err
    expected = golden.read_records(golden.FOLDER / f"records_{scheduler}.csv")
    assert_same_records(golden.read_records(tmp_path / "run" / "records.csv"), expected)
    # What is stored is what the reference says, and holds every fate.
    assert_same_records(
        golden.reference_records(FLEET, golden.FOLDER / "requests.csv", scheduler, golden.LIMIT_S), expected
    )
    assert {row["status"] for row in expected} | {"failed"} == set(records.STATUS_NAMES)
    assert sum(int(row["preemptions"]) for row in expected) >= 3


def write_requests(file: Path, seed: int, num_requests: int) -> None:
    """Write requests that fill the queues and the memory of the golden fleet."""
    rng = np.random.default_rng(seed)
    output, quality = rng.geometric(0.07, (2, num_requests)), rng.random((2, num_requests))
    columns = {
        "arrival_s": np.cumsum(rng.exponential(rng.uniform(0.1, 0.5), num_requests)).round(6),
        "prompt_tokens": rng.integers(1, 36, num_requests),
        "output_tokens.large": np.minimum(output[0], 45),
        "output_tokens.small": np.minimum(output[1], 45),
        "quality.large": quality[0].round(3),
        "quality.small": quality[1].round(3),
        "predicted_output_tokens": rng.uniform(1, 30, num_requests).round(2),
        "predicted_quality": rng.random(num_requests).round(3),
        "expert": rng.choice(["large", "small", "drop"], num_requests, p=[0.6, 0.35, 0.05]),
    }
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))


@pytest.mark.parametrize(("scheduler", "seed"), list(itertools.product(SHARED_MEMORY, range(2))))
def test_assigned_is_the_reference(launch, tmp_path, scheduler, seed):
    requests = tmp_path / "requests.csv"
    write_requests(requests, seed, 700)  # more than a chunk of the simulator
    ended = launch("launch.simulate", *arguments(tmp_path / "run", scheduler=scheduler, requests=requests))
    assert ended.code == 0, ended.err
    mine = golden.read_records(tmp_path / "run" / "records.csv")
    assert_same_records(mine, golden.reference_records(FLEET, requests, scheduler, golden.LIMIT_S))
    status = [row["status"] for row in mine]
    assert min(status.count(name) for name in records.STATUS_NAMES if name != "failed") >= 3
    assert sum(int(row["preemptions"]) for row in mine) > 20


def test_slots_of_llama_cpp_cut_and_refuse_but_never_preempt(launch, tmp_path):
    requests, fleet = tmp_path / "requests.csv", tmp_path / "fleet.csv"
    write_requests(requests, 0, 500)
    # 96 / 3 = 32 tokens a slot of the large one; the small one's own limit is below its 40 / 2.
    comment, header, large, small = FLEET.read_text().splitlines()
    rows = [f"{header},context_limit_tokens", large.replace(",80,", ",96,") + ",", f"{small},19"]
    fleet.write_text("\n".join([comment, *rows]) + "\n")
    flags = arguments(tmp_path / "run", scheduler="llama_cpp", requests=requests, fleet=fleet)
    ended = launch("launch.simulate", *flags)
    assert ended.code == 0, ended.err
    mine = golden.read_records(tmp_path / "run" / "records.csv")
    expected = golden.reference_records(fleet, requests, "llama_cpp", golden.LIMIT_S)
    for row, wanted in zip(mine, expected, strict=True):
        if row["status"].startswith("rejected"):  # it says how long it would have been
            wanted["output_tokens"] = row["output_tokens"]
    assert_same_records(mine, expected)
    assert {row["preemptions"] for row in mine} == {"0"}
    total = {"large": [], "small": []}
    for row in mine:
        if row["status"] == "completed":
            total[row["expert"]].append(int(row["prompt_tokens"]) + int(row["output_tokens"]))
        elif row["status"] == "rejected_too_long":
            assert int(row["prompt_tokens"]) >= {"large": 32, "small": 19}[row["expert"]]
    for name, limit in (("large", 32), ("small", 19)):
        assert max(total[name]) == limit
        assert total[name].count(limit) > 10  # cut, nearly all
    full = sum(row["status"] == "rejected" for row in mine)
    assert (
        f"note: {full:,} requests met a full queue, and a llama.cpp server would have let them" in ended.out
    )


def test_limits_that_are_set_count_and_have_columns(launch, tmp_path):
    limits = {"ttft_limit_s": 0.3, "tpot_limit_s": 0.05, "e2e_limit_s": 1.5}
    ended = launch("launch.simulate", *arguments(tmp_path / "run", **limits))
    assert ended.code == 0, ended.err
    with open(tmp_path / "run" / "records.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary.items() >= limits.items()
    for name, column in (("ttft", "ttft_s"), ("e2e", "latency_s")):
        limit_s = limits[f"{name}_limit_s"]
        kept = [row["status"] == "completed" and float(row[column]) <= limit_s for row in rows]
        assert [row[f"within_{name}"] == "1" for row in rows] == kept
        assert 0 < np.mean(kept) < 1
        assert summary[f"share_within_{name}"] == pytest.approx(np.mean(kept))
    within = [f"within_{name}" for name in ("latency", "ttft", "tpot", "e2e")]
    for row in rows:
        kept = all(row[column] == "1" for column in within)
        assert float(row["qos"]) == (float(row["quality"]) if kept else 0.0)
    assert all(text in ended.out for text in ("TTFT <= 0.3 s", "within all limits", "within TPOT"))


def test_summary_follows_from_the_records(launch, tmp_path):
    ended = launch("launch.simulate", *arguments(tmp_path / "run", seed=7))
    rows = golden.read_records(tmp_path / "run" / "records.csv")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert METRICS.keys() <= summary.keys()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["seed"] == 7
    fields = [*dataclasses.fields(SingleRunConfig), *dataclasses.fields(WorldConfig)]
    given = {field.name: config[field.name] for field in fields if field.name != "world"}
    assert summary.items() >= given.items()

    done = [row for row in rows if row["status"] == "completed"]
    latency_s = np.array([float(row["latency_s"]) for row in done])
    output = np.array([int(row["output_tokens"]) for row in done])
    per_token_s = latency_s / output
    ttft_s = np.array([float(row["ttft_s"]) for row in done])
    rtt_s = np.array([{"large": 0.005, "small": 0.01}[row["expert"]] for row in done])
    quality = np.array([float(row["quality"]) for row in done])
    more = output > 1
    tpot_s = (latency_s - rtt_s - ttft_s)[more] / (output[more] - 1)
    in_limit = per_token_s <= golden.LIMIT_S
    expected = {
        "arrived": len(rows),
        "completed": len(done),
        "rejected": sum(row["status"] == "rejected" for row in rows),
        "rejected_too_long": sum(row["status"] == "rejected_too_long" for row in rows),
        "dropped": sum(row["status"] == "dropped" for row in rows),
        "failed": 0,
        "average_qos": quality[in_limit].sum() / len(rows),
        "share_within_limit": in_limit.sum() / len(rows),
        "mean_quality": quality.mean(),
        "ttft_mean_s": ttft_s.mean(),
        "tpot_p95_s": np.quantile(tpot_s, 0.95),
        "e2e_latency_p50_s": np.quantile(latency_s, 0.5),
        "latency_per_token_p99_s": np.quantile(per_token_s, 0.99),
        "preemptions_per_request": sum(int(row["preemptions"]) for row in rows) / len(rows),
        "makespan_s": max(float(row["arrival_s"]) + float(row["latency_s"] or 0) for row in rows),
    }
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value, rel=1e-5), name
    assert np.mean([float(row["qos"]) for row in rows]) == pytest.approx(summary["average_qos"], rel=1e-6)
    for expert in summary["experts"]:
        mine = [row["status"] for row in rows if row["expert"] == expert["expert"]]
        assert expert["routed"] == len(mine)
        assert expert["rejected"] == mine.count("rejected")
        assert expert["rejected_too_long"] == mine.count("rejected_too_long")
        assert 0 < expert["busy_share"] <= 1
    assert f"{summary['average_qos']:.4f}" in ended.out
    note = f"note: prompt + output of {summary['rejected_too_long']:,} requests exceed kv_capacity_tokens"
    assert note in ended.out
    assert f"{len(rows):,}/{len(rows):,} requests" in ended.err


def test_same_seed_same_bytes(launch, tmp_path):
    """The chance of a random router comes from the seed alone, whether or not the plots are drawn."""
    for name, seed, plot in (("a", 3, False), ("b", 3, True), ("c", 4, False)):
        flags = arguments(tmp_path / name, policy="random", seed=seed, plots=plot)
        assert launch("launch.simulate", *flags).code == 0
    a, b, c = ((tmp_path / name / "records.csv").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    a, b = ((tmp_path / name / "summary.json").read_bytes() for name in "ab")
    assert a == b
    for plot in ("timeline.png", "latency_cdf.png"):
        assert (tmp_path / "b" / "plots" / plot).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "a" / "plots").exists()


def test_again_and_overwrite(launch, tmp_path):
    """The same run replaces its results; another one asks first."""
    assert launch("launch.simulate", *arguments(tmp_path / "run")).code == 0
    first = (tmp_path / "run" / "records.csv").read_bytes()
    assert launch("launch.simulate", *arguments(tmp_path / "run")).code == 0
    assert (tmp_path / "run" / "records.csv").read_bytes() == first
    other = arguments(tmp_path / "run", latency_limit_s=0.02)
    refused = launch("launch.simulate", *other)
    assert refused.code == 2
    assert "latency_limit_s" in refused.err
    assert (tmp_path / "run" / "records.csv").read_bytes() == first
    assert launch("launch.simulate", *other, "--overwrite").code == 0
    assert (tmp_path / "run" / "records.csv").read_bytes() != first


def test_greedy_may_drop(launch, tmp_path):
    """Where a request would push others past the limit, a greedy router drops it if it may."""
    requests = tmp_path / "requests.csv"
    write_requests(requests, 0, 700)
    dropped = []
    for allow in (False, True):
        flags = arguments(
            tmp_path / str(allow), policy="projected_greedy", requests=requests, allow_drop=allow
        )
        ended = launch("launch.simulate", *flags)
        assert ended.code == 0, ended.err
        dropped.append(json.loads((tmp_path / str(allow) / "summary.json").read_text())["dropped"])
    assert dropped[0] == 0
    assert dropped[1] > 0


def test_truth_for_want_of_predictions_is_said(launch, tmp_path):
    requests = tmp_path / "requests.csv"
    requests.write_text("arrival_s,prompt_tokens,output_tokens,quality\n0,10,5,0.5\n1,10,5,1\n")
    ended = launch("launch.simulate", *arguments(tmp_path / "run", policy="best_quality", requests=requests))
    assert ended.code == 0
    assert "no column predicted_quality" in ended.err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["completed"] == 2


def test_without_matplotlib(launch, tmp_path, monkeypatch):
    """Plots are drawn where they can be; who asks for them in vain is told before anything runs."""
    monkeypatch.setattr("qos_jax.runs.plot_style.plots_available", lambda: False)
    flags = [flag for flag in arguments(tmp_path / "run") if not flag.startswith("--plots")]
    ended = launch("launch.simulate", *flags)
    assert ended.code == 0
    assert "matplotlib is not installed" in ended.err
    refused = launch("launch.simulate", *flags, "--plots")
    assert refused.code == 2
    assert "pip install" in refused.err


@pytest.mark.parametrize("stage", ["simulating", "writing"])
def test_interrupted_in_process(launch, tmp_path, monkeypatch, stage):
    """Wherever Ctrl-C strikes, no file is left half-written."""

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    module, name = ("simulate", "arriving_of") if stage == "simulating" else ("records", "_csv_columns")
    # The module by its full name: the room's own ``simulate`` is the function.
    monkeypatch.setattr(importlib.import_module(f"qos_jax.simulation.{module}"), name, interrupt)
    ended = launch("launch.simulate", *arguments(tmp_path / "run"))
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert "stopped" in ended.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_server_that_is_down_fails_what_it_took(launch, tmp_path):
    """Nobody notices: health checks come too late, and requests hang."""
    expert = read_fleet(FLEET).names[0]
    flags = {"views": "live", "fault": f"{expert}:0:1e6:down", "detection_delay_s": 1e6}
    flags |= {"failure_delay_s": "inf", "policy": "round_robin"}
    ended = launch("launch.simulate", *arguments(tmp_path / "run", **flags))
    assert ended.code == 0, ended.err
    assert "round_robin@live" in ended.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    down, *others = summary["experts"]
    assert down["failed"] == down["routed"] - down["rejected"] - down["rejected_too_long"] > 0
    assert all(each["failed"] == 0 and each["completed"] > 0 for each in others)
    assert summary["views"] == json.loads((tmp_path / "run" / "config.json").read_text())["views"] == ["live"]


SHARED = {
    "csv": "arrival_s,prompt_tokens,output_tokens,quality,prefix_group,prefix_tokens\n"
    + "\n".join(f"{i},{36 + i % 4},4,1,{i % 2},32" for i in range(20)),
    # Mooncake's: blocks of 32 tokens by their hashes.
    "jsonl": "\n".join(
        f'{{"timestamp": {1000 * i}, "input_length": {36 + i % 4}, "output_length": 4, '
        f'"hash_ids": [{i % 2}, {9 + i}]}}'
        for i in range(20)
    ),
}


@pytest.mark.parametrize("ending", SHARED)
def test_a_cache_spares_prefill_and_says_how_much(launch, tmp_path, ending):
    requests = tmp_path / f"shared.{ending}"
    requests.write_text(SHARED[ending])
    flags = {"requests": str(requests), "policy": "round_robin", "scheduler": "chunked_prefill"}
    ended = launch("launch.simulate", *arguments(tmp_path / "run", **flags, prefix_entries=4))
    assert ended.code == 0, ended.err
    assert "cached prompt tokens" in ended.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    with open(tmp_path / "run" / "records.csv") as stream:
        rows = list(csv.DictReader(stream))
    cached = sum(int(row["cached_tokens"]) for row in rows)
    assert cached == summary["cached_tokens"] == sum(each["cached_tokens"] for each in summary["experts"]) > 0
    prompt = sum(int(row["prompt_tokens"]) for row in rows if row["status"] == "completed")
    assert summary["hit_rate"] == pytest.approx(cached / prompt)
    assert all(int(row["cached_tokens"]) in (0, 32) for row in rows)
    assert sum(each["prefill_saved_s"] for each in summary["experts"]) > 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"prefix_entries": -1, "views": "live"}, "field 'prefix_entries'"),
        ({"views": "live,twin"}, "give one, such as twin"),
        ({"outage_per_s": 0.1, "retry": True}, "'retry'"),
        ({"fault": "nobody:1:2:down"}, "'nobody' is unknown"),
    ],
    ids=str,
)
def test_a_world_that_one_run_cannot_have(launch, tmp_path, flags, says):
    refused = launch("launch.simulate", *arguments(tmp_path / "run", **flags))
    assert refused.code == 2
    assert says in refused.err
    assert not (tmp_path / "run").exists()
