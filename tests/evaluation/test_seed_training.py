"""Several seeds at once: each its own draws, one curve, policies that load; a counter learns."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.evaluation import seed_training
from qos_jax.evaluation.judge import CaseScore, Judgement
from qos_jax.evaluation.seed_training import open_seed_training, train_seeds
from qos_jax.learning.checkpoint import load_policy
from qos_jax.learning.plan import Phase, load_plan
from qos_jax.learning.train_config import EvaluationConfig, TrainConfig
from qos_jax.learning.types import Learner

SEEDS = 3


def counting(nan_at: int | None = None) -> Learner:
    """A learner whose one parameter is drawn, and grows by 1 an update."""

    def init(key, params=None):
        weight = jax.random.uniform(key) if params is None else params["params"]["weight"]
        return {"weight": weight, "updates": jnp.int32(0)}

    def update(state):
        state = {"weight": state["weight"] + 1.0, "updates": state["updates"] + 1}
        broken = (state["updates"] == (nan_at or -1)) & (state["weight"] > 0)
        return state, {"loss": jnp.where(broken, jnp.nan, state["weight"])}

    return Learner(init, update, lambda state: {"params": {"weight": state["weight"]}}, 5)


class FakeJudge:
    """Judges a router by its parameter."""

    def __init__(self, plan):
        pass

    def judge(self, update, params):
        weight = np.asarray(params["params"]["weight"])
        assert weight.shape == ()
        return Judgement(update, (CaseScore("poisson", 1.0, np.full(2, weight), np.full(2, 0.5)),))


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.setattr(seed_training, "Judge", FakeJudge)
    whole = load_plan(TrainConfig(agent="none", evaluation=EvaluationConfig(every=2)))
    return dataclasses.replace(whole, phases=(Phase("one", counting(), 3), Phase("two", counting(), 2)))


def test_seeds_differ_and_go_from_phase_to_phase(plan, tmp_path):
    folder = open_seed_training(plan, SEEDS, tmp_path / "run")
    points = train_seeds(plan, SEEDS, folder, plot=True)
    assert [point.update for point in points] == [0, 2, 3, 4, 5]
    start = points[0].average_qos
    assert len(set(start.tolist())) == SEEDS
    for point in points:
        np.testing.assert_allclose(point.average_qos, start + point.update, rtol=1e-6)
        np.testing.assert_allclose(point.difference, start + point.update - 0.5, rtol=1e-6)
    for seed in range(SEEDS):
        params, found = load_policy(tmp_path / f"run/seeds/{seed}")
        assert float(params["params"]["weight"]) == pytest.approx(start[seed] + 5)
        assert found.average_qos == pytest.approx(start[seed] + 5)
    with open(tmp_path / "run/evaluations.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["average_qos"]) for row in rows] == pytest.approx(
        [p.average_qos.mean() for p in points]
    )
    assert all(float(row["ci_low"]) < float(row["average_qos"]) < float(row["ci_high"]) for row in rows)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = {line["update"]: line["metrics"]["loss"] for line in lines if "metrics" in line}
    np.testing.assert_allclose(losses[3], start + 3, rtol=1e-6)
    assert (tmp_path / "run/plots/learning_curve.png").stat().st_size > 1000
    assert seed_training.render_points(points).count("\n") == 1 + len(points)
    with pytest.raises(InputError, match=r"holds trained routers in seeds/; choose another"):
        open_seed_training(plan, SEEDS, tmp_path / "run")
    open_seed_training(plan, SEEDS, tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run/seeds").exists()


def test_a_diverged_seed_ends_the_run(plan, tmp_path):
    broken = dataclasses.replace(plan, phases=(Phase("ppo", counting(nan_at=2), 3),))
    folder = open_seed_training(broken, 2, tmp_path / "run")
    with pytest.raises(InputError, match=r"diverged in phase ppo, seed 0, by update 2; start anew"):
        train_seeds(broken, 2, folder, plot=False)


def test_no_seed_is_refused(plan, tmp_path):
    with pytest.raises(InputError, match="'vmap_seeds': 0 is below 1; give"):
        open_seed_training(plan, 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()
