"""Replay memory against a plain deque of rollouts: what is held, what is drawn, and what it weighs."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos_jax.learning.replay import add_rollout, empty_replay, replay_bytes, sample_replay

DRAWS = 512
KEY = jax.random.key(0)
SHAPES = [(1, 1, 2), (3, 1, 1), (2, 3, 2)]  # C rollouts, T decisions, B lanes

add = jax.jit(add_rollout, donate_argnums=0)
sample = jax.jit(sample_replay, static_argnums=(2, 3, 4))


def inputs(lanes, width=3):
    return {
        "id": jnp.zeros((lanes,), jnp.int32),
        "features": jnp.zeros((lanes, width), jnp.float32),
        "mask": jnp.zeros((lanes, width), bool),
    }


def random_rollout(rng, first_id, steps, lanes):
    """T + 1 inputs that tell themselves apart, and decisions."""
    ids = first_id + np.arange((steps + 1) * lanes, dtype=np.int32).reshape(steps + 1, lanes)
    seen = {
        "id": ids,
        "features": rng.normal(size=(steps + 1, lanes, 3)).astype(np.float32),
        "mask": rng.random((steps + 1, lanes, 3)) < 0.5,
    }
    action = rng.integers(0, 5, (steps, lanes)).astype(np.int32)
    reward = rng.integers(-8, 9, (steps, lanes)).astype(np.float32)
    return seen, action, reward, rng.random((steps, lanes)) < 0.3


def added(replay, rollout):
    seen, action, reward, terminated = rollout
    steps = {name: leaf[:-1] for name, leaf in seen.items()}
    return add(replay, steps, {name: leaf[-1] for name, leaf in seen.items()}, action, reward, terminated)


def transitions(rollouts, n_step, discount, baseline):
    """By hand: id -> (action, summed reward, factor, next id, where it is) of every decision held."""
    found = {}
    for seen, action, reward, terminated in rollouts:
        steps, lanes = action.shape
        for start in range(steps):
            for lane in range(lanes):
                total, factor, at = 0.0, 1.0, start
                while at < min(start + n_step, steps):
                    total += factor * (reward[at, lane] - baseline)
                    factor *= 0.0 if terminated[at, lane] else discount
                    at += 1
                found[int(seen["id"][start, lane])] = (
                    action[start, lane],
                    total,
                    factor,
                    seen["id"][at, lane],
                    {name: leaf[start, lane] for name, leaf in seen.items()},
                )
    return found


@given(
    shape=st.sampled_from(SHAPES),
    count=st.integers(1, 7),
    whole=st.booleans(),
    baseline=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**31 - 1),
)
def test_holds_and_draws_what_a_deque_of_rollouts_would(shape, count, whole, baseline, seed):
    rollouts, steps, lanes = shape
    rng = np.random.default_rng(seed)
    # Capacity is in transitions, and what does not make a whole rollout is left away.
    replay = empty_replay(inputs(lanes), rollouts * steps * lanes + (steps * lanes - 1), steps)
    held = collections.deque(maxlen=rollouts)
    for index in range(count):
        rollout = random_rollout(rng, index * 100, steps, lanes)
        replay = added(replay, rollout)
        held.append(rollout)
        assert int(replay.size) == len(held) * steps * lanes <= replay.capacity
    assert replay.capacity == rollouts * steps * lanes

    n_step = steps if whole else 1
    expected = transitions(held, n_step, 0.5, baseline)
    key = jax.random.key(seed)
    drawn = jax.device_get(sample(replay, key, DRAWS, 0.5, n_step, jnp.float32(baseline)))
    assert set(drawn.inputs["id"].tolist()) == set(expected)  # all that is held, nothing else
    for row in range(DRAWS):
        action, reward, factor, reached, seen = expected[int(drawn.inputs["id"][row])]
        assert (drawn.action[row], drawn.reward[row], drawn.discount[row]) == (action, reward, factor)
        assert drawn.next_inputs["id"][row] == reached
        for name, leaf in seen.items():
            np.testing.assert_array_equal(drawn.inputs[name][row], leaf)


def test_every_transition_is_as_likely():
    replay = empty_replay(inputs(4), 2 * 3 * 4, 3)
    for index in range(3):
        replay = added(replay, random_rollout(np.random.default_rng(index), 100 * index, 3, 4))
    drawn = sample(replay, KEY, 24_000, 0.9, 1)
    _, counts = np.unique(drawn.inputs["id"], return_counts=True)
    # 23 degrees of freedom: chi-square is 23 +- 6.8, and above 49.7 once in a thousand keys.
    assert counts.size == 24
    assert np.sum((counts - 1000.0) ** 2 / 1000.0) < 49.7


@pytest.mark.parametrize("half", [False, True])
def test_bytes_are_told_before_and_without_making_it(half):
    example = inputs(2, width=64)
    made = empty_replay(example, 1000, 5, half)
    told = replay_bytes(example, 1000, 5, half)
    assert told == sum(leaf.nbytes for leaf in jax.tree.leaves(made))
    per_input = 4 + 64 * (2 if half else 4) + 64
    assert told == 100 * 2 * (6 * per_input + 5 * (4 + 4 + 1)) + 8
    assert replay_bytes(example, 10**9, 5, half) == (told - 8) * 10**6 + 8  # some 200 GB


def test_half_precision_keeps_eleven_bits_and_stays_finite():
    rng = np.random.default_rng(0)
    replay = empty_replay(inputs(2), 8, 4, half_precision=True)
    rollout = random_rollout(rng, 0, 4, 2)
    rollout[0]["features"][0, 0, 0] = 1e9
    drawn = jax.device_get(sample(added(replay, rollout), KEY, DRAWS, 0.9, 1))
    for id_, features, mask in zip(*(drawn.inputs[name] for name in ("id", "features", "mask")), strict=True):
        at = divmod(int(id_), 2)
        exact = np.minimum(rollout[0]["features"][at], 65504.0)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, exact, rtol=2**-11, atol=2**-24)
        np.testing.assert_array_equal(mask, rollout[0]["mask"][at])


def test_a_ring_too_small_for_one_rollout_is_refused():
    with pytest.raises(ValueError, match="one rollout takes 5 x 2 transitions"):
        empty_replay(inputs(2), 9, 5)
