"""Plans of several seeds at once: every array of every phase gets an axis for them."""

import functools

import jax
import pytest

from qos_jax.learning.distil import DistilConfig
from qos_jax.learning.plan import load_plan, over_seeds
from qos_jax.learning.ppo import PPOConfig
from qos_jax.learning.search import SearchConfig
from qos_jax.learning.train_config import TrainConfig
from qos_jax.policies.actor_critic import NetworkConfig

SEEDS = 3
CONFIG = TrainConfig(
    fleet="paper3",
    max_steps=16,
    network=NetworkConfig(encoder="sets", hidden=8),
    search=SearchConfig(updates=1, candidates=2, num_envs=2, steps=4),
    distil=DistilConfig(updates=1, num_envs=2, steps=2, horizon=2, capacity=8, batch_size=4, quality_rows=4),
    ppo=PPOConfig(num_envs=2, rollout_steps=4, total_updates=1, minibatches=1, epochs=1),
)


@pytest.mark.parametrize("index", range(3))
def test_arrays_of_every_phase_get_an_axis_of_seeds(index):
    plan = load_plan(CONFIG)
    one, many = (each.phases[index].learner for each in (plan, over_seeds(plan, SEEDS)))
    keys = jax.random.split(jax.random.key(0), SEEDS)
    start = jax.eval_shape(functools.partial(one.init, params=None), keys[0])
    starts = jax.eval_shape(functools.partial(many.init, params=None), keys)
    params = jax.eval_shape(one.params, start)
    pairs = [
        (starts, start),
        (jax.eval_shape(many.update, starts), jax.eval_shape(one.update, start)),
        (jax.eval_shape(many.params, starts), params),
        (jax.eval_shape(many.init, keys, jax.eval_shape(many.params, starts)), start),
    ]
    for ours, theirs in pairs:
        jax.tree.map(assert_wider, ours, theirs)
    assert many.decisions_per_update == SEEDS * one.decisions_per_update


def assert_wider(of_all, of_one):
    assert of_all.shape == (SEEDS, *of_one.shape)
    assert of_all.dtype == of_one.dtype
