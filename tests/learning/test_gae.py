"""Advantages against their definition as a sum, and that none crosses the end of an episode."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from qos_jax.learning.losses import gae

T, B = 9, 3
GAMMA, LAMBDA = 0.9, 0.8
gae_jit = jax.jit(gae)


def by_definition(reward, value, next_value, terminated, truncated, gamma, gae_lambda):
    """A_t as the weighted mean of n-step advantages within the episode; one lane, plain Python."""
    steps = len(reward)
    advantage = []
    for t in range(steps):
        end = next((k for k in range(t, steps) if terminated[k] or truncated[k]), steps - 1)
        longest = end - t + 1
        n_step = []
        for n in range(1, longest + 1):
            total = sum(gamma**k * reward[t + k] for k in range(n))
            if not terminated[t + n - 1]:
                total += gamma**n * next_value[t + n - 1]
            n_step.append(total - value[t])
        weights = [(1 - gae_lambda) * gae_lambda ** (n - 1) for n in range(1, longest)]
        weights.append(gae_lambda ** (longest - 1))
        advantage.append(sum(w * a for w, a in zip(weights, n_step, strict=True)))
    return np.array(advantage)


def draw(seed, ends=0.3):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, T, B)).astype(np.float32)
    end = rng.random((2, T, B)) < ends
    # Within an episode the state reached is the next one; only an end is followed by another.
    inside = ~(end[0] | end[1])[:-1]
    next_value[:-1][inside] = value[1:][inside]
    return reward, value, next_value, end[0], end[1] & ~end[0]


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    ends=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    gamma=st.floats(0.0, 1.0),
    gae_lambda=st.floats(0.0, 1.0),
)
def test_equals_its_definition(seed, ends, gamma, gae_lambda):
    run = draw(seed, ends)
    advantage, target = gae_jit(*run, gamma, gae_lambda)
    for b in range(B):
        lane = [x[:, b].astype(np.float64) if x.dtype == np.float32 else x[:, b] for x in run]
        expected = by_definition(*lane, gamma, gae_lambda)
        np.testing.assert_allclose(advantage[:, b], expected, atol=1e-4)
        np.testing.assert_allclose(target[:, b], expected + lane[1], atol=1e-4)


@jax.jit
def slopes(reward, value, next_value, terminated, truncated):
    """d A_s / d (reward, value, next_value)_t of one lane: three of [T, T]."""

    def advantage(reward, value, next_value):
        return gae(reward, value, next_value, terminated, truncated, GAMMA, LAMBDA)[0]

    return jax.jacobian(advantage, argnums=(0, 1, 2))(reward, value, next_value)


@pytest.mark.parametrize("kind", ["terminated", "truncated", "none"])
def test_nothing_leaks_across_the_end_of_an_episode(kind):
    reward, value, next_value, *_ = (x[:, 0] for x in draw(0))
    at = np.arange(T) == 4
    never = np.zeros(T, bool)
    ends = {"terminated": (at, never), "truncated": (never, at), "none": (never, never)}[kind]
    by_reward, by_value, by_next = slopes(reward, value, next_value, *ends)
    for slope in (by_reward, by_value, by_next):
        across = np.asarray(slope)[:5, 5:]
        assert np.any(across != 0) == (kind == "none")
        assert np.all(np.asarray(slope)[5:, :5] == 0)  # nor backwards
    # The end itself: the state reached counts, unless it has no future.
    bootstrap = float(by_next[4, 4])
    assert bootstrap == (0.0 if kind == "terminated" else pytest.approx(GAMMA))


def test_extremes_of_lambda():
    reward, value, next_value, terminated, _ = draw(1, 0.0)
    one_step = gae_jit(reward, value, next_value, terminated, terminated, GAMMA, 0.0)[0]
    np.testing.assert_allclose(one_step, reward + GAMMA * next_value - value, rtol=1e-6)
    chained = np.concatenate([value[1:], next_value[-1:]])
    _, target = gae_jit(reward, value, chained, terminated, terminated, GAMMA, 1.0)
    total = next_value[-1]
    for r in reward[::-1]:
        total = r + GAMMA * total
    np.testing.assert_allclose(target[0], total, rtol=1e-4)
