"""Learned routers of a comparison: what they are called, which checkpoint is read, what of it is recorded."""

import hashlib

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.policies import HEURISTICS
from qos_jax.policies.registry import named_checkpoints, router_of
from qos_jax.policies.saved import load_router
from qos_jax.serving import ServingConfig
from tests.launch.trained import network, save_run

FLEET = ServingConfig(num_experts=2, running_slots=3, waiting_slots=2)


def load(folder, serving=FLEET, *, name="mine", allow_drop=True, stochastic=False):
    return load_router(name, folder, serving, allow_drop=allow_drop, stochastic=stochastic)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Checkpoints at steps 1 (the best, filled with 0.5) and 20."""
    folder = tmp_path_factory.mktemp("runs") / "edge6"
    save_run(folder, network(), step=1, average_qos=0.75, fill=0.5)
    return save_run(folder, network(), step=20, average_qos=0.5)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("{}", "edge6"),
        ("{}/", "edge6"),
        ("{}/checkpoints", "edge6"),
        ("{}/checkpoints/step_000000020", "edge6@20"),
        ("ours={}", "ours"),
        ("ours=gone/at=all", "ours"),
        ("gone/a=b", "a_b"),
        ("gone/Edge 6, take two", "Edge_6__take_two"),
        ("gone/.hidden", "hidden"),
        ("/", "learned"),
    ],
)
def test_names(run, given, name):
    text = given.format(run)
    ((found, folder),) = named_checkpoints([text], HEURISTICS).items()
    assert found == name
    assert str(folder) == text.removeprefix("ours=").rstrip("/") or text == "/"


def test_an_existing_folder_with_an_equals_sign_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-3").mkdir()
    assert {name: str(folder) for name, folder in named_checkpoints(["lr=1e-3"], ()).items()} == {
        "lr_1e-3": "lr=1e-3"
    }
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert list(named_checkpoints(["."], ())) == ["run"]


def test_names_differ_on_every_file_system():
    with pytest.raises(InputError, match="'RUN' twice"):
        named_checkpoints(["a/run", "b/RUN"], ())
    with pytest.raises(InputError, match="'Random' is the name of another policy"):
        named_checkpoints(["a/Random"], HEURISTICS)
    assert list(named_checkpoints(["a/run", "two=b/run"], HEURISTICS)) == ["run", "two"]


def test_folders_of_one_name_are_runs_of_one_router():
    given = ["ours=a/run", "other=c/run", "ours=b/run"]
    named = named_checkpoints(given, HEURISTICS)
    assert {name: str(folder) for name, folder in named.items()} == {
        "ours#1": "a/run",
        "ours#2": "b/run",
        "other": "c/run",
    }
    assert [router_of(name) for name in named] == ["ours", "ours", "other"]
    assert router_of("ours@never_drops#12@twin") == "ours@never_drops@twin"
    for again in (["ours=a", "ours=a"], ["ours=a", "OURS=b"], ["ours=a", "b/ours"]):
        with pytest.raises(InputError, match=r"twice; name each once, or runs of one router alike"):
            named_checkpoints(again, HEURISTICS)


def test_the_best_checkpoint_is_read_and_recorded(run):
    best = load(run)
    assert all(np.all(np.asarray(leaf) == 0.5) for leaf in jax.tree.leaves(best.policy.params["params"]))
    folder = run / "checkpoints" / "step_000000001"
    assert best.record == {
        "path": str(folder),
        "sha256": hashlib.sha256((folder / "checkpoint.json").read_bytes()).hexdigest(),
        "step": 1,
        "average_qos": 0.75,
    }
    last = load(run / "checkpoints" / "step_000000020")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(last.policy.params["params"]))
    assert last.record["sha256"] != best.record["sha256"]


def test_routers_of_one_configuration_are_one_program(run):
    """So the second compiles nothing; drawing is another."""
    best, last = load(run).policy, load(run / "checkpoints" / "step_000000020").policy
    assert best.act_function() is last.act_function()
    assert load(run, stochastic=True).policy.act_function() is not best.act_function()
    assert not best.is_oracle


def test_the_han_runs_on_any_fleet_the_flat_network_on_its_own(run, tmp_path):
    for experts in (1, 3, 24):
        load(run, ServingConfig(experts, 16, 16))
    flat = save_run(tmp_path / "flat", network(encoder="flat"))
    load(flat)
    load(flat, ServingConfig(2, 4, 1))  # five slots, otherwise filled
    for other in (ServingConfig(3, 3, 2), ServingConfig(2, 3, 3)):
        with pytest.raises(InputError, match=r"is for 2 experts of 5 slots .* the fleet has . experts"):
            load(flat, other)


def test_drop_only_where_it_is_allowed(tmp_path):
    """A run keeps the actions it was trained with: what it may drop by, and whether a comparison lets it."""
    folder = save_run(tmp_path / "drops", network(allow_drop=True))
    dropping, masked = load(folder).policy, load(folder, allow_drop=False).policy
    assert dropping.router is not masked.router
    assert load(folder, name="mine@never_drops").policy.router is masked.router
    plain = save_run(tmp_path / "plain", network(allow_drop=False))
    assert load(plain).policy.router is load(plain, allow_drop=False).policy.router is not dropping.router
