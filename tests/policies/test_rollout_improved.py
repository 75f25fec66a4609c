"""The policy-improvement oracle: its imagined states, its choices, and that it improves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from qos_jax.policies.greedy_params import greedy_params
from qos_jax.policies.heuristics import projected_greedy
from qos_jax.policies.rollout_improved import RolloutConfig, imagined, rollout_improved
from qos_jax.workload import poisson
from tests.routing import scenes, seen

CONFIG = RolloutConfig(scenes.SERVING["prefill_first"], futures=8, horizon=10)


@pytest.fixture(scope="module")
def act():
    """Compiled once: the router is the same function for equal configurations."""
    return jax.jit(rollout_improved(CONFIG, scenes.table(0, 64), poisson(8.0)).router)


@pytest.fixture(scope="module")
def observations():
    params = scenes.replay_params(3, 40, mean_gap_s=0.05)
    _, results, _ = scenes.rollout(
        scenes.environment(), jax.random.key(0), params, scenes.random_actions(3, 40)
    )
    return results.observation


def test_imagined_states_look_as_seen(observations):
    keys = jax.random.split(jax.random.key(1), 40)
    states = jax.jit(jax.vmap(imagined))(keys, observations)
    serving = states.fleet.serving
    live = np.asarray(observations.live)
    np.testing.assert_array_equal(serving.live, live)
    np.testing.assert_array_equal(serving.running, observations.running)
    np.testing.assert_array_equal(states.fleet.generated_tokens, observations.slot_generated_tokens)
    assert np.all(np.asarray(serving.left_tokens)[live] >= 1)
    np.testing.assert_array_equal(
        np.asarray(states.fleet.output_tokens)[live],
        np.asarray(serving.left_tokens + observations.slot_generated_tokens)[live],
    )


def test_lengths_follow_the_prediction_given_survival():
    """Against the truncated log-normal, by a Kolmogorov-Smirnov test on 4,000 draws."""
    view = seen.observation(slots=1, generated=30, predicted=20.0, length_log_std=0.5, predicted_new=200.0)
    states = jax.jit(jax.vmap(imagined, (0, None)))(jax.random.split(jax.random.key(2), 4000), view)
    beyond = np.asarray(states.fleet.output_tokens[:, 0, 0], np.float64)
    law = stats.lognorm(0.5, scale=20.0)

    def cdf(x):
        return (law.cdf(x + 0.5) - law.cdf(30.0)) / law.sf(30.0)

    grid = np.array([35.0, 45.0, 60.0, 90.0])
    share = np.mean(beyond[:, None] <= grid, axis=0)
    np.testing.assert_allclose(share, cdf(grid), atol=4 * 0.5 / np.sqrt(4000))
    own = np.log(np.asarray(states.request.output_tokens[:, 0], np.float64) / 200.0)
    assert abs(own.mean()) < 4 * 0.5 / np.sqrt(4000) + 0.01
    assert own.std() == pytest.approx(0.5, rel=0.1)


def test_an_unbeatable_margin_leaves_the_heuristic(act, observations):
    policy = rollout_improved(CONFIG, scenes.table(0, 64), poisson(8.0), margin=1e9)
    keys = jax.random.split(jax.random.key(3), 40)
    wanted = jax.vmap(projected_greedy, (None, 0, 0))(greedy_params(), keys, observations)
    for step in range(0, 40, 8):
        view = jax.tree.map(lambda leaf, step=step: leaf[step], observations)
        assert int(act(policy.params, keys[step], view)) == int(wanted[step])


def test_it_sees_what_the_heuristic_does_not(act):
    """A crowd is coming that only the good expert can serve within L: it is worth keeping free."""
    fleet = scenes.roomy(
        max_running=[1, 4, 4],
        max_waiting=[4, 4, 4],
        decode_base_s=[2**-6, 2**-5, 2**-5],
        prefill_base_s=[2**-6] * 3,
    )
    table = scenes.table(0, 64)
    table = dataclasses.replace(
        table,
        predicted_quality=np.tile(np.array([[1.0, 0.0, 0.0]], np.float32), (64, 1)),
        predicted_output_tokens=np.full((64, 3), 4.0, np.float32),
        output_tokens=np.full((64, 3), 4, np.int32),
    )
    policy = rollout_improved(CONFIG, table, poisson(6.0))
    view = idle(fleet, prompt=8, output=30.0, quality=[0.05, 0.049, 0.0])
    assert int(projected_greedy(greedy_params(congestion_price=0.0), jax.random.key(0), view)) == 0
    assert int(act(policy.params, jax.random.key(4), view)) == 1


def idle(fleet, prompt, output, quality):
    """An idle fleet and one request."""
    env = scenes.environment()
    params = scenes.process_params(poisson(1.0), fleet, latency_limit_s=0.08)
    _, view = env.reset(jax.random.key(0), params)
    return dataclasses.replace(
        view,
        prompt_tokens=jnp.int32(prompt),
        predicted_output_tokens=jnp.full((3,), output, jnp.float32),
        predicted_quality=jnp.asarray(quality, jnp.float32),
        length_log_std=jnp.full((3,), 0.05, jnp.float32),
    )


def test_counts_below_one_are_refused():
    with pytest.raises(ValueError, match="futures"):
        RolloutConfig(scenes.SERVING["prefill_first"], futures=0)
