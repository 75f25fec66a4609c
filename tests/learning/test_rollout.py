"""Experience: what belongs together stays together, episodes end and are renewed, nothing is lost between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.learning.rollout import renew_lanes, rollout, start_lanes
from qos_jax.policies.greedy_params import greedy_params
from qos_jax.policies.router_input import router_input
from qos_jax.routing import make_params
from qos_jax.serving import ServiceLimits
from qos_jax.workload import poisson
from tests.routing.scenes import LENGTH_LOG_STD, environment, episode, process_params, profile, table

B, T = 6, 12
KEY = jax.random.key(0)
GREEDY = greedy_params()
LIVE = process_params(poisson(40.0))
REPLAY_LENGTH = 8
TABLE = table(0, REPLAY_LENGTH)


def sample_live(key):
    """Endless arrivals; a latency limit that tells draws apart."""
    return LIVE.replace(limits=ServiceLimits(jax.random.uniform(key, minval=0.05, maxval=0.07)))


def sample_replay(key):
    limit_s = jax.random.uniform(key, minval=0.05, maxval=0.07)
    return make_params(profile(), TABLE, limit_s, LENGTH_LOG_STD, episode=episode(0, REPLAY_LENGTH))


def act(key, inputs):
    """Any expert, evenly, available or not; keeps what it saw."""
    return jax.random.randint(key, (B,), 0, 3), inputs


def scene(sample, max_steps):
    env = environment(max_steps=max_steps)
    start = jax.jit(lambda key: start_lanes(env, sample, GREEDY, key, B))
    go = jax.jit(lambda lanes: rollout(env, GREEDY, act, lanes, T))
    renew = jax.jit(lambda lanes: renew_lanes(env, sample, GREEDY, lanes, T))
    return start, go, renew


@pytest.fixture(scope="module")
def live():
    return scene(sample_live, 3 * T)


@pytest.fixture(scope="module")
def replay():
    return scene(sample_replay, 1000)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), a, b)


@jax.jit
def observed(lanes):
    """What is seen of the state that the lanes are in."""
    env = environment()
    return jax.vmap(lambda s, p: router_input(env.observation(p, s), GREEDY))(lanes.state, lanes.params)


def test_the_potential_is_carried_from_step_to_step_and_over_ends():
    """The reward pays the change of Phi of the states, computed once each; a replay starts anew from 0."""
    env = environment(reward="potential")
    lanes = jax.jit(lambda key: start_lanes(env, sample_replay, GREEDY, key, B))(KEY)

    def keep(key, inputs):
        return act(key, inputs)[0], None

    def go(lanes):
        last, steps, _ = rollout(env, GREEDY, keep, lanes, T)
        return last, steps, jax.vmap(env.potential)(last.params, last.state)

    _, steps, ahead = jax.jit(go)(lanes)
    assert np.any(steps.terminated)
    discount = lanes.params.discount
    # Of each lane and episode, qos = reward + Phi paid back: sums telescope but for the discount.
    phi = np.zeros((T + 1, B))
    phi[T] = ahead
    for t in reversed(range(T)):
        after = np.where(steps.terminated[t], 0.0, phi[t + 1])
        phi[t] = steps.qos[t] + discount * after - steps.reward[t]
    np.testing.assert_allclose(phi[0], 0.0, atol=1e-3)  # an empty fleet
    ends = np.argwhere(np.asarray(steps.terminated[:-1]))
    np.testing.assert_allclose([phi[t + 1, lane] for t, lane in ends], 0.0, atol=1e-3)
    assert np.max(phi) > 0.5


def test_what_is_stored_together_belongs_together(live):
    start, go, _ = live
    lanes = go(start(KEY))[0]
    close(lanes.input, observed(lanes))
    last, steps, seen = go(lanes)
    close(last.input, observed(last))
    same(steps.input, seen)  # the input is the one that the action was chosen by
    same(jax.tree.map(lambda x: x[0], steps.input), lanes.input)
    # The mask and the action are of one state: every request here fits into any KV cache, so it is rejected
    # exactly where its expert was not available.
    available = np.take_along_axis(
        np.asarray(steps.input.graph.available), np.asarray(steps.action)[..., None], axis=-1
    )[..., 0]
    np.testing.assert_array_equal(steps.rejected, ~available)
    assert 0 < np.sum(~available) < T * B
    # The accounts are those of the states.
    for name in ("completed", "rejected", "dropped"):
        passed = getattr(last.state, name) - getattr(lanes.state, name)
        np.testing.assert_array_equal(np.sum(getattr(steps, name), axis=0), passed)
    assert int(jnp.sum(steps.completed)) > B
    np.testing.assert_allclose(steps.reward, steps.qos, rtol=1e-6)


def test_lanes_differ_and_no_draw_is_repeated(live):
    start, go, renew = live
    lanes = start(KEY)
    assert len(np.unique(lanes.params.latency_limit_s)) == B
    assert len(np.unique(lanes.state.step)) > B // 2  # staggered
    assert int(jnp.max(lanes.state.step)) < 3 * T
    first, one, _ = go(lanes)
    _, two, _ = go(first.replace(state=lanes.state, input=lanes.input))  # the same start, a later key
    assert not np.array_equal(one.action, two.action)
    assert len({tuple(np.asarray(one.input.graph.arrived[:, b].ravel())) for b in range(B)}) == B
    renewed, _ = renew(first)
    assert not np.array_equal(jax.random.key_data(renewed.key), jax.random.key_data(first.key))
    assert not np.array_equal(jax.random.key_data(lanes.key), jax.random.key_data(first.key))
    same(start(KEY).params.latency_limit_s, lanes.params.latency_limit_s)


def test_episodes_that_reach_the_time_limit_are_renewed_and_others_go_on(live):
    start, go, renew = live
    lanes, ended = start(KEY), 0
    for _ in range(8):
        after, steps, _ = go(lanes)
        assert not bool(jnp.any(steps.terminated))
        # Nothing starts over within a rollout, past the limit or not.
        same(after.state.step, lanes.state.step + T)
        lanes, renewed = renew(after)
        was_over = np.asarray(after.state.step) >= 3 * T
        np.testing.assert_array_equal(np.asarray(after.overdue) > 0, was_over)
        assert np.sum(renewed) == min(np.sum(was_over), 2)  # 6 lanes * 12 / 36 steps
        assert not np.any(renewed & ~was_over)
        longest_left = np.max(lanes.overdue)
        assert np.all(np.asarray(after.overdue)[renewed] >= longest_left)  # those come first
        changed = np.asarray(lanes.params.latency_limit_s) != np.asarray(after.params.latency_limit_s)
        np.testing.assert_array_equal(changed, renewed)
        np.testing.assert_array_equal(np.asarray(lanes.state.step), np.where(renewed, 0, after.state.step))
        np.testing.assert_array_equal(np.asarray(lanes.overdue), np.where(renewed, 0, after.overdue))
        in_flight = np.asarray(lanes.state.fleet.serving.live).sum(axis=(1, 2))
        assert np.all(in_flight[renewed] == 0)
        assert np.any(in_flight[~renewed] > 0)
        np.testing.assert_array_equal(lanes.input.graph.slot[renewed], 0.0)
        close(lanes.input, observed(lanes))
        same(lanes.input.graph.slot[~renewed], after.input.graph.slot[~renewed])
        ended += int(np.sum(renewed))
    assert ended > B


def test_no_lane_waits_for_ever_to_be_renewed(replay):
    """All replays end at the same decision; the queue for renewal moves on."""
    start, go, renew = replay
    lanes = start(KEY).replace(overdue=jnp.arange(B, dtype=jnp.int32) * T)
    for _ in range(3):
        lanes, _ = renew(go(lanes)[0])
    assert int(jnp.max(lanes.overdue)) <= 2 * T


def test_a_replay_ends_starts_over_and_pays_for_every_request(replay):
    start, go, renew = replay
    lanes = start(KEY)
    assert not np.any(lanes.state.step)  # a replay starts at its start
    after, steps, _ = go(lanes)
    expected = np.arange(T) % REPLAY_LENGTH == REPLAY_LENGTH - 1
    np.testing.assert_array_equal(steps.terminated, np.broadcast_to(expected[:, None], (T, B)))
    first = slice(0, REPLAY_LENGTH)
    np.testing.assert_array_equal(steps.completed[first].sum(0) + steps.rejected[first].sum(0), REPLAY_LENGTH)
    # It starts over from an empty edge and its first request, with the same parameters.
    close(jax.tree.map(lambda x: x[REPLAY_LENGTH], steps.input), lanes.input)
    np.testing.assert_array_equal(after.state.step, T - REPLAY_LENGTH)
    same(after.params, lanes.params)
    np.testing.assert_array_equal(after.overdue, T - REPLAY_LENGTH + 1)
    renewed, where = renew(after)
    assert bool(jnp.all(where))
    assert not np.any(np.asarray(renewed.params.latency_limit_s) == np.asarray(lanes.params.latency_limit_s))
    np.testing.assert_array_equal(renewed.state.step, 0)


def test_environments_in_turn_are_those_together_even_of_learners_side_by_side(take_turns):
    """Each learner has numbers of its own, which the environments of a step share."""
    env = environment(max_steps=3 * T, reward="potential")
    greedy = jax.tree.map(lambda number: jnp.stack([number, number * 0.9]), GREEDY)

    def go(key, greedy):
        def keep(key, inputs):
            return act(key, inputs)[0], None

        return rollout(env, greedy, keep, start_lanes(env, sample_live, greedy, key, B), 4)[1]

    keys = jax.random.split(KEY)
    together = jax.jit(jax.vmap(go))(keys, greedy)
    taken = take_turns()
    close(jax.jit(jax.vmap(lambda *given: go(*given)))(keys, greedy), together)
    assert taken.count(True) == 2  # the potential at first, and the steps
