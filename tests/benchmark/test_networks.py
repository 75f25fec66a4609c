"""The two paths of the HAN, decisions as served, and training: equal results, shares that add up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.benchmark import training
from qos_jax.benchmark.decision import measure_decision
from qos_jax.benchmark.han_paths import check_equal, measure_han_paths
from qos_jax.benchmark.timing import Program
from qos_jax.benchmark.training import AGENTS, measure_search, measure_training, training_plan
from qos_jax.benchmark.work import busy_observations, draw_work
from qos_jax.learning.distil import DistilConfig
from qos_jax.learning.search import SearchConfig
from qos_jax.policies import policy
from qos_jax.policies.compiled import compile_router
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.han import HANConfig
from qos_jax.training.scenario_config import ScenarioConfig
from qos_jax.training.train_config import TrainConfig

HAN = HANConfig(layers=1, hidden=8, heads=2)


@pytest.fixture(scope="module")
def work():
    return draw_work(2, 3, 12, "prefill_first", 0, arrival_rate_per_s=30.0)


def test_both_paths_are_measured_and_equal(work):
    rows = measure_han_paths(work, HAN, graphs=3, repeats=1)
    names = [f"{path} {kind}" for kind in ("forward", "gradient") for path in ("structured", "generic")]
    assert [row.name for row in rows] == names
    for structured, generic in (rows[:2], rows[2:]):
        assert generic.figures["generic_over_structured"] == pytest.approx(generic.cpu_s / structured.cpu_s)
        assert structured.figures == {}
    one = {"a": jnp.array([1.0, 2.0])}
    check_equal(one, {"a": jnp.array([1.0, 2.00001])}, "forward")
    with pytest.raises(RuntimeError, match=r"forward .* differs in \['a'\].*defect"):
        check_equal(one, {"a": jnp.array([1.0, 2.01])}, "forward")


def test_decisions_are_those_of_the_router(work):
    router = policy("projected_greedy")
    row = measure_decision(work, router, calls=20)
    assert row.decisions == 20
    assert 0 < row.figures["median_call_s"] <= row.figures["p99_call_s"]
    seen = busy_observations(work, router, 4)
    assert bool(jnp.any(seen.live))
    expected = jax.jit(jax.vmap(lambda one: router.router(router.params, jax.random.key(0), one)))(seen)
    observations = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], seen) for i in range(4)]
    decide = compile_router(router, observations[0])
    assert [decide(one) for one in observations] == list(np.asarray(expected))
    with pytest.raises(TypeError):
        decide(dataclasses.replace(observations[0], step=np.zeros(2, np.int32)))
    with pytest.raises(ValueError, match="oracle"):
        compile_router(policy("clairvoyant_greedy"), observations[0])


SMALL = TrainConfig(
    network=NetworkConfig(encoder="sets", hidden=8),
    scenario=ScenarioConfig(table_rows=8),
    search=SearchConfig(candidates=4, num_envs=3, steps=5),
    distil=DistilConfig(num_envs=4, steps=2, horizon=2, capacity=16, batch_size=4, quality_rows=4),
)
CPU_S = {"update": 10.0, "simulated": 1.0, "with_features": 3.0, "forward": 2.0, "tried": 4.0}


@pytest.fixture
def ran(monkeypatch):
    """Give every program a known time, and return the names of those called.

    Programs are traced, and neither compiled nor run; an update, which the learners' tests run, is not even
    traced.
    """
    called = []

    def compile_program(function, *arguments, donate=()):
        name = function.__name__
        result = (arguments[0], {}) if name == "update" else jax.eval_shape(function, *arguments)
        return Program(lambda *_: called.append(name) or result, compile_s=2.0, bytes=1200)

    def timed(call, repeats):
        return call(), {"wall_s": 0.5, "cpu_s": CPU_S[called[-1]]}

    monkeypatch.setattr(training, "compile_program", compile_program)
    monkeypatch.setattr(training, "timed", timed)
    return called


def test_training_is_measured_with_its_parts(ran):
    plan = training_plan(SMALL, "distil", 2)
    assert [phase.name for phase in plan.phases] == ["distil"]
    row = measure_training(plan, repeats=1)
    assert ran == list(CPU_S)
    assert row.key == ("distil", "sets distil", 2, 6, 16)
    assert row.decisions == 2 * (2 + 3 * 2)
    assert (row.wall_s, row.cpu_s, row.compile_s) == (0.5, 10.0, 2.0)
    assert row.program_bytes_per_environment == 600
    parts = {"simulator": 0.1, "features": 0.2, "forward": 0.2, "trials": 0.4, "update": 0.1}
    assert row.figures == pytest.approx({f"{part}_share": share for part, share in parts.items()})
    assert row.moved_bytes_per_decision > 2 * row.state_bytes_per_environment
    # Whatever a preset trains: each is measured alone.
    bare = dataclasses.replace(SMALL, agent="none", distil=dataclasses.replace(SMALL.distil, updates=0))
    for agent in AGENTS:
        (phase,) = training_plan(bare, agent, None).phases
        assert phase.name == agent
    assert training_plan(SMALL, "sac", 8192).config.sac.replay_capacity >= 8192 * 16


def test_the_search_is_measured_whole(ran):
    row = measure_search(training_plan(SMALL, "search", 2), repeats=1)
    assert ran == ["update"]
    assert row.key == ("search", "4 candidates", 2, 6, 16)
    assert row.decisions == 4 * 2 * 5
    assert (row.wall_s, row.compile_s, row.program_bytes_per_environment) == (0.5, 2.0, 600)
