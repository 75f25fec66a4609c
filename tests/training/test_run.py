"""The host's loop on learners of three numbers: what it leaves; stopping it anywhere changes nothing."""

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
from qos_jax.learning.distil import DistilConfig
from qos_jax.learning.ppo import PPOConfig
from qos_jax.learning.search import SearchConfig
from qos_jax.learning.types import Learner
from qos_jax.runs.checkpoint import load_policy, restore
from qos_jax.runs.checkpoint_record import checkpoints
from qos_jax.training import loop
from qos_jax.training import plan as planning
from qos_jax.training import run as training_run
from qos_jax.training.judge import CaseScore, Judgement
from qos_jax.training.plan import Phase, load_plan, make_train, phase_key
from qos_jax.training.run import execute_training, open_training
from qos_jax.training.train_config import EvaluationConfig, TrainConfig

CONFIG = TrainConfig(
    fleet="paper3",
    log_every=2,
    checkpoint_every=3,
    keep_last=2,
    evaluation=EvaluationConfig(every=4, seeds=3),
    search=SearchConfig(updates=0),
    distil=DistilConfig(updates=7),
    ppo=PPOConfig(total_updates=6),
)
TOTAL = 13
BEST = 8  # the update at which the stand-in for the judge finds the router best
STOPS = {2, 3, 4, 6, 7, 8, 9, 10, 12, 13}  # multiples of the paces, and the ends of the phases


def toy(decisions, worst=None):
    """A random walk of three numbers, from where the phase before ended; not finite at update ``worst``."""

    def init(key, params=None):
        start = jnp.zeros(3) if params is None else params["w"]
        return {"w": start, "key": key, "update": jnp.int32(0)}

    def update(state):
        key, step_key = jax.random.split(state["key"])
        w = state["w"] + jax.random.normal(step_key, (3,))
        count = state["update"] + 1
        loss = jnp.where(count == (worst or -1), jnp.nan, count.astype(jnp.float32))
        return {"w": w, "key": key, "update": count}, {"loss": loss, "first": w[0]}

    return Learner(init, update, lambda state: {"w": state["w"]}, decisions)


class StandIn:
    """Judges by the number of the update alone; ``on_judge`` may do anything before."""

    on_judge = None

    def __init__(self, plan):
        self.seeds = plan.config.evaluation.seeds

    def judge(self, update, params):
        assert params["w"].shape == (3,)
        if StandIn.on_judge is not None:
            StandIn.on_judge(update)
        base = np.linspace(0.4, 0.6, self.seeds)
        gain = -abs(update - BEST) / 100 + np.linspace(0.0, 0.01, self.seeds)
        return Judgement(update, (CaseScore("poisson", 2.0, base + gain, base),))


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    monkeypatch.setattr(training_run, "Judge", StandIn)
    monkeypatch.setattr(StandIn, "on_judge", None)


def phases(**learners):
    return (
        Phase("distil", learners.get("distil", toy(10)), CONFIG.distil.updates),
        Phase("ppo", learners.get("ppo", toy(100)), CONFIG.ppo.total_updates),
    )


def plan_of(config=CONFIG, **learners):
    return dataclasses.replace(load_plan(config), phases=phases(**learners))


PLAN = plan_of()


def train(out, plan=PLAN, *, resume=False, plot=False):
    execute_training(open_training(plan, out, resume=resume), plot=plot)


