"""``launch.train --vmap_seeds``: several routers in one program, their curve, and policies that load."""

import csv
import json

import jax
import numpy as np
import pytest

from qos_jax.learning.checkpoint import load_policy

TINY = {
    "fleet": "paper3",
    "max_steps": 16,
    "evaluation.every": 1,
    "evaluation.loads": 0.75,
    "evaluation.seeds": 2,
    "evaluation.num_requests": 16,
    "scenario.table_rows": 8,
    "network.encoder": "sets",
    "network.hidden": 8,
    "distil.updates": 0,
    "agent": "ppo",
    "ppo.num_envs": 4,
    "ppo.rollout_steps": 4,
    "ppo.total_updates": 2,
    "ppo.epochs": 1,
    "ppo.minibatches": 1,
    "ppo.learning_rate": 0.1,
}


def arguments(out, **more):
    return [f"--{name}={value}" for name, value in (TINY | more | {"out": out}).items()]


def test_two_seeds_at_once(launch, tmp_path):
    out = tmp_path / "run"
    ended = launch("launch.train", *arguments(out, vmap_seeds=2))
    assert ended.code == 0, ended.err
    assert (out / "plots/learning_curve.png").is_file()
    with open(out / "evaluations.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["update"] for row in rows] == ["0", "1", "2"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    judged = [line["average_qos"] for line in lines if "average_qos" in line]
    for row, values in zip(rows, judged, strict=True):
        assert row["seeds"] == "2"
        assert float(row["average_qos"]) == pytest.approx(np.mean(values))
        assert float(row["ci_low"]) <= float(row["average_qos"]) <= float(row["ci_high"])
        assert row["update"] in ended.out
    first, second = (load_policy(out / f"seeds/{seed}") for seed in range(2))
    assert [first[1].average_qos, second[1].average_qos] == pytest.approx(judged[-1])
    leaves = [jax.tree.leaves(params) for params, _ in (first, second)]
    assert any(not np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
    again = launch("launch.train", *arguments(out, vmap_seeds=2))
    assert again.code == 2
    assert "holds trained routers" in again.err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"vmap_seeds": 0}, "'vmap_seeds': 0 is below 1"),
        ({"vmap_seeds": 2, "resume": True}, "'resume': a run of several seeds keeps no checkpoints"),
        ({"vmap_seeds": "many"}, "--vmap_seeds"),
    ],
)
def test_refused(launch, tmp_path, more, says):
    ended = launch("launch.train", *arguments(tmp_path / "run", **more))
    assert ended.code == 2
    assert says in ended.err
    assert "; " in ended.err
    assert not (tmp_path / "run").exists()
