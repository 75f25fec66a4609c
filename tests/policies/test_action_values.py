"""The value of an action is what plain stepping comes to after it, in a future common to all actions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies.action_values import action_values, with_expected_quality
from qos_jax.policies.greedy_params import greedy_params
from qos_jax.policies.heuristics import power_of_two, projected_greedy
from qos_jax.routing.believed_quality import expected_quality, quality_fit
from qos_jax.routing.fleet_state import pass_time
from qos_jax.workload import poisson
from tests.routing.scenes import EXPERTS, SERVING, environment, process_params, random_actions, rollout

HORIZON, DROP = 6, EXPERTS
ENV = environment()
PARAMS = process_params(poisson(20.0))
GREEDY = greedy_params()
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def state():
    """A crowded edge with a request to be routed."""
    reached = rollout(ENV, jax.random.key(0), PARAMS, random_actions(0, 20))[2]
    assert int(jnp.sum(reached.fleet.serving.live)) > 4
    return reached


@pytest.fixture(scope="module")
def values():
    """(params, state, actions, key) -> values, the base drawing at random."""
    return jax.jit(
        lambda params, state, actions, key: action_values(
            ENV, params, state, actions, key, power_of_two, None, HORIZON
        )
    )


@pytest.fixture(scope="module")
def step():
    """One step at a time, as anyone would take it: (state, result) and what the base would choose."""
    take = jax.jit(ENV.step)
    choose = jax.jit(lambda state, key: power_of_two(None, key, ENV.observation(PARAMS, state)))
    return take, choose


def drained_qos(state):
    """What is in flight comes to, in steps of a tenth of a second in which nothing arrives."""
    pass_on = jax.jit(
        lambda fleet: pass_time(
            SERVING["prefill_first"], PARAMS.profile, fleet, jnp.float32(0.1), PARAMS.latency_limit_s
        )
    )
    fleet, total, steps = state.fleet, 0.0, 0
    while bool(jnp.any(fleet.serving.live)):
        fleet, passed = pass_on(fleet)
        total, steps = total + float(jnp.sum(passed.qos)), steps + 1
        assert steps < 1000
    return total


def plainly(step, state, first, key):
    """QoS of a rollout that starts with ``first`` (None = the base's own choice), and that choice."""
    take, choose = step
    keys = jax.random.split(key, 2 * HORIZON).reshape(HORIZON, 2)
    total, own = 0.0, None
    for index in range(HORIZON):
        chosen = choose(state, keys[index, 1])
        if index == 0:
            own = int(chosen)
            chosen = chosen if first is None else jnp.int32(first)
        state, result = take(keys[index, 0], state, chosen, PARAMS)
        total += float(result.reward)
    return total + drained_qos(state), own


def test_values_are_those_of_plain_stepping(values, step, state):
    actions = jnp.arange(EXPERTS + 1)
    found = np.asarray(values(PARAMS, state, actions, KEY))
    expected = [plainly(step, state, int(action), KEY)[0] for action in actions]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.ptp(found) > 0.05  # it matters
    own, chosen = plainly(step, state, None, KEY)
    np.testing.assert_allclose(found[chosen], own, rtol=1e-4)


def test_equal_actions_are_worth_the_same(values, state):
    """Everything drawn is common to the actions, and the order they are named in says nothing."""
    first = np.asarray(values(PARAMS, state, jnp.array([2, 0, 2, DROP]), KEY))
    assert first[0] == first[2]
    again = np.asarray(values(PARAMS, state, jnp.array([0, DROP, 2, 0]), KEY))
    np.testing.assert_array_equal(again, first[[1, 3, 0, 1]])
    other = np.asarray(values(PARAMS, state, jnp.array([2, 0, 2, DROP]), jax.random.key(4)))
    assert not np.array_equal(first, other)


def test_differences_are_less_noisy_than_values(values, state):
    """What common random numbers are for."""
    keys = jax.random.split(jax.random.key(5), 48)
    drawn = np.stack([values(PARAMS, state, jnp.array([0, 1, 2, DROP]), key) for key in keys])
    if_independent = np.hypot(np.std(drawn[:, 0]), np.std(drawn[:, 1]))
    assert 0.0 < np.std(drawn[:, 0] - drawn[:, 1]) < 0.5 * if_independent


def test_the_reward_kind_does_not_matter(values, state):
    potential = environment(reward="potential")
    found = jax.jit(
        lambda key: action_values(potential, PARAMS, state, jnp.arange(4), key, power_of_two, None, HORIZON)
    )(KEY)
    np.testing.assert_allclose(found, values(PARAMS, state, jnp.arange(4), KEY), rtol=1e-6)


def test_a_horizon_of_one_is_the_first_action_and_the_drain(state):
    """Then nothing is left to the base: only the request's own worth and its neighbours'."""
    found = jax.jit(
        lambda key: action_values(ENV, PARAMS, state, jnp.arange(4), key, projected_greedy, GREEDY, 1)
    )(KEY)
    again = jax.jit(lambda key: action_values(ENV, PARAMS, state, jnp.arange(4), key, power_of_two, None, 1))(
        KEY
    )
    np.testing.assert_array_equal(found, again)


def test_what_the_state_reached_is_worth_may_be_told_instead_of_draining_it(state, step):
    def later(seen):
        return jnp.sum(seen.live, dtype=jnp.float32)

    take, _ = step
    found = jax.jit(
        lambda key: action_values(ENV, PARAMS, state, jnp.arange(4), key, power_of_two, None, 1, later)
    )(KEY)
    key = jax.random.split(KEY, 2)[0]
    reached = [take(key, state, jnp.int32(action), PARAMS) for action in range(4)]
    worth = [float(jnp.sum(new.fleet.serving.live)) + float(result.reward) for new, result in reached]
    assert len(set(worth)) > 1
    np.testing.assert_allclose(found, worth, rtol=1e-5)


def test_expected_quality_changes_no_times(values, state):
    params, expected = with_expected_quality(PARAMS, state)
    fit = quality_fit(PARAMS.table)
    table, request = PARAMS.table, state.request
    np.testing.assert_allclose(
        params.table.quality, expected_quality(fit, table.predicted_quality), rtol=1e-6
    )
    np.testing.assert_allclose(
        expected.request.quality, expected_quality(fit, request.predicted_quality), rtol=1e-6
    )
    np.testing.assert_array_equal(expected.fleet.quality, state.fleet.quality)
    ends = [
        _end(p, dataclasses.replace(s, step=jnp.int32(0))) for p, s in ((PARAMS, state), (params, expected))
    ]
    jax.tree.map(np.testing.assert_array_equal, ends[0].fleet.serving, ends[1].fleet.serving)
    assert int(ends[0].completed) == int(ends[1].completed) > int(state.completed)
    known = values(params, expected, jnp.arange(4), KEY)
    assert not np.array_equal(known, values(PARAMS, state, jnp.arange(4), KEY))
    assert np.all(np.isfinite(known))


@jax.jit
def _end(params, state):
    def step(state, key):
        return ENV.step(key, state, jnp.int32(1), params)[0], None

    return jax.lax.scan(step, state, jax.random.split(KEY, 20))[0]