def lines_of(out):
    """Lines of metrics.jsonl, without what no two runs share."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "wall_s"} for line in lines]


def end_of(out):
    like = jax.eval_shape(PLAN.phases[1].learner.init, jax.random.key(0), None)
    state, found = restore(out, like, CONFIG)
    assert found.step == TOTAL
    return jax.device_get(state["w"]), jax.device_get(jax.random.key_data(state["key"]))


def assert_same_end(one, other):
    for ours, theirs in zip(end_of(one), end_of(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert lines_of(one) == lines_of(other)
    assert (one / "evaluations.csv").read_bytes() == (other / "evaluations.csv").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("training") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "Judge", StandIn)
        train(out, plot=True)
    return out


def test_what_it_leaves(whole):
    lines = lines_of(whole)
    told = [line for line in lines if "metrics" in line]
    assert [line["update"] for line in told] == sorted(STOPS)
    assert [line["phase"] for line in told] == ["distil" if stop <= 7 else "ppo" for stop in sorted(STOPS)]
    assert [line["decisions"] for line in told][-3:] == [7 * 10 + n * 100 for n in (3, 5, 6)]
    # Each line holds the means since the one before: 1, 2 | 3 | 4 | 5, 6 | 7, and then the other phase's.
    assert [line["metrics"]["loss"] for line in told][:6] == [1.5, 3.0, 4.0, 5.5, 7.0, 1.0]
    judged = [line["update"] for line in lines if "scores" in line]
    assert judged == [0, 4, 7, 8, 12, 13]
    kept = checkpoints(whole)
    assert [each.step for each in kept] == [BEST, 12, 13]
    assert kept[0].average_qos == pytest.approx(0.505)
    _, found = load_policy(whole)
    assert found.step == BEST
    with open(whole / "evaluations.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["update"]) for row in rows] == judged
    assert float(rows[3]["diff"]) == pytest.approx(0.005)
    assert float(rows[3]["diff_low"]) < 0.005 < float(rows[3]["diff_high"])
    assert (whole / "plots" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (whole / "tensorboard").iterdir()
    for tag in (b"distil/loss", b"ppo/loss", b"evaluation/difference"):
        assert tag in events.read_bytes()


def test_a_phase_starts_from_the_parameters_of_the_one_before(whole):
    """The loop in chunks comes to what the same updates one by one come to."""
    params = None
    for index, phase in enumerate(PLAN.phases):
        state = phase.learner.init(phase_key(jax.random.key(CONFIG.seed), index), params)
        for _ in range(phase.updates):
            state, _ = jax.jit(phase.learner.update)(state)
        params = phase.learner.params(state)
    np.testing.assert_array_equal(end_of(whole)[0], params["w"])


def test_no_state_is_alive_while_its_update_is_compiled(tmp_path, monkeypatch):
    kept, compiled = [], loop._compiled

    def init(key, params=None):
        state = toy(50).init(key, params)
        return state | {"memory": jnp.zeros(7)}

    def update(state):
        new, metrics = toy(50).update(state)
        return new | {"memory": state["memory"]}, metrics

    def compile_alone(*given):
        kept.append([leaf for leaf in jax.live_arrays() if leaf.shape == (7,)])
        return compiled(*given)

    monkeypatch.setattr(loop, "_compiled", compile_alone)
    train(tmp_path / "run", plan_of(distil=Learner(init, update, toy(50).params, 50)))
    assert kept == [[], []]  # of either phase


def test_make_train_is_the_same_training_for_many_seeds_at_once(whole, monkeypatch):
    monkeypatch.setattr(planning, "make_distil", lambda *_: PLAN.phases[0].learner)
    monkeypatch.setattr(planning, "make_ppo", lambda *_: PLAN.phases[1].learner)
    keys = jnp.stack([jax.random.key(CONFIG.seed), jax.random.key(7)])
    params, metrics = jax.jit(jax.vmap(make_train(CONFIG)))(keys)
    np.testing.assert_allclose(params["w"][0], end_of(whole)[0], rtol=1e-6)
    assert not np.allclose(params["w"][0], params["w"][1])
    assert {name: figures["loss"].shape for name, figures in metrics.items()} == {
        "distil": (2, 7),
        "ppo": (2, 6),
    }


class Killed(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("saves", [1, 3, 5])
@pytest.mark.parametrize("after", [False, True])
def test_killed_around_any_checkpoint_it_resumes_to_the_same_end(whole, tmp_path, monkeypatch, saves, after):
    """Right before the checkpoint numbered ``saves`` is written, or right after it."""
    real, done = training_run.checkpoint.save, []

    def save(*arguments, **options):
        done.append(None)
        if len(done) < saves or after:
            real(*arguments, **options)
        if len(done) == saves:
            raise Killed

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training_run.checkpoint, "save", save)
        with pytest.raises(Killed):
            train(out)
    train(out, resume=True)
    assert_same_end(out, whole)


@pytest.mark.parametrize("at", [0, 7, 8])
def test_ctrl_c_leaves_a_checkpoint_where_it_stopped(whole, tmp_path, monkeypatch, at):
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(
        StandIn, "on_judge", lambda update: update == at and signal.raise_signal(signal.SIGINT)
    )
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(out)
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoints(out)[-1].step == (at or min(STOPS))
    monkeypatch.setattr(StandIn, "on_judge", None)
    train(out, resume=True)
    assert_same_end(out, whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    def twice(update):
        if update == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(StandIn, "on_judge", twice)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert [each.step for each in checkpoints(tmp_path / "run")] == [3]


def test_resuming_what_has_ended_says_so(whole, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    train(whole, resume=True)
    out = capsys.readouterr().out
    assert "nothing to resume" in out
    assert "update 8" in out
    assert {path: path.read_bytes() for path in before} == before


def test_resuming_what_never_began_begins_it(whole, tmp_path):
    train(tmp_path / "run", resume=True)
    assert_same_end(tmp_path / "run", whole)


def test_diverged_training_is_told_with_phase_update_and_checkpoint(tmp_path):
    plan = plan_of(ppo=toy(100, worst=4))
    with pytest.raises(InputError, match=r"phase ppo: .*update 11 .*step_000000009.*; .*--ppo\.") as caught:
        train(tmp_path / "run", plan)
    assert "\n" not in str(caught.value)
    assert lines_of(tmp_path / "run")[-1]["metrics"]["loss"] is None
    assert checkpoints(tmp_path / "run")[-1].step == 9


def test_a_used_folder_is_refused_unless_told_what_to_do(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(InputError, match=r"training run at update 13; give --resume .*--overwrite"):
        open_training(PLAN, out)
    with pytest.raises(InputError, match="contradicts resume"):
        open_training(PLAN, out, resume=True, overwrite=True)
    assert [each.step for each in checkpoints(out)] == [BEST, 12, 13]
    open_training(PLAN, out, overwrite=True)
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["config.json"]


def test_other_settings_or_files_are_not_resumed(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    other = dataclasses.replace(CONFIG, ppo=dataclasses.replace(CONFIG.ppo, clip=0.1), seed=1)
    with pytest.raises(
        InputError, match=r"ppo\.clip: 0\.2 in the checkpoint, 0\.1 asked for; seed: 0 in the"
    ):
        open_training(plan_of(other), out, resume=True)
    fleet = tmp_path / "paper3.csv"
    fleet.write_text(PLAN.setting.file.read_text() + "# a remark more\n")
    moved = dataclasses.replace(PLAN, setting=dataclasses.replace(PLAN.setting, file=fleet))
    with pytest.raises(InputError, match="fleet_sha256"):
        open_training(moved, out, resume=True)
    assert lines_of(out) == lines_of(whole)
