"""Improvement by simulation: its loss by hand, its ring, and that an update learns and repeats itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.learning.distil import DistilConfig, _value_loss, make_distil
from qos_jax.learning.trials import add_trials, empty_trials
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.greedy_params import greedy_params
from qos_jax.policies.router_input import router_input
from qos_jax.workload import poisson
from tests.routing import scenes, seen

NETWORK = NetworkConfig(encoder="sets", hidden=8)
CONFIG = DistilConfig(
    updates=8, num_envs=4, steps=2, horizon=3, candidates=2, capacity=16, batch_size=8, quality_rows=8
)


def test_the_loss_is_of_differences_between_actions_that_were_valid():
    inputs = jax.jit(router_input)(seen.observation(), greedy_params())
    inputs = jax.tree.map(lambda leaf: jnp.asarray(np.stack([leaf] * 2)), inputs)
    scores = jnp.array([[0.5, 0.1], [0.3, 0.9]], jnp.float32)
    action = jnp.array([[0, 1], [1, 0]], jnp.int32)
    value = jnp.array([[7.0, 6.9], [2.0, 2.5]], jnp.float32)
    loss, explained = _value_loss(scores, inputs, action, value)
    # Predicted differences 0.4 and 0.6, true ones 0.1 and -0.5: half a difference off at each of four.
    missed = 2 * 0.15**2 + 2 * 0.55**2
    assert float(loss) == pytest.approx(missed / 4, rel=1e-4)
    assert float(explained) == pytest.approx(1 - missed / (2 * 0.05**2 + 2 * 0.25**2), rel=1e-4)
    # A constant added to the values or the scores of a state is nothing.
    again, _ = _value_loss(scores + 3.0, inputs, action, value - 5.0)
    assert float(again) == pytest.approx(float(loss), rel=1e-3)


def test_the_ring_keeps_the_latest():
    one = {"x": jnp.zeros((3,), jnp.float32)}
    trials = empty_trials(one, size=4, candidates=2)
    for k in range(1, 6):
        new = {"x": jnp.full((2, *one["x"].shape), k, jnp.float32)}
        trials = add_trials(trials, new, jnp.full((2, 2), k, jnp.int32), jnp.full((2, 2), k, jnp.float32))
    np.testing.assert_array_equal(np.asarray(trials.value[:, 0]), [5, 5, 4, 4])
    np.testing.assert_array_equal(np.asarray(trials.input["x"][:, 0]), [5, 5, 4, 4])
    assert int(trials.count) == 10


def test_an_update_changes_the_network_counts_and_repeats_itself():
    env = scenes.environment(max_steps=8)
    learner = make_distil(env, lambda key: scenes.process_params(poisson(8.0)), NETWORK, CONFIG)
    state = jax.jit(learner.init)(jax.random.key(0))
    update = jax.jit(learner.update)
    one, metrics = update(state)
    same, _ = update(state)
    two, _ = update(one)
    assert update._cache_size() == 1

    def leaves(state):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(learner.params(state))]

    assert all(np.array_equal(a, b) for a, b in zip(leaves(one), leaves(same), strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(leaves(one), leaves(two), strict=True))
    # What is learned is the running mean, which starts where the weights do.
    for mean, before, last in zip(
        leaves(two), leaves(one), map(np.asarray, jax.tree.leaves(two.params)), strict=True
    ):
        np.testing.assert_allclose(mean, 0.98 * before + 0.02 * last, rtol=1e-5, atol=1e-8)
    assert int(two.update) == 2
    assert int(two.trials.count) == 2 * CONFIG.num_envs
    assert all(np.isfinite(value) for value in jax.tree.leaves(jax.device_get(metrics)))
    tried = np.asarray(two.trials.action[: 2 * CONFIG.num_envs])
    assert np.all(tried[:, 0] != tried[:, 1])


@pytest.mark.parametrize(
    ("field", "value"), [("num_envs", 0), ("candidates", 1), ("capacity", 3), ("average", 1.0)]
)
def test_bad_settings_are_refused(field, value):
    with pytest.raises(InputError, match=f"field '{field}'"):
        DistilConfig(**{"num_envs": 4, field: value})
