"""Hyper-parameters as traced numbers: what may be traced, how axes are written, and that values arrive."""

import dataclasses

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.policies.types import PREDICTIONS
from qos_jax.training.hyper import Together, checked, grid, numbers_of, unchecked
from qos_jax.training.plan import load_plan, over_routers
from tests.training.test_plan import CONFIG

SAC = dataclasses.replace(
    CONFIG,
    agent="sac",
    search=dataclasses.replace(CONFIG.search, updates=0),
    distil=dataclasses.replace(CONFIG.distil, updates=0),
    sac=dataclasses.replace(
        CONFIG.sac, num_envs=2, steps_per_update=4, batch_size=4, replay_capacity=32, warmup_decisions=4
    ),
)
# Without profiles nothing is projected: programs are ready sooner.
PPO = dataclasses.replace(
    SAC, agent="ppo", network=dataclasses.replace(SAC.network, information=PREDICTIONS, residual=False)
)


@pytest.mark.parametrize("config", [CONFIG, SAC], ids=["search, distil, ppo", "sac"])
def test_every_number_that_may_be_traced_is_by_every_phase(config):
    """No check and no Python branch looks at it: shapes come out, of parameters and of metrics."""
    numbers = numbers_of(config)
    assert "impact_weight" in numbers
    groups = {name.partition(".")[0] for name in numbers} - {"impact_weight"}
    assert groups == ({"sac"} if config is SAC else {"search", "distil", "ppo"})
    plan = load_plan(config)

    def trained(key, values):
        params, metrics = None, []
        for phase in plan.phases_of(unchecked(config, values)):
            state, told = phase.learner.update(phase.learner.init(key, params))
            params, metrics = phase.learner.params(state), [*metrics, told]
        return params, metrics

    values = {name: np.float32(value) for name, value in numbers.items()}
    params, metrics = jax.eval_shape(trained, jax.random.key(0), values)
    assert len(metrics) == len(plan.phases)
    assert all(leaf.shape == () for leaf in jax.tree.leaves(metrics))
    assert jax.tree.leaves(params)


def test_traced_values_train_as_the_same_constants_do():
    settings = grid(PPO, ["ppo.learning_rate=1e-3,3e-3", "ppo.clip=0.1,0.3"])
    assert [tuple(setting.values()) for setting in settings] == [
        (1e-3, 0.1),
        (1e-3, 0.3),
        (3e-3, 0.1),
        (3e-3, 0.3),
    ]
    plan = load_plan(PPO)
    (many,) = over_routers(plan, Together(1, settings)).phases
    keys = jax.random.split(jax.random.key(0), 1)
    (phase,) = load_plan(checked(PPO, settings[3])).phases

    @jax.jit
    def trained_together(keys):
        states = many.learner.init(keys)
        last = jax.tree.map(lambda leaf: leaf[3], states)
        return last, many.learner.params(states), many.learner.params(many.learner.update(states)[0])

    @jax.jit
    def trained_alone(state):
        return phase.learner.params(phase.learner.update(state)[0])

    start, before, together = trained_together(keys[np.zeros(4, int)])

    def weights(params, *router):
        return np.concatenate(
            [np.ravel(np.asarray(leaf)[router]) for leaf in jax.tree.leaves(params["params"])]
        )

    each = [weights(together, router) for router in range(4)]
    np.testing.assert_allclose(each[3], weights(trained_alone(start)), rtol=1e-4, atol=1e-7)
    assert np.max(np.abs(each[3] - each[1])) > 1e-5  # by learning rate
    assert np.max(np.abs(each[3] - weights(before, 3))) > 1e-5


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        (["ppo.clip"], "is not NAME=VALUE"),
        (["ppo.clip="], "is not NAME=VALUE"),
        (["ppo.clop=0.1"], r"did you mean 'ppo.clip'"),
        (["ppo.num_envs=4"], "can be traced"),
        (["sac.gamma=0.9"], "can be traced"),  # sac does not train here
        (["ppo.clip=0.1,x"], "not numbers"),
        (["ppo.clip=0.1,0.1"], "repeats"),
        (["ppo.clip=0.1", "ppo.clip=0.2"], "twice"),
        (["ppo.gamma=0.9,1.5"], r"ppo.gamma = 1.5 is refused \(.*below 1"),
    ],
)
def test_axes_are_checked(axes, told):
    with pytest.raises(InputError, match=told):
        grid(PPO, axes)


def test_no_axis_is_one_setting():
    assert grid(PPO, []) == ({},)
    assert Together(3).record() == {"vmap_seeds": 3}
    assert [Together(2, ({"ppo.clip": 0.1}, {"ppo.clip": 0.25})).label(router) for router in range(4)] == [
        "ppo.clip=0.1/0",
        "ppo.clip=0.1/1",
        "ppo.clip=0.25/0",
        "ppo.clip=0.25/1",
    ]
