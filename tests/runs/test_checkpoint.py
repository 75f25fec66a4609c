"""Checkpoints are whole or not there, the right ones are kept, and every wrong one is refused in a line."""

import dataclasses
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.runs import checkpoint
from qos_jax.runs.checkpoint_record import checkpoints, find
from tests.runs.states import assert_same, params, state

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Network:
    hidden: int = 64
    temperature: float = 0.03


@dataclasses.dataclass(frozen=True)
class Config:
    network: Network = Network()
    rates: tuple[float, ...] = (1.0, 2.0)
    gamma: float = 0.99


def save(run, step, average_qos=None, **settings):
    return checkpoint.save(
        run, step, state(step), params=params(step), config=Config(), average_qos=average_qos, **settings
    )


def steps(run):
    return [found.step for found in checkpoints(run)]


def restore(where, config=None, **settings):
    return checkpoint.restore(where, jax.eval_shape(state), config or Config(), **settings)


@pytest.fixture(scope="module")
def one_saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    save(run, 1, average_qos=0.5)
    save(run, 2, average_qos=0.25, metadata={"decisions": 640})
    return run


@pytest.fixture
def run(one_saved, tmp_path):
    """Return a run with checkpoints at steps 1 (the best) and 2, a copy to damage."""
    return Path(shutil.copytree(one_saved, tmp_path / "run"))


def test_latest_and_best_come_back(run):
    restored, found = restore(run)
    assert_same(restored, state(2))
    assert (found.step, found.average_qos, found.metadata) == (2, 0.25, {"decisions": 640})
    assert_same(restore(run, best=True)[0], state(1))
    assert_same(restore(run / "checkpoints")[0], state(2))
    assert_same(restore(found.path)[0], state(2))
    assert_same(restore(os.path.relpath(found.path))[0], state(2))


def test_the_policy_comes_without_the_state(run):
    for state_folder in run.glob("checkpoints/*/state"):
        shutil.rmtree(state_folder)
    weights, found = checkpoint.load_policy(run)
    assert_same(weights, params(1))
    assert found.read_config(Network, "network") == Network()
    assert found.read_config(Config) == Config()
    assert_same(checkpoint.load_policy(run / "checkpoints" / "step_000000002")[0], params(2))


def test_an_exported_policy_is_a_policy_and_no_more(run, tmp_path):
    folder = tmp_path / "exports" / "policy"
    checkpoint.save_policy(folder, params(7), Config(), average_qos=0.75)
    weights, found = checkpoint.load_policy(folder)
    assert_same(weights, params(7))
    assert (found.average_qos, found.read_config(Config)) == (0.75, Config())
    with pytest.raises(InputError, match=r"is an exported policy.*; give the folder of the run"):
        restore(folder)
    with pytest.raises(InputError, match="exists already; choose another folder"):
        checkpoint.save_policy(folder, params(7), Config())


def test_the_last_and_the_best_are_kept(tmp_path):
    for step, score in [(1, 0.5), (2, 0.9), (3, 0.9), (4, None), (5, float("nan")), (6, 0.1)]:
        save(tmp_path, step, score, keep_last=2)
    assert steps(tmp_path) == [3, 5, 6]
    assert find(tmp_path, best=True).step == 3
    assert find(tmp_path).step == 6
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        f"step_{step:09d}" for step in (3, 5, 6)
    }
    checkpoint.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
    checkpoint.clear(tmp_path)  # of a run without any: nothing to do


def test_without_scores_the_best_is_the_latest(tmp_path):
    save(tmp_path, 3)
    save(tmp_path, 12)
    assert find(tmp_path, best=True).step == 12


def test_a_step_is_saved_once_and_in_order(run):
    for step in (1, 2):
        with pytest.raises(InputError, match=f"a checkpoint of step 2 already, and step {step} was to be"):
            save(run, step)
    with pytest.raises(ValueError, match="keep_last must be at least 1"):
        save(run, 3, keep_last=0)
    assert steps(run) == [1, 2]


def test_a_damaged_checkpoint_does_not_stop_the_run_beside_it(run):
    (run / "checkpoints" / "step_000000001" / "checkpoint.json").unlink()
    save(run, 3, keep_last=2)
    assert steps(run) == [2, 3]


def test_a_state_that_cannot_be_saved_leaves_nothing(run):
    before = sorted(run.rglob("*"))
    with pytest.raises(ValueError, match="is no array"):
        checkpoint.save(run, 3, {"lr": 0.1}, params=params(3), config=Config())
    assert sorted(run.rglob("*")) == before


