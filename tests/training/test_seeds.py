"""Several seeds at once: each its own draws, one curve, policies that load; a counter learns.

Stopped anywhere, a run ends as if it had not been.
"""

import csv
import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.learning.types import Learner
from qos_jax.runs import checkpoint
from qos_jax.runs.checkpoint import load_policy
from qos_jax.runs.checkpoint_record import checkpoints
from qos_jax.training import seeds as seed_training
from qos_jax.training.curve import render_points
from qos_jax.training.hyper import Together, grid
from qos_jax.training.judge import CaseScore, Judgement
from qos_jax.training.plan import Phase, load_plan, phase_key
from qos_jax.training.run import open_training
from qos_jax.training.seeds import open_seed_training, train_seeds
from qos_jax.training.train_config import EvaluationConfig, TrainConfig

SEEDS = 3
TOGETHER = Together(SEEDS)


def counting(nan_at: int | None = None, from_weight: float = 0.0) -> Learner:
    """A learner whose one parameter is drawn, and grows by 1 an update; large ones diverge at ``nan_at``."""

    def init(key, params=None):
        weight = jax.random.uniform(key) if params is None else params["params"]["weight"]
        return {"weight": weight, "updates": jnp.int32(0)}

    def update(state):
        state = {"weight": state["weight"] + 1.0, "updates": state["updates"] + 1}
        broken = (state["updates"] == (nan_at or -1)) & (state["weight"] > from_weight)
        return state, {"loss": jnp.where(broken, jnp.nan, state["weight"])}

    return Learner(init, update, lambda state: {"params": {"weight": state["weight"]}}, 5)


class FakeJudge:
    """Judges a router by its parameter."""

    on_judge = None

    def __init__(self, plan):
        pass

    def judge(self, update, params):
        if FakeJudge.on_judge is not None:
            FakeJudge.on_judge(update)
        weight = np.asarray(params["params"]["weight"])
        assert weight.shape == ()
        return Judgement(update, (CaseScore("poisson", 1.0, np.full(2, weight), np.full(2, 0.5)),))


PLAN = dataclasses.replace(
    load_plan(TrainConfig(agent="none", keep_last=2, evaluation=EvaluationConfig(every=2))),
    phases=(Phase("one", counting(), 3), Phase("two", counting(), 2)),
)


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    monkeypatch.setattr(seed_training, "Judge", FakeJudge)
    monkeypatch.setattr(FakeJudge, "on_judge", None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("seeds") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed_training, "Judge", FakeJudge)
        train(out)
    return out


def test_seeds_differ_and_go_from_phase_to_phase(tmp_path):
    points = train_seeds(open_seed_training(PLAN, TOGETHER, tmp_path / "run"), plot=True)
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
    assert render_points(points, TOGETHER).count("\n") == 1 + len(points)
    assert [each.step for each in checkpoints(tmp_path / "run")] == [4, 5]
    with pytest.raises(InputError, match=r"is of a run of several seeds, .*; give .*seeds/0"):
        load_policy(tmp_path / "run")
    with pytest.raises(InputError, match=r"holds trained routers in seeds/; choose another"):
        open_seed_training(PLAN, TOGETHER, tmp_path / "run")
    open_seed_training(PLAN, TOGETHER, tmp_path / "run", overwrite=True)
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["config.json"]


def test_seeds_draw_as_runs_of_their_own_keys_do(tmp_path):
    points = train_seeds(open_seed_training(PLAN, TOGETHER, tmp_path / "run"), plot=False)
    for seed, key in enumerate(jax.random.split(jax.random.key(PLAN.config.seed), SEEDS)):
        drawn = float(jax.random.uniform(phase_key(key, 0)))
        assert points[0].average_qos[seed] == pytest.approx(drawn, rel=1e-6)


def test_a_diverged_seed_ends_the_run(tmp_path):
    broken = dataclasses.replace(PLAN, phases=(Phase("ppo", counting(nan_at=2, from_weight=2.5), 3),))
    run = open_seed_training(broken, TOGETHER, tmp_path / "run")
    weights = np.asarray(run.start(0, None)["weight"]) + 2.0
    assert weights[0] <= 2.5 < weights[1:].max()  # not the first one
    first = int(np.argmax(weights > 2.5))
    with pytest.raises(
        InputError, match=rf"diverged in phase ppo, seed {first}: a metric of update 2 .*start anew"
    ):
        train_seeds(run, plot=False)


