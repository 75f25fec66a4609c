"""``launch.benchmark``: a line per measurement, equal work on both sides, the machine it ran on, ratios."""

import json

import jax
import pytest


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_stretches_of_a_trace_and_a_second_run_beside_the_first(launch, tmp_path):
    trace = tmp_path / "mine.csv"
    rows = "".join(f"{i * 0.2},{200 + 7 * i % 90},{30 + 11 * i % 50}\n" for i in range(50))
    trace.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    flags = ["--what=simulator", "--experts=2", "--num_requests=16", "--repeats=1", f"--trace={trace}"]
    ended = launch(
        "launch.benchmark", *flags, "--environments=2", "--reference_runs=3", f"--out={tmp_path / 'run'}"
    )
    assert ended.code == 0, ended.err
    head, *lines = lines_of(tmp_path / "run")
    assert head["what"] == "benchmark"
    assert head["copy_bandwidth_bytes_per_s"] > 1e6
    assert head["settings"]["machine"]["backend"] == "cpu"
    assert [(line["what"], line["environments"]) for line in lines] == [
        ("reference", 3),
        ("simulator", 2),
        ("simulator", 3),
    ]
    reference, two, three = lines
    for name in ("mean_qos", "mean_latency_s"):
        assert three["figures"][name] == pytest.approx(reference["figures"][name], rel=1e-3)
    assert 0 < reference["figures"]["mean_qos"] < 1
    for line in lines:
        assert line["decisions"] == 16 * line["environments"]
        assert line["decisions_per_s"] == pytest.approx(line["decisions"] / line["wall_s"])
        assert line["decisions_per_cpu_s"] == pytest.approx(line["decisions"] / line["cpu_s"])
        assert line["peak_bytes"] > 2**20
    assert 0 < two["floor_share"] < 1
    assert f"jax {jax.__version__}" in ended.out
    assert "vs reference" in ended.out
    assert (tmp_path / "run/plots/throughput_environments.png").stat().st_size > 1000
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["machine"]["backend"] == "cpu"

    # The file compared with may be the one that is about to be replaced.
    before = f"--compare={tmp_path / 'run/metrics.jsonl'}"
    again = launch(
        "launch.benchmark",
        *flags,
        "--environments=2",
        "--reference_runs=0",
        before,
        f"--out={tmp_path / 'run'}",
    )
    assert again.code == 0, again.err
    assert "geometric mean of the ratios per CPU-second" in again.out
    assert "not compared: 0 rows only measured now, 2 only before" in again.out
    other = launch(
        "launch.benchmark", *flags, "--environments=2", "--seed=1", before, f"--out={tmp_path / 'run'}"
    )
    assert other.code == 2
    assert "field 'seed': measured other work (seed 0, not 1); give the same --seed" in other.err
