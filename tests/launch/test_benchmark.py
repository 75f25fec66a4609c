"""``launch.benchmark``: a line per measurement, equal work on both sides, the machine it ran on."""

import json

import jax
import pytest


def test_stretches_of_a_trace(launch, tmp_path):
    trace = tmp_path / "mine.csv"
    rows = "".join(f"{i * 0.2},{200 + 7 * i % 90},{30 + 11 * i % 50}\n" for i in range(50))
    trace.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    flags = ["--experts=2", "--environments=2", "--num_requests=16", "--repeats=1", "--reference_runs=3"]
    ended = launch("launch.benchmark", *flags, f"--trace={trace}", f"--out={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["what"], line.get("environments")) for line in lines] == [
        ("reference", 3),
        ("closed form", 2),
        ("closed form", 3),
        ("peak memory", None),
    ]
    reference, two, three, peak = lines
    assert three["mean_qos"] == pytest.approx(reference["mean_qos"], rel=1e-3)
    assert three["mean_latency_s"] == pytest.approx(reference["mean_latency_s"], rel=1e-3)
    assert 0 < reference["mean_qos"] < 1
    for line in (reference, two, three):
        assert line["requests"] == 16 * line["environments"]
        assert line["requests_per_s"] == pytest.approx(line["requests"] / line["wall_s"])
        assert line["requests_per_cpu_s"] == pytest.approx(line["requests"] / line["cpu_s"])
    assert peak["bytes"]["host"] > 2**20
    assert f"jax {jax.__version__}" in ended.out
    assert "backend cpu" in ended.out
    assert "vs reference" in ended.out
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["machine"]["backend"] == "cpu"
