"""Rewards: the QoS paid, the paper's penalty, and potential terms that telescope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing import paper_impact, qos_in_flight
from qos_jax.workload import poisson
from tests.routing.scenes import EXPERTS, environment, process_params, random_actions, replay_params, rollout

T = 40
KEY = jax.random.key(0)


def test_potential_telescopes_over_a_replay():
    env = environment(reward="potential")
    _, results, _ = rollout(env, KEY, replay_params(0, T, discount=1.0), random_actions(0, T))
    qos = float(jnp.sum(results.info.passed.qos))
    assert qos > 1.0
    assert float(jnp.sum(results.reward)) == pytest.approx(qos, abs=1e-4)
    # It is not the QoS reward itself: the credit comes earlier.
    assert float(jnp.max(jnp.abs(results.reward - jnp.sum(results.info.passed.qos, axis=-1)))) > 0.1


def test_potential_telescopes_up_to_what_is_in_flight_when_truncated():
    env, params = environment(reward="potential", max_steps=T), process_params(poisson(15.0), discount=1.0)
    _, results, last = rollout(env, KEY, params, random_actions(0, T))
    ahead = float(qos_in_flight(env.true_observation(params, last)))
    assert ahead > 0.0
    qos = float(jnp.sum(results.info.passed.qos))
    assert float(jnp.sum(results.reward)) == pytest.approx(qos + ahead, abs=1e-4)


def test_potential_step_by_step_with_a_discount():
    env, params = environment(reward="potential"), replay_params(0, T, discount=0.9)
    states, results, _ = rollout(env, KEY, params, random_actions(0, T))
    phi = jax.jit(jax.vmap(lambda s: qos_in_flight(env.true_observation(params, s))))(states)
    after = jnp.append(phi[1:], 0.0)  # the end has no future
    qos = jnp.sum(results.info.passed.qos, axis=-1)
    np.testing.assert_allclose(results.reward, qos + 0.9 * after - phi, atol=1e-5)


def test_paper_reward_is_qos_less_the_weighted_penalty_of_the_chosen():
    weight = 0.5
    env = environment(reward="paper", allow_drop=True)
    params = replay_params(0, T, impact_weight=weight, mean_gap_s=0.03)
    actions = random_actions(0, T, EXPERTS + 1)
    states, results, _ = rollout(env, KEY, params, actions)
    penalty = jax.jit(jax.vmap(lambda s: paper_impact(env.observation(params, s))))(states)
    # Column N: dropping costs the others nothing.
    paid = jnp.append(penalty, jnp.zeros((T, 1)), axis=1)[jnp.arange(T), actions]
    assert int(jnp.sum(paid > 0.0)) >= 3
    qos = jnp.sum(results.info.passed.qos, axis=-1)
    np.testing.assert_allclose(results.reward, qos - weight * paid, atol=1e-6)