def test_another_configuration_is_refused_field_by_field(run):
    other = Config(network=Network(hidden=32), gamma=1.0)
    place = re.escape(str(run / "checkpoints" / "step_000000002"))
    with pytest.raises(
        InputError,
        match=f"^{place}: .*gamma: 0.99 in the checkpoint, 1.0 asked for; "
        "network.hidden: 64 in the checkpoint, 32 asked for.*; resume with the settings",
    ):
        restore(run, config=other)
    many = {f"field_{n}": n for n in range(9)}
    with pytest.raises(InputError, match=r"field_4: nothing in the checkpoint, 4 asked for and 7 more"):
        restore(run, config=many)


def test_another_learner_is_refused_by_its_first_leaf(run):
    with pytest.raises(InputError, match=r"of another version of the learner \(.updates is in the"):
        checkpoint.restore(run, jax.eval_shape(lambda: state().replace(updates=None)), Config())


def test_a_configuration_of_another_version_is_refused(run):
    @dataclasses.dataclass(frozen=True)
    class Renamed:
        width: int = 64

    found = find(run)
    with pytest.raises(InputError, match=r"field 'network': .*Renamed has no field 'hidden'.*; use the"):
        found.read_config(Renamed, "network")
    with pytest.raises(InputError, match=r"field 'agent.ppo': .*is not a group of fields"):
        found.read_config(Renamed, "agent", "ppo")


def _truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, _truncate, _flip])
@pytest.mark.parametrize("part", ["checkpoint.json", "state", "policy"])
def test_damage_is_named(run, damage, part):
    folder = run / "checkpoints" / "step_000000002"
    path = folder / part
    file = (
        path
        if path.is_file()
        else max(path.rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    )
    damage(file)
    name = re.escape(file.relative_to(folder).as_posix())
    fault = rf"^{re.escape(str(folder))}: the checkpoint is damaged \({name} .*\); delete this folder"
    with pytest.raises(InputError, match=fault):
        checkpoint.load_policy(folder) if part == "policy" else restore(run)
    if part == "checkpoint.json":  # it may have been the best
        with pytest.raises(InputError, match=fault):
            checkpoint.load_policy(run)
    else:
        assert_same(checkpoint.load_policy(run)[0], params(1))


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "{}", '{"format": 1}', '{"hash": 1, "format": "x"}', "\0"]
)
def test_a_strange_summary_is_damage(run, content):
    (run / "checkpoints" / "step_000000002" / "checkpoint.json").write_text(content)
    with pytest.raises(InputError, match=r"checkpoint.json (cannot be read|was changed)"):
        restore(run)


def test_a_newer_format_is_refused(run):
    file = run / "checkpoints" / "step_000000002" / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2, "leaves": "elsewhere"}))
    with pytest.raises(
        InputError, match=r"step_000000002: was written by a newer qos_jax .*; update qos_jax"
    ):
        restore(run)


def test_what_orbax_cannot_read_is_one_line(run, monkeypatch):
    def refuse(*_):
        raise KeyError("unheard-of metadata\nand a long story")

    monkeypatch.setattr(checkpoint.array_store, "read_leaves", refuse)
    with pytest.raises(
        InputError, match=r"cannot read it \('unheard-of.*; install orbax-checkpoint \d"
    ) as caught:
        restore(run)
    assert "\n" not in str(caught.value)


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "notes").mkdir(parents=True)
    (tmp_path / "stopped" / "checkpoints" / ".partial-step_000000001").mkdir(parents=True)
    for name, fault in {
        "missing": "there is no such folder",
        "file": "is a file, not a folder",
        "empty": "the folder is empty",
        "other": "holds no checkpoint",
        "stopped": "the run holds no whole checkpoint: it stopped before its first",
        "stopped/checkpoints": "the run holds no whole checkpoint",
    }.items():
        with pytest.raises(
            InputError, match=f"{tmp_path / name}: {fault}.*; give the folder of a training run"
        ):
            checkpoint.load_policy(tmp_path / name)
    with pytest.raises(InputError, match=r"cannot be written .*; choose another folder"):
        save(tmp_path / "file", 1)
    with pytest.raises(InputError, match=r"cannot be written .*; choose another folder"):
        checkpoint.save_policy(tmp_path / "file" / "below", params(1), Config())
    assert checkpoints(tmp_path / "empty") == []


