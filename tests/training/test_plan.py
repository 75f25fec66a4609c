"""What a plan makes of a configuration, of several seeds at once too, and which combinations are refused."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.learning.distil import DistilConfig
from qos_jax.learning.ppo import PPOConfig
from qos_jax.learning.search import SearchConfig
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.learned import fresh_parameters
from qos_jax.policies.router_input import GREEDY
from qos_jax.runs.checkpoint import load_policy, save_policy
from qos_jax.training.hyper import Together
from qos_jax.training.loop import TrainingRun
from qos_jax.training.plan import load_plan, over_routers
from qos_jax.training.presets import PRESETS
from qos_jax.training.run import training_settings
from qos_jax.training.train_config import TrainConfig

SEEDS = 3
CONFIG = TrainConfig(
    fleet=str(Path(__file__).parents[1] / "launch" / "three_small.csv"),
    latency_limit_s=0.03,
    max_steps=16,
    network=NetworkConfig(encoder="sets", hidden=8),
    search=SearchConfig(updates=1, candidates=2, num_envs=2, steps=4),
    distil=DistilConfig(updates=1, num_envs=2, steps=2, horizon=2, capacity=8, batch_size=4, quality_rows=4),
    ppo=PPOConfig(num_envs=2, rollout_steps=4, total_updates=1, minibatches=1, epochs=1),
)


@pytest.mark.parametrize("index", range(3))
def test_arrays_of_every_phase_get_an_axis_of_seeds(index):
    single = load_plan(CONFIG)
    one, many = (each.phases[index].learner for each in (single, over_routers(single, Together(SEEDS))))
    keys = jax.random.split(jax.random.key(0), SEEDS)
    start = jax.eval_shape(functools.partial(one.init, params=None), keys[0])
    starts = jax.eval_shape(functools.partial(many.init, params=None), keys)
    params = jax.eval_shape(one.params, start)
    updated, metrics = jax.eval_shape(many.update, starts)
    pairs = [
        (starts, start),
        (updated, start),
        (jax.eval_shape(many.params, starts), params),
        (jax.eval_shape(many.init, keys, jax.eval_shape(many.params, starts)), start),
    ]
    for ours, theirs in pairs:
        jax.tree.map(assert_wider, ours, theirs)
    assert {(leaf.shape, str(leaf.dtype)) for leaf in metrics.values()} == {((SEEDS,), "float32")}
    assert many.decisions_per_update == SEEDS * one.decisions_per_update


def assert_wider(of_all, of_one):
    assert of_all.shape == (SEEDS, *of_one.shape)
    assert of_all.dtype == of_one.dtype


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A router of the network of ``CONFIG``, with numbers of its own, in a folder."""
    weights = fresh_parameters(CONFIG.network, 3, 1, jax.random.key(7))
    folder = tmp_path_factory.mktemp("trained") / "router"
    numbers = {**weights[GREEDY], "congestion_price": jnp.float32(0.123)}
    save_policy(folder, {**weights, GREEDY: numbers}, CONFIG)
    return folder


@pytest.mark.parametrize("together", [None, Together(SEEDS)])
def test_a_run_goes_on_from_a_trained_router(trained, together):
    plan = load_plan(dataclasses.replace(CONFIG, start=str(trained)))
    if together is not None:
        plan = over_routers(plan, together)
    run = TrainingRun(plan, None, together=together)
    state = run.start(0, None)
    weights, _ = load_policy(trained)
    same = weights if together is None else jax.tree.map(lambda leaf: jnp.stack([leaf] * SEEDS), weights)
    jax.tree.map(np.testing.assert_array_equal, plan.phases[0].learner.params(state), same)
    settings = training_settings(plan, together)
    assert settings["start"]["path"] == str(trained)
    assert len(settings["start"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network": NetworkConfig(encoder="sets", hidden=16)}, "hidden=8, and 16 .*network.hidden"),
        ({"start": "nowhere"}, "nowhere: there is no such folder"),
    ],
)
def test_a_router_that_training_cannot_go_on_from_is_refused(trained, change, says):
    with pytest.raises(InputError, match=says):
        load_plan(dataclasses.replace(CONFIG, **{"start": str(trained), **change}))


def test_a_learned_impact_may_be_searched_alone_where_it_is_there_already():
    searched = dataclasses.replace(PRESETS["predictions"], agent="none", start="runs/predictions")
    assert searched.search.updates > 0


TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{0.5 * i},{100 + i},{20 + i}\n" for i in range(12)
)


def test_a_trace_is_cut_to_its_window_and_is_what_episodes_replay(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    cut = dataclasses.replace(CONFIG, trace=str(file), trace_start_s=1.0, trace_end_s=3.0)
    found = load_plan(cut)
    assert found.setting.trace is not None
    np.testing.assert_array_equal(found.setting.trace.prompt_tokens, [102, 103, 104, 105])
    learner = found.phases[0].learner
    state, metrics = jax.jit(lambda key: learner.update(learner.init(key)))(jax.random.key(0))
    assert np.isfinite(metrics["qos"])
    assert int(state.update) == 1
    assert load_plan(CONFIG).setting.trace is None


@pytest.mark.parametrize(
    ("text", "changes", "says"),
    [
        (None, {}, "trace.csv"),
        (TRACE, {"trace_start_s": 3.0, "trace_end_s": 1.0}, "no window"),
        (TRACE, {"trace_start_s": 100.0}, "choose a window"),
        ("arrival_s,prompt_tokens,output_tokens\n0,9,3\n0,8,4\n", {}, "at one instant"),
    ],
)
def test_a_trace_that_cannot_be_trained_on_is_refused(tmp_path, text, changes, says):
    file = tmp_path / "trace.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=says):
        load_plan(dataclasses.replace(CONFIG, trace=str(file), **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {
                "search": SearchConfig(updates=1),
                "network": NetworkConfig(information="predictions", residual=False),
            },
            "network.information.*set search.updates=0",
        ),
        ({"search": SearchConfig(updates=1, numbers=("margin",))}, "search.numbers.*margin"),
        ({"distil": DistilConfig(updates=1)}, "distil.updates.*set it to 0"),
        ({"agent": "sac"}, "network.learned_impact.*set agent=ppo"),
        ({"agent": "none"}, "network.learned_impact.*set agent=ppo"),
        ({"agent": "sac", "start": "runs/predictions"}, "network.learned_impact.*set agent=ppo"),
    ],
)
def test_what_cannot_train_a_router_without_profiles_is_refused(changes, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(PRESETS["predictions"], **changes)
