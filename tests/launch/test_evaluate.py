"""``launch.evaluate`` end to end: tables that follow from the metrics, resumption, Ctrl-C."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qos_jax.simulation.metrics import METRICS, PREFIX_METRICS, SESSION_METRICS
from qos_jax.workload import RequestTable, fleet_path, read_fleet, write_table
from tests.launch.trained import network, save_run

ROOT = Path(__file__).parents[2]
SMALL = {
    "policies": "random,shortest_queue,projected_greedy,upper_bound",
    "workloads": "poisson,azure_conv",
    "loads": "0.5,1.2",
    "seeds": 2,
    "num_requests": 40,
    "plots": False,
}
TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},{100 + i},{20 + i}\n" for i in range(4))


def arguments(out, **flags):
    return [f"--{name}={value}" for name, value in (SMALL | flags | {"out": out}).items()]


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """An uninterrupted run with plots, and what it said."""
    out = tmp_path_factory.mktemp("evaluate") / "run"
    ended = launch("launch.evaluate", *arguments(out, plots=True))
    assert ended.code == 0, ended.err
    return out, ended


def metrics_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def files_of(out):
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_what_it_leaves(whole):
    out, ended = whole
    rates = sorted({line["arrival_rate_per_s"] for line in metrics_of(out) if line["workload"] == "poisson"})
    shown = [f"poisson_{rates[1]:.3g}", "azure_conv_5.55"]
    plots = {
        f"plots/{kind}_{case}.png" for kind in ("latency_cdf", "expert_shares", "timeline") for case in shown
    }
    records = {f"records/{name}.npz" for name in SMALL["policies"].split(",")[:-1]}
    tables = {"config.json", "metrics.jsonl", "comparison.csv", "comparison.json"}
    assert files_of(out) == tables | records | plots | {"plots/qos_vs_rate.png"}
    config = json.loads((out / "config.json").read_text())
    assert config["policies"] == SMALL["policies"].split(",")
    assert config["loads"] == [0.5, 1.2]
    assert config["latency_limit_s"] == 0.07
    assert f"{3 * 3 * 2 * 40}/{3 * 3 * 2 * 40} requests" in ended.err
    assert ended.out.count("projected_greedy") == 4  # three cases, and their mean
    assert "\nmean of 3 cases, L = 0.07 s/token, 2 seeds\n" in ended.out
    assert str(out) in ended.out


def test_the_table_follows_from_the_metrics(whole):
    out, ended = whole
    cases: dict = {}
    for line in metrics_of(out):
        case = cases.setdefault((line["workload"], line["arrival_rate_per_s"]), {})
        case[line["policy"]] = {k: np.array(v, float) for k, v in line["metrics"].items()}
    with open(out / "comparison.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * 3 * len(METRICS)
    for row in rows:
        case = cases[row["workload"], float(row["arrival_rate_per_s"])]
        mine, base = (case[name][row["metric"]] for name in (row["policy"], "shortest_queue"))
        assert row["n"] == "2"
        assert row["unit"] == METRICS[row["metric"]].unit
        for column, expected in (("mean", mine.mean()), ("diff", (mine - base).mean())):
            if np.isnan(expected):
                assert row[column] == ""
            else:
                assert float(row[column]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        if row["ci_low"]:
            assert float(row["ci_low"]) <= float(row["mean"]) + 1e-12
            assert float(row["mean"]) <= float(row["ci_high"]) + 1e-12
        if row["metric"] == "average_qos":
            assert f"{float(row['mean']):.3f}" in ended.out
    assert json.loads((out / "comparison.json").read_text())["baseline"] == "shortest_queue"


def test_sessions_are_compared_and_resumed(launch, tmp_path):
    flags = {"workloads": "sessions", "loads": 0.5, "policies": "session_affinity,upper_bound"}
    flags |= {"system_prompts": 2, "think_s": 2.0, "replicas": True, "prefix_entries": 4}
    flags |= {"scheduler": "chunked_prefill", "baseline": "session_affinity", "plots": True}
    rows = [row for row in fleet_path("edge6").read_text().splitlines() if row[0] != "#"]
    (tmp_path / "two.csv").write_text("\n".join(rows[:3]).replace(",16,16,", ",4,4,") + "\n")
    flags |= {"fleet": tmp_path / "two.csv", "latency_limit_s": 0.07}
    ended = launch("launch.evaluate", *arguments(tmp_path / "run", **flags))
    assert ended.code == 0, ended.err
    (line, _) = metrics_of(tmp_path / "run")
    assert line["metrics"].keys() == METRICS.keys() | SESSION_METRICS.keys() | PREFIX_METRICS.keys()
    assert min(line["metrics"]["turns_per_session_hour"]) > 0
    assert f"plots/prefix_hits_sessions_{line['arrival_rate_per_s']:.3g}.png" in files_of(tmp_path / "run")
    with open(tmp_path / "run/comparison.csv", newline="") as stream:
        assert {row["metric"] for row in csv.DictReader(stream)} == line["metrics"].keys()
    before = {name: (tmp_path / "run" / name).read_bytes() for name in files_of(tmp_path / "run")}
    # What the policy did is read from its records, arrivals included.
    again = launch("launch.evaluate", *arguments(tmp_path / "run", **flags), "--resume")
    assert again.code == 0, again.err
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in files_of(tmp_path / "run")}


def test_the_bound_holds_for_every_seed(whole):
    bounds = {}
    for line in metrics_of(whole[0]):
        if line["policy"] == "upper_bound":
            bounds[line["workload"], line["arrival_rate_per_s"]] = line["metrics"]["average_qos"]
    for line in metrics_of(whole[0]):
        qos, bound = line["metrics"]["average_qos"], bounds[line["workload"], line["arrival_rate_per_s"]]
        assert np.all(np.array(qos) <= np.array(bound) + 1e-6)
        assert line["metrics"]["arrived"] == [40, 40]


def test_same_seed_same_bytes(launch, whole, tmp_path):
    assert launch("launch.evaluate", *arguments(tmp_path / "same")).code == 0
    assert (tmp_path / "same/comparison.csv").read_bytes() == (whole[0] / "comparison.csv").read_bytes()
    assert not (tmp_path / "same/plots").exists()
    assert launch("launch.evaluate", *arguments(tmp_path / "other", seed=1)).code == 0
    assert (tmp_path / "other/comparison.csv").read_bytes() != (whole[0] / "comparison.csv").read_bytes()


def test_a_trace_at_its_rate_and_faster(launch, tmp_path):
    trace = tmp_path / "mine.csv"
    trace.write_text(TRACE)
    flags = {"workloads": "trace", "trace": trace, "policies": "shortest_queue"}
    spans = []
    for name, more in (("native", {}), ("fast", {"arrival_rates": 4}), ("late", {"trace_start_s": 2})):
        ended = launch("launch.evaluate", *arguments(tmp_path / name, **flags, **more))
        assert ended.code == 0, ended.err
        (line,) = metrics_of(tmp_path / name)
        spans.append((line["workload"], line["arrival_rate_per_s"], line["metrics"]["arrived"]))
    assert spans == [("trace", 1.0, [4, 4]), ("trace", 4.0, [4, 4]), ("trace", 1.0, [2, 2])]
    # The file's content is part of what a run is.
    trace.write_text(TRACE.replace("23\n", "24\n"))
    refused = launch("launch.evaluate", *arguments(tmp_path / "native", **flags), "--resume")
    assert refused.code == 2
    assert "trace_sha256" in refused.err


def test_a_table_of_requests(launch, tmp_path):
    """Its rows, and its split and content, are part of what a run is."""
    names = read_fleet(fleet_path("edge6")).names
    shape = (4, 7)
    rows = RequestTable(
        prompt_tokens=np.full(4, 50, np.int32),
        quality=np.repeat(np.array([[0.25], [0.5], [0.25], [0.5]], np.float32), 7, axis=1),
        output_tokens=np.full(shape, 9, np.int32),
        predicted_quality=np.full(shape, 0.5, np.float32),
        predicted_output_tokens=np.full(shape, 9.0, np.float32),
    )
    table, split = tmp_path / "mine.npz", [0, 2, 0, 2]
    write_table(table, ("another", *names[::-1]), rows, split=split)
    flags = {
        "workloads": "poisson",
        "loads": 0.1,
        "policies": "shortest_queue",
        "table": table,
        "table_split": "test",
    }
    ended = launch("launch.evaluate", *arguments(tmp_path / "run", **flags))
    assert ended.code == 0, ended.err
    (line,) = metrics_of(tmp_path / "run")
    assert line["metrics"]["average_qos"] == [0.5, 0.5]
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["table_sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert config["table_split"] == "test"
    write_table(table, ("another", *names), rows, split=split)
    refused = launch("launch.evaluate", *arguments(tmp_path / "run", **flags), "--resume")
    assert refused.code == 2
    assert "table_sha256" in refused.err


def test_learned_routers_in_the_table(launch, whole, tmp_path):
    """Weights of zero choose as load_aware_greedy does; the weights are part of what a run is.

    Of two training runs of one name, the text has one line and the differences are to both together.
    """
    trained = save_run(tmp_path / "trained", network(), step=7, average_qos=0.5)
    flags = {"policies": "load_aware_greedy", "baseline": "ours"}
    again = save_run(tmp_path / "again", network(), step=7, average_qos=0.25)
    ours = (f"{trained}/checkpoints", again)
    more = [f"--checkpoint={trained}", *(f"--checkpoint=ours={folder}" for folder in ours)]
    out = tmp_path / "run"
    ended = launch("launch.evaluate", *arguments(out, **flags), *more)
    assert ended.code == 0, ended.err
    found = {(line["policy"], line["workload"], line["arrival_rate_per_s"]): line for line in metrics_of(out)}
    expected = {key: line for key, line in found.items() if key[0] == "load_aware_greedy"}
    assert len(found) == 4 * len(expected) == 12
    for name in ("trained", "ours#1", "ours#2"):
        for (_, *case), line in expected.items():
            # The same decisions; another program may round a mean otherwise.
            assert found[name, *case]["metrics"] == {
                metric: pytest.approx(values, rel=1e-6, nan_ok=True)
                for metric, values in line["metrics"].items()
            }
        assert f"records/{name}.npz" in files_of(out)
    assert ended.out.count("\ntrained ") == ended.out.count("\nours ") == 4  # three cases, and their mean
    assert ended.out.count("\nours: mean of 2 training runs, ") == 4
    assert "ours#" not in ended.out
    config = json.loads((out / "config.json").read_text())
    assert config["policies"] == ["load_aware_greedy"]
    assert list(config["checkpoint"]) == ["trained", "ours#1", "ours#2"]
    assert config["checkpoint"]["ours#1"]["step"] == 7
    again = launch("launch.evaluate", *arguments(out, **flags), *more, "--resume")
    assert again.code == 0, again.err
    assert again.out == ended.out
    save_run(trained, network(), step=8, average_qos=0.75)
    refused = launch("launch.evaluate", *arguments(out, **flags), *more, "--resume")
    assert refused.code == 2
    assert "differs in checkpoint)" in refused.err


def stopped_copy(whole, out, policies):
    """A folder as if only ``policies`` had been done, another half, when the process was killed."""
    shutil.copytree(whole, out)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["policy"] in policies]
    half = next(line for line in lines if json.loads(line)["policy"] not in policies)
    (out / "metrics.jsonl").write_text("".join([*kept, half, half[:99]]))
    for name in ("comparison.csv", "comparison.json", "plots/qos_vs_rate.png"):
        (out / name).unlink()
    (out / "records" / ".projected_greedy.npz.x1y2z3w4").write_bytes(b"half")
    return out


def test_resumed_after_a_kill(launch, whole, tmp_path, monkeypatch):
    """Only what was not complete is run again; the end is that of a run never stopped."""
    out = stopped_copy(whole[0], tmp_path / "run", {"projected_greedy", "upper_bound", "random"})
    import qos_jax.simulation.policy_runs as module

    ran, simulate = [], module.simulate

    def watched(config, router, *args, **kwargs):
        ran.append(router.name)
        return simulate(config, router, *args, **kwargs)

    monkeypatch.setattr(module, "simulate", watched)
    ended = launch("launch.evaluate", *arguments(out, plots=True), "--resume")
    assert ended.code == 0, ended.err
    assert ran == ["shortest_queue"]
    assert files_of(out) == files_of(whole[0])
    for name in ("comparison.csv", "comparison.json", "plots/expert_shares_azure_conv_5.55.png"):
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes()
    assert ended.out.replace(str(out), "") == whole[1].out.replace(str(whole[0]), "")
    # Without --resume all is run again.
    assert launch("launch.evaluate", *arguments(out)).code == 0
    assert sorted(ran[1:]) == ["projected_greedy", "random", "shortest_queue"]


def test_interrupted_in_process(launch, tmp_path, monkeypatch):
    """Nothing but the configuration is left, and it is in no other run's way."""
    import qos_jax.simulation.policy_runs as module

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "simulate", interrupt)
        ended = launch("launch.evaluate", *arguments(tmp_path / "run"))
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert files_of(tmp_path / "run") == {"config.json"}
    again = launch("launch.evaluate", *arguments(tmp_path / "run", policies="shortest_queue"))
    assert again.code == 0, again.err


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_and_resume(launch, tmp_path):
    """Stopped right after the first policy was done, while it ran others or drew plots."""
    out, flags = tmp_path / "run", {"workloads": "poisson", "policies": "random,shortest_queue"}
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.evaluate", *arguments(out, **flags, plots=True)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    try:
        until = time.monotonic() + 600  # on a busy machine, too
        while not (out / "metrics.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert (out / "metrics.jsonl").exists()
        process.send_signal(signal.SIGINT)
        said, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert said == ""
    assert "Traceback" not in err
    assert err.endswith("stopped; files already complete are kept\n")
    assert not [name for name in files_of(out) if Path(name).name.startswith(".")]
    assert len(metrics_of(out)) in (2, 4)  # whole policies
    for folder in (out, tmp_path / "whole"):
        ended = launch("launch.evaluate", *arguments(folder, **flags), "--resume")
        assert ended.code == 0, ended.err
    assert (out / "comparison.csv").read_bytes() == (tmp_path / "whole/comparison.csv").read_bytes()


def test_without_matplotlib(launch, tmp_path, monkeypatch):
    monkeypatch.setattr("qos_jax.runs.plot_style.plots_available", lambda: False)
    refused = launch("launch.evaluate", *arguments(tmp_path / "run", plots=True))
    assert refused.code == 2
    assert "pip install" in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["simulate", "evaluate", "benchmark", "fit_tables"])
def test_help(launch, module):
    ended = launch(f"launch.{module}", "--help")
    assert ended.code == 0
    assert "--out" in ended.out