def test_no_seed_is_refused(tmp_path):
    with pytest.raises(InputError, match="'vmap_seeds': 0 is below 1; give"):
        open_seed_training(PLAN, Together(0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Killed(BaseException):
    """What no handler expects."""


def train(out, **how):
    return train_seeds(open_seed_training(PLAN, TOGETHER, out, **how), plot=False)


def assert_same_end(one, other):
    for name in ("evaluations.csv", "metrics.jsonl", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    for seed in range(SEEDS):
        ours, theirs = (load_policy(out / f"seeds/{seed}") for out in (one, other))
        np.testing.assert_array_equal(ours[0]["params"]["weight"], theirs[0]["params"]["weight"])
        assert ours[1].average_qos == theirs[1].average_qos


@pytest.mark.parametrize(("what", "writes"), [("save", 1), ("save", 3), ("save_policy", 2)])
@pytest.mark.parametrize("after", [False, True])
def test_killed_around_any_write_it_resumes_to_the_same_end(
    whole, tmp_path, monkeypatch, what, writes, after
):
    """Right before a checkpoint, or a router at the end, is written, or right after it."""
    real, done = getattr(checkpoint, what), []

    def write(*arguments, **options):
        done.append(None)
        if len(done) < writes or after:
            real(*arguments, **options)
        if len(done) == writes:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, what, write)
        with pytest.raises(Killed):
            train(tmp_path / "run")
    train(tmp_path / "run", resume=True)
    assert_same_end(tmp_path / "run", whole)


def test_ctrl_c_leaves_a_checkpoint_of_all_seeds(whole, tmp_path, monkeypatch):
    signals = [signal.SIGINT]  # one, though there are three routers to judge
    monkeypatch.setattr(
        FakeJudge, "on_judge", lambda update: update == 2 and signals and signal.raise_signal(signals.pop())
    )
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert [each.step for each in checkpoints(tmp_path / "run")] == [2]
    monkeypatch.setattr(FakeJudge, "on_judge", None)
    train(tmp_path / "run", resume=True)
    assert_same_end(tmp_path / "run", whole)


def test_resuming_what_has_ended_or_never_began(tmp_path):
    points = train(tmp_path / "run", resume=True)
    again = train(tmp_path / "run", resume=True)
    assert [point.update for point in again] == [point.update for point in points]
    for ours, theirs in zip(again, points, strict=True):
        np.testing.assert_array_equal(ours.average_qos, theirs.average_qos)


def test_another_run_is_not_resumed(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(InputError, match="vmap_seeds: 3 in the checkpoint, 2 asked for"):
        open_seed_training(PLAN, Together(2), tmp_path / "run", resume=True)
    config = dataclasses.replace(PLAN.config, seed=5)
    with pytest.raises(InputError, match="seed: 0 in the checkpoint, 5 asked for"):
        open_seed_training(dataclasses.replace(PLAN, config=config), TOGETHER, tmp_path / "run", resume=True)
    alone = dataclasses.replace(PLAN, phases=(Phase("ppo", counting(), 5),))
    with pytest.raises(InputError, match="vmap_seeds: 3 in the checkpoint, nothing asked for"):
        open_training(alone, tmp_path / "run", resume=True)
    shutil.rmtree(tmp_path / "run/checkpoints")  # as runs before there were any left it
    with pytest.raises(InputError, match="holds trained routers in seeds/"):
        open_seed_training(PLAN, TOGETHER, tmp_path / "run", resume=True)


def stepping(config):
    """The counting learner, but an update adds ``ppo.clip``."""

    def update(state):
        weight = state["weight"] + config.ppo.clip
        return {"weight": weight, "updates": state["updates"] + 1}, {"loss": weight}

    return dataclasses.replace(counting(), update=update)


def test_settings_and_seeds_are_trained_at_once_and_told_apart(tmp_path):
    config = dataclasses.replace(PLAN.config, agent="ppo")

    def phases_of(config):
        return (Phase("ppo", stepping(config), 4),)

    plan = dataclasses.replace(PLAN, config=config, phases=phases_of(config), phases_of=phases_of)
    together = Together(2, grid(config, ["ppo.clip=0.25,0.5"]))
    points = train_seeds(open_seed_training(plan, together, tmp_path / "run"), plot=True)
    start, end = points[0].average_qos, points[-1].average_qos
    np.testing.assert_array_equal(start[:2], start[2:])  # a seed draws the same in every setting
    assert start[0] != start[1]
    np.testing.assert_allclose(end - start, [1.0, 1.0, 2.0, 2.0], rtol=1e-6)
    for router, clip in enumerate((0.25, 0.25, 0.5, 0.5)):
        params, found = load_policy(tmp_path / f"run/seeds/ppo.clip={clip}/{router % 2}")
        assert float(params["params"]["weight"]) == pytest.approx(end[router])
        assert found.config["ppo"]["clip"] == clip
    with open(tmp_path / "run/evaluations.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    last = {float(row["ppo.clip"]): float(row["average_qos"]) for row in rows[-2:]}
    assert last == pytest.approx({0.25: end[:2].mean(), 0.5: end[2:].mean()})
    text = render_points(points, together)
    assert text.count("ppo.clip=0.5") == len(points)
    again = train_seeds(open_seed_training(plan, together, tmp_path / "run", resume=True), plot=False)
    np.testing.assert_array_equal(again[-1].average_qos, end)
    other = Together(2, grid(config, ["ppo.clip=0.25,0.75"]))
    with pytest.raises(InputError, match="vmap"):
        open_seed_training(plan, other, tmp_path / "run", resume=True)