def _python(code, *arguments, **environment):
    """Start Python with warnings as errors; conftest's settings are in the environment already."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


_SAVE_UNTIL_KILLED = """
import os, re, signal, sys
import numpy as np
from qos_jax.runs import checkpoint
run, operation, path = sys.argv[1:]
def watch(event, arguments):
    if event == operation and re.search(path, str(arguments[0])):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
for step, average_qos in [(1, 0.5), (2, 0.1), (3, 0.1), (4, 0.1)]:
    state = {"weights": np.full((8, 8), step)}
    checkpoint.save(run, step, state, params=state, config={}, average_qos=average_qos, keep_last=1)
"""


@pytest.mark.parametrize(
    ("operation", "path", "survivor"),
    [
        ("open", r"/\.partial-step_000000003/state", 2),  # Orbax is at work
        ("os.rename", r"/\.partial-step_000000003$", 2),  # all is written but has no name
        ("open", r"/step_000000003/checkpoint\.json", 3),  # it has its name
        ("os.rename", r"/step_000000002$", 3),  # the one before is about to go
        ("os.rmdir", r"/\.removed-step_000000002$", 3),  # its files are gone
    ],
)
def test_a_run_killed_at_any_moment_resumes(tmp_path, operation, path, survivor):
    child = _python(_SAVE_UNTIL_KILLED, tmp_path, operation, path)
    out, err = child.communicate(timeout=300)
    assert (child.returncode, out, err) == (-signal.SIGKILL, "", "")

    def weights(step):
        return {"weights": np.full((8, 8), step)}

    restored, found = checkpoint.restore(tmp_path, weights(0), {})
    assert found.step == survivor
    assert_same(restored, weights(survivor))
    assert_same(checkpoint.restore(tmp_path, weights(0), {}, best=True)[0], weights(1))
    resumed = survivor + 1
    checkpoint.save(tmp_path, resumed, weights(resumed), params=weights(resumed), config={}, keep_last=1)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "step_000000001",
        f"step_{resumed:09d}",
    }


# Python itself leaves a file or a folder's iterator unclosed if it is interrupted between opening and `with`.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_ctrl_c_takes_effect_and_leaves_nothing_at_work(tmp_path, capfd):
    def save_weights(step):
        checkpoint.save(tmp_path, step, weights, params=weights, config={}, keep_last=2)

    def at_work():
        # The pool of Orbax's event loop keeps its idle threads, and grows when it likes.
        return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}

    weights = {f"layer_{number}": np.full((64, 64), number) for number in range(20)}  # no JAX to interrupt
    save_weights(1)
    threads = at_work()
    ordinary = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    interrupted = 0
    try:
        for number, delay_s in enumerate((0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12)):  # wherever that is
            try:
                signal.setitimer(signal.ITIMER_REAL, delay_s)
                save_weights(2 + number)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert at_work() == threads
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, ordinary)
    gc.collect()  # what was interrupted is finalised here, not in the next test
    assert interrupted
    assert capfd.readouterr() == ("", "")
    assert_same(checkpoint.restore(tmp_path, weights, {})[0], weights)
    save_weights(100)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


_ON_TWO_DEVICES = """
import os, sys, threading
from pathlib import Path
import jax
from absl import app
from qos_jax.runs import checkpoint
from tests.runs.states import assert_same, state
from tests.runs.test_checkpoint import Config, restore
assert "orbax" not in sys.modules, "orbax is imported before it is needed"
def main(_):
    run = Path(os.environ["RUN"])
    assert jax.device_count() == 2
    assert_same(restore(run)[0], state(2))
    halves = jax.NamedSharding(jax.make_mesh((2,), ("lane",)), jax.P("lane"))
    like = state(2)
    spread = like.replace(lanes=like.lanes.replace(live=jax.device_put(like.lanes.live, halves)))
    again, found = checkpoint.restore(run, spread, Config())
    assert again.lanes.live.sharding.is_equivalent_to(halves, 1)
    assert_same(again, spread)
    checkpoint.save(run, 3, again, params=again.params, config=Config())
    assert threading.enumerate() == [threading.main_thread()]
    sys.stdout.flush()
    os._exit(0)
app.run(main)
"""


def test_other_devices_read_and_write_the_same_quietly(run):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    child = _python(_ON_TWO_DEVICES, RUN=str(run), XLA_FLAGS=flags)
    out, err = child.communicate(timeout=300)
    assert (child.returncode, out, err) == (0, "", "")
    restored, found = restore(run)
    assert found.step == 3
    assert_same(restored, state(2))
