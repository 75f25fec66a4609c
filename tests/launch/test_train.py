"""``launch.train`` end to end: killed in mid-training it ends as a run left alone; its flags."""

import csv
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from launch.config_flags import define_config_flags, field_comments
from qos_jax.errors import InputError
from qos_jax.runs.array_store import read_arrays
from qos_jax.training.judge import judged_cases
from qos_jax.training.plan import load_plan
from qos_jax.training.presets import PRESETS
from qos_jax.training.train_config import TrainConfig
from tests.launch.trained import TINY_FLAGS

ROOT = Path(__file__).parents[2]
# The network whose programs are ready soonest, and one phase: what is tested is the run around them. A run of
# two phases that goes on in the second is tests/training/test_run.py's.
FLAGS = TINY_FLAGS | {"network.encoder": "sets", "search.updates": 0, "evaluation.every": 4}
LAST = "step_000000006"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Return a function that starts a training process; what the first compiled, the others read.

    A process in which every program were compiled anew would test the compiler too, for a minute more.
    """
    cache = tmp_path_factory.mktemp("compiled")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(out, *more):
        arguments = [*(f"--{name}={value}" for name, value in FLAGS.items()), f"--out={out}", *more]
        return subprocess.Popen(
            [sys.executable, "-m", "launch.train", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The folder of a run left alone, and what it printed."""
    out = tmp_path_factory.mktemp("train") / "run"
    process = start(out)
    printed, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return out, printed


def lines_of(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "wall_s"} for line in lines]


def state_of(out):
    """The whole state after the last update, as it was written."""
    return read_arrays(out / "checkpoints" / LAST / "state")


def test_the_run_starts_at_the_baseline_and_learns_something(whole):
    out, printed = whole
    with open(out / "evaluations.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["update"]) for row in rows] == [0, 4, 6]
    assert float(rows[0]["diff"]) == 0.0  # the residual alone routes as load_aware_greedy
    assert "load_aware_greedy" in printed
    assert f"results in {out}" in printed
    figures = [line["metrics"] for line in lines_of(out) if "metrics" in line]
    assert all(np.isfinite(value) for line in figures for value in line.values())
    assert (out / "plots" / "learning_curve.png").stat().st_size > 0


def test_killed_in_mid_training_it_resumes_bit_for_bit(start, whole, tmp_path):
    out = tmp_path / "run"
    process = start(out)
    deadline = time.monotonic() + 200
    while not (out / "checkpoints" / "step_000000002").is_dir():  # it stands there whole or not at all
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "checkpoints" / LAST).exists()
    with open(out / "metrics.jsonl", "a") as stream:
        stream.write('{"phase": "distil", "update": 5, "metrics": {}}\n{"phase": "dist')  # and torn
    process = start(out, "--resume")
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    ours, theirs = state_of(out), state_of(whole[0])
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)
    assert lines_of(out) == lines_of(whole[0])
    assert (out / "evaluations.csv").read_bytes() == (whole[0] / "evaluations.csv").read_bytes()


def test_another_configuration_is_not_resumed(launch, whole):
    out, _ = whole
    before = hashlib.sha256((out / "metrics.jsonl").read_bytes()).digest()
    settings = FLAGS | {"distil.learning_rate": 0.01, "out": out, "resume": True}
    ended = launch("launch.train", *(f"--{name}={value}" for name, value in settings.items()))
    assert ended.code == 2
    assert "distil.learning_rate: 0.001 in the checkpoint, 0.01 asked for" in ended.err
    assert hashlib.sha256((out / "metrics.jsonl").read_bytes()).digest() == before


def leaves(config, prefix=""):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, type(config), field.name


def test_help_tells_every_setting_with_its_comment(launch):
    ended = launch("launch.train", "--help")
    assert ended.code == 0
    text = " ".join(ended.out.split())
    for name, kind, field in leaves(PRESETS["edge6"]):
        assert name in text
        comment = field_comments(kind).get(field, "")
        assert " ".join(comment.split())[:40] in text
    assert "Adam's, of the first update (default: 0.0006)" in text


def parsed(config, *arguments):
    values = flags.FlagValues()
    defined = define_config_flags(type(config), config, flag_values=values)
    values(["train", *arguments])
    return defined.read()


def test_flags_change_what_they_name_and_nothing_else():
    default = TrainConfig()
    assert parsed(default) == default
    changed = parsed(
        default,
        "--seed=3",
        "--latency_limit_s=0.05",
        "--ppo.clip=0.3",
        "--ppo.value_clip=None",
        "--nonetwork.residual",
        "--network.han.heads=4",
        "--scenario.load=0.5, 2",
        "--scenario.arrival_rate=1,6",
        "--scenario.quality_bias=-0.1,0",
        "--evaluation.workloads=mmpp,gamma",
        "--evaluation.loads=1",
        "--evaluation.arrival_rates=",
    )
    assert changed == dataclasses.replace(
        default,
        seed=3,
        latency_limit_s=0.05,
        ppo=dataclasses.replace(default.ppo, clip=0.3),
        network=dataclasses.replace(
            default.network, residual=False, han=dataclasses.replace(default.network.han, heads=4)
        ),
        scenario=dataclasses.replace(
            default.scenario, load=(0.5, 2.0), arrival_rate=(1.0, 6.0), quality_bias=(-0.1, 0.0)
        ),
        evaluation=dataclasses.replace(default.evaluation, workloads=("mmpp", "gamma"), loads=(1.0,)),
    )


def test_what_belongs_together_is_changed_together():
    """Each of the two alone would be refused."""
    changed = parsed(TrainConfig(), "--nonetwork.residual", "--nonetwork.impact_features")
    assert not changed.network.impact_features
    with pytest.raises(InputError, match=r"^network, field 'residual': .*set residual=False"):
        parsed(TrainConfig(), "--nonetwork.impact_features")


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--seed=1.5", "'1.5' is not a whole number"),
        ("--ppo.clip=none", "'none' is not a number"),
        ("--ppo.value_clip=much", "'much' is not a number, or none"),
        ("--scenario.load=1", "'1' is not 2 numbers, separated by commas"),
        ("--evaluation.loads=1,high", "'high' is not a number"),
        ("--network.residual=perhaps", "network.residual"),
        ("--ppo.cilp=0.1", "ppo.clip"),
    ],
)
def test_what_does_not_fit_its_type_is_refused(argument, says):
    with pytest.raises(flags.Error, match=says):
        parsed(TrainConfig(), argument)


@pytest.mark.parametrize(
    ("workloads", "says"),
    [
        ("poison", "did you mean 'poisson'"),
        ("mmpp,mmpp", "give each once"),
        ("", "name at least one, or give a trace"),
        ("trace", "'trace' is unknown"),
    ],
)
def test_workloads_to_be_judged_on_are_checked(workloads, says):
    with pytest.raises(InputError, match=says):
        parsed(TrainConfig(), f"--evaluation.workloads={workloads}")


def test_on_a_trace_it_is_judged_beside_the_workloads_or_alone(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,3\n0.5,12,4\n1.5,14,5\n")
    for workloads, expected in (("poisson", ["poisson", "trace"]), ("", ["trace"])):
        flags_given = (f"--trace={file}", f"--evaluation.workloads={workloads}", "--evaluation.seeds=2")
        config = parsed(TrainConfig(), *flags_given, "--evaluation.loads=0.5")
        cases = judged_cases(load_plan(config), config.evaluation)
        assert [case.workload for case in cases] == expected
        assert cases[-1].runs.arrival_s.shape == (2, 3)
