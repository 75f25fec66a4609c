"""What routers measure of answers: means by hand, the line of pace, and features that read no profile."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing.measured import WINDOWS, after_completions, means, no_measurements, pace_at
from qos_jax.routing.measured_graph import (
    ARRIVED_FEATURES,
    EXPERT_FEATURES,
    PAIR_FEATURES,
    SLOT_FEATURES,
    measured_features,
)
from qos_jax.routing.telemetry import TelemetryConfig
from tests.routing.scenes import environment, random_actions, replay_params, rollout

T = 64
add = jax.jit(after_completions)


def test_means_are_those_of_the_completions_weighed_by_how_recent_they_are():
    """Expert 0 completes one, then two at once; expert 1 nothing."""
    measured = no_measurements(2)

    def step(measured, slots, in_flight, latency_s, tokens):
        done = np.zeros((2, 3), bool)
        done[0, :slots] = True
        whole = np.full((2, 3), np.float32(latency_s))
        of_tokens = np.full((2, 3), np.float32(tokens))
        in_flight = np.array([in_flight, 0.0], np.float32)
        return add(measured, done, in_flight, whole, whole / 5, of_tokens, of_tokens / 2, done)

    measured = step(step(measured, 1, 3.0, 2.0, 9.0), 2, 2.0, 4.0, 17.0)
    for window, size in enumerate(WINDOWS):
        old, new = (1 - 1 / size) ** 2 / size, 1 - (1 - 1 / size) ** 2
        mean = jax.tree.map(lambda leaf, at=window: np.asarray(leaf)[0, at], means(measured))
        np.testing.assert_allclose(mean.seen, old + new, rtol=1e-6)
        weigh = lambda first, then, o=old, n=new: (o * first + n * then) / (o + n)  # noqa: E731
        np.testing.assert_allclose(mean.latency_per_token_s, weigh(2 / 9, 4 / 17), rtol=1e-5)
        np.testing.assert_allclose(mean.pace_s, weigh(1.6 / 8, 3.2 / 16), rtol=1e-5)
        np.testing.assert_allclose(mean.ttft_s, weigh(0.4, 0.8), rtol=1e-5)
        np.testing.assert_allclose(mean.length_log, np.log(2.0), rtol=1e-5)
        np.testing.assert_allclose(mean.kept, 1.0, rtol=1e-6)
        np.testing.assert_allclose(mean.concurrency, weigh(3.0, 1.5), rtol=1e-5)
    assert not any(np.asarray(leaf)[1].any() for leaf in jax.tree.leaves(measured))


def test_pace_follows_a_line_over_concurrency_once_it_has_been_seen():
    def after(levels):
        def one(measured, level):
            pace_s = 0.01 + 0.002 * level
            done, latency_s = jnp.ones((1, 1), bool), (10.0 * pace_s)[None, None]
            tokens = jnp.full((1, 1), 11.0)
            none = jnp.zeros((1, 1))
            return add(measured, done, level[None], latency_s, none, tokens, tokens, done), None

        return jax.lax.scan(one, no_measurements(1), jnp.asarray(levels, jnp.float32))[0]

    varied = after(np.tile([2.0, 30.0], 200))
    np.testing.assert_allclose(pace_at(varied, jnp.array([20.0])), 0.01 + 0.002 * 20, rtol=0.03)
    alike = after(np.full(200, 8.0))
    for level in (1.0, 30.0):  # one level tells no slope
        np.testing.assert_allclose(pace_at(alike, jnp.array([level])), 0.01 + 0.002 * 8, rtol=1e-4)
    assert pace_at(no_measurements(2), jnp.ones(2)).tolist() == [0.0, 0.0]


def test_an_environment_measures_what_completes_and_is_otherwise_the_same():
    params = replay_params(1, T, mean_gap_s=0.2)
    actions = random_actions(1, T)
    plain = rollout(environment(), jax.random.key(0), params, actions)
    states, results, last = rollout(environment(measures=True), jax.random.key(0), params, actions)
    bare = dataclasses.replace(states, fleet=dataclasses.replace(states.fleet, measured=None))
    jax.tree.map(np.testing.assert_array_equal, bare, plain[0])
    jax.tree.map(np.testing.assert_array_equal, results.info, plain[1].info)
    passed = results.info.passed
    stays = (1.0 - 1.0 / np.array(WINDOWS)) ** np.asarray(passed.completed_count)[..., None]  # [T, N, W]
    kept, seen = np.zeros((3, 2)), np.zeros((3, 2))
    for t in range(T):
        count = np.maximum(np.asarray(passed.completed_count[t]), 1)
        share = (np.asarray(passed.within_limit[t]) / count)[:, None]
        kept = stays[t] * kept + (1 - stays[t]) * share
        seen = stays[t] * seen + (1 - stays[t])
    np.testing.assert_allclose(last.fleet.measured.kept, kept, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(last.fleet.measured.seen, seen, rtol=1e-4)
    assert 0.1 < float(kept.mean()) < 0.9


def test_features_read_no_profile_and_stay_finite():
    env, params = environment(measures=True), replay_params(1, T)
    states, _, _ = rollout(env, jax.random.key(0), params, random_actions(1, T))

    @jax.jit
    def features(states):
        def one(state, factor):
            seen = env.observation(params, state)
            other = jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), seen.profile)
            return measured_features(
                dataclasses.replace(seen, profile=other, offered_load=factor * seen.offered_load)
            )

        return [jax.vmap(one, (0, None))(states, jnp.float32(factor)) for factor in (1.0, 3.0)]

    own, other = features(states)
    jax.tree.map(np.testing.assert_array_equal, own, other)
    widths = (len(ARRIVED_FEATURES), len(EXPERT_FEATURES), len(SLOT_FEATURES), len(PAIR_FEATURES))
    assert tuple(x.shape[-1] for x in (own.arrived, own.expert, own.slot, own.pair)) == widths
    for leaf in (own.arrived, own.expert, own.slot, own.pair):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() < 6.0


def test_answers_are_measured_or_believed_not_both():
    with pytest.raises(ValueError, match="measures"):
        environment(measures=True, telemetry=TelemetryConfig())
