"""``launch.train`` on two processes: it ends as one of as many devices does; a lost process costs little."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qos_jax.runs.array_store import read_arrays
from tests.launch.trained import BLIND_FLAGS, UPDATES

ROOT = Path(__file__).parents[2]
FLAGS = BLIND_FLAGS | {"plots": False}
LAST = f"step_{UPDATES:09}"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Return a function that starts a process; what the first compiled, the others read."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(out, *more, **flags):
        arguments = [f"--{name}={value}" for name, value in (FLAGS | flags | {"out": out}).items()]
        return subprocess.Popen(
            [sys.executable, "-m", "launch.train", *arguments, *more],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def free_address():
    """Return where a process of this host may listen."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def start_two(start):
    """Return a function that starts a run of two processes, a device each; the second has no such folder."""

    def start_two(out, *more, **of_second):
        flags = {"coordinator_address": free_address(), "num_processes": 2, "cpu_devices": 1}
        second = {"process_id": 1, **flags, **of_second}
        return start(out, *more, process_id=0, **flags), start(out.parent / "nobody", *more, **second)

    return start_two


def ended(*processes):
    """Wait for processes, and return the exit code and the standard error of each."""
    told = [process.communicate(timeout=900)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


@pytest.fixture(scope="module")
def killed(start_two, tmp_path_factory):
    """The folder of a run whose second process was killed, and what became of the first."""
    out = tmp_path_factory.mktemp("train") / "killed"
    first, second = start_two(out)
    deadline = time.monotonic() + 600
    while not (out / "checkpoints" / "step_000000004").is_dir():  # it stands there whole or not at all
        assert first.poll() is None, ended(first, second)
        assert second.poll() is None, ended(first, second)
        assert time.monotonic() < deadline
        time.sleep(0.005)
    second.send_signal(signal.SIGKILL)
    survivor, lost = ended(first, second)
    assert lost[0] == -signal.SIGKILL
    assert not (out / "checkpoints" / LAST).exists()
    assert not (out.parent / "nobody").exists()
    return out, survivor


def lines_of(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "wall_s"} for line in lines]


def assert_same_end(one, other):
    """The whole state, metrics and evaluations, bit for bit."""
    ours, theirs = (read_arrays(out / "checkpoints" / LAST / "state") for out in (one, other))
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)
    assert lines_of(one) == lines_of(other)
    assert (one / "evaluations.csv").read_bytes() == (other / "evaluations.csv").read_bytes()


def test_a_lost_process_ends_the_others_in_one_line(killed):
    code, told = killed[1]
    assert code == 3, told
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "lost touch with another process" in errors[0]
    assert "--resume" in errors[0]
    assert "Traceback" not in told


@pytest.fixture(scope="module")
def resumed(start, killed):
    """The folder of the same run, gone on with to its end in one process of two devices."""
    out = shutil.copytree(killed[0], killed[0].parent / "resumed")
    ((code, told),) = ended(start(out, "--resume", cpu_devices=2))
    assert code == 0, told
    assert "training on 2 devices" in told
    return out


def test_two_resumed_end_as_one_process_of_two_devices(start_two, killed, resumed, tmp_path):
    out = shutil.copytree(killed[0], tmp_path / "run")
    first, second = ended(*start_two(out, "--resume"))
    assert first[0] == 0, first[1]
    assert second[0] == 0, second[1]
    assert f"update {UPDATES}" in first[1]
    assert "update" not in second[1]  # the first speaks for both
    assert not (tmp_path / "nobody").exists()
    assert_same_end(out, resumed)


_BEGIN = """
import dataclasses, sys
import jax
from qos_jax.errors import InputError
from qos_jax.training.hyper import Together
from qos_jax.training.plan import load_plan
from qos_jax.training.run import open_training
from qos_jax.training.seeds import open_seed_training
from qos_jax.training.train_config import TrainConfig
address, process, taken, new = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
config = TrainConfig(fleet="paper3")
plan = load_plan(config)
for begin in (
    lambda: open_training(plan, taken),
    lambda: open_training(load_plan(dataclasses.replace(config, seed=int(process))), new),
    lambda: open_seed_training(plan, Together(2), new),
):
    try:
        begin()
    except InputError as error:
        print(error)
    else:
        print("begun")
"""


def test_two_begin_alike_or_not_at_all(resumed, tmp_path):
    """What process 0 refuses is told there; what they disagree on, and what is of one host, everywhere."""
    taken = shutil.copytree(resumed, tmp_path / "run")
    address = free_address()
    outcomes = [
        subprocess.Popen(
            [sys.executable, "-c", _BEGIN, address, str(process), str(folder), str(tmp_path / "new")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, folder in enumerate((taken, tmp_path / "nobody"))
    ]
    said = [process.communicate(timeout=900) for process in outcomes]
    assert [process.returncode for process in outcomes] == [0, 0], said
    first, second = (out.splitlines()[-3:] for out, _ in said)  # after what the transport says of itself
    assert f"holds a training run at update {UPDATES}; give --resume" in first[0]
    assert "process 0 could not begin; " in second[0]
    for _, differ, seeds in (first, second):
        assert "the processes of this run have different settings or files (seed); start them all" in differ
        assert "'vmap_seeds': several seeds are trained on one host" in seeds
    assert not (tmp_path / "new").exists()
