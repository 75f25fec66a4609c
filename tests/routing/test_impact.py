"""The impact estimators: the paper's by hand, ours against the simulator's own course."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from qos_jax.routing import (
    EnvConfig,
    RoutingEnvironment,
    qos_in_flight,
    true_impact,
)
from qos_jax.routing import paper_impact as eager_paper_impact
from qos_jax.routing import projected_impact as eager_projected_impact
from qos_jax.routing.fleet_state import pass_time, route
from qos_jax.routing.impact import expected_qos_in_flight
from qos_jax.serving import LIMITS, ServiceLimits, ServingConfig
from tests.routing.scenes import EXPERTS, profile, random_actions, replay_params, rollout, roomy
from tests.routing.seen import LIMIT_S, observation, with_slots

T = 40
paper_impact, projected_impact = jax.jit(eager_paper_impact), jax.jit(eager_projected_impact)
over_states = jax.jit(jax.vmap(eager_projected_impact, in_axes=(0, None)))


DECODE_S = 4 * 0.02 + 2e-4 * (11 + 12 + 13 + 14)  # of the newcomer alone, 5 tokens after a prompt of 10


def test_paper_impact_by_hand():
    """k1 = 1e-3, k2 = 2e-4, prompt 10, own length 5.

    A request with 10 of 20 tokens: its 4 further iterations beside the newcomer read 11 + 12 + 13 + 14 = 50
    tokens more: 0.01 + 0.01 s, over 20 tokens 0.001 s/token on top of its 0.5 s / 10 = 0.05.
    """
    seen = observation(age_s=0.5, generated=10, predicted=20.0, quality=0.75)
    for limit_s, lost in ((0.0490, 0.0), (0.0505, 0.75), (0.0515, 0.0)):
        at = dataclasses.replace(seen, limits=ServiceLimits(jnp.float32(limit_s)))
        np.testing.assert_allclose(paper_impact(at), [lost, 0.0])


@pytest.mark.parametrize(
    ("predicted", "generated", "extra_s"),
    [
        (12.0, 10, (0.01 + 2e-4 * 11) / 12),  # 2 left: one iteration shared
        (10.0, 10, 0.01 / 11),  # has reached its prediction: counted as one token from its end
        (4.0, 10, 0.01 / 11),  # has outlived it: likewise
    ],
)
def test_paper_impact_lasts_as_long_as_both_run(predicted, generated, extra_s):
    seen = observation(age_s=0.5, generated=generated, predicted=predicted, quality=0.5)
    for share, lost in ((0.9, 0.5), (1.1, 0.0)):
        at = dataclasses.replace(seen, limits=ServiceLimits(jnp.float32(0.05 + share * extra_s)))
        np.testing.assert_allclose(paper_impact(at), [lost, 0.0])


def test_paper_impact_counts_the_running_only_and_adds_up():
    seen = observation(age_s=0.5, generated=10, predicted=20.0, quality=0.75, slots=2)
    at = dataclasses.replace(seen, limits=ServiceLimits(jnp.float32(0.0505)))
    np.testing.assert_allclose(paper_impact(at), [1.5, 0.0])
    waiting = dataclasses.replace(at, running=at.running.at[0, 1].set(False))
    np.testing.assert_allclose(paper_impact(waiting), [0.75, 0.0])


def test_projected_impact_on_an_idle_expert_by_hand():
    """Prefill 0.1 + 10 x 1e-3; 4 decodes of 0.02 + 2e-4 (11 + .. 14); round trip 0.05."""
    seen = observation(slots=0)
    per_token_s = (0.11 + 4 * 0.02 + 2e-4 * (11 + 12 + 13 + 14) + 0.05) / 5
    for limit_s, chance in ((per_token_s * 1.0001, 1.0), (per_token_s * 0.9999, 0.0)):
        at = dataclasses.replace(seen, limits=ServiceLimits(jnp.float32(limit_s)))
        impact = projected_impact(at, jnp.float32(0.0))
        np.testing.assert_allclose(impact.latency_per_token_s, per_token_s, rtol=1e-6)
        np.testing.assert_allclose(impact.own_chance, chance, atol=1e-6)
        np.testing.assert_allclose(impact.own_qos, chance * np.asarray(seen.predicted_quality), atol=1e-6)
        np.testing.assert_array_equal(impact.pushed, 0.0)
        np.testing.assert_array_equal(impact.penalty, 0.0)


def test_chance_is_log_normal_in_margin_and_length():
    seen = observation(slots=0, length_log_std=0.6)
    decode_s = 4 * 0.02 + 2e-4 * (11 + 12 + 13 + 14)
    latency_s = 0.11 + 0.05 + decode_s
    std = np.hypot((decode_s / latency_s - 1.0) * 0.6, 0.3)
    impact = projected_impact(seen, jnp.float32(0.3))
    expected = scipy.stats.norm.cdf(np.log(LIMIT_S / (latency_s / 5)) / std)
    np.testing.assert_allclose(impact.own_chance, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "time_s"),
    [("ttft_limit_s", 0.11), ("tpot_limit_s", DECODE_S / 4), ("e2e_limit_s", 0.11 + DECODE_S + 0.05)],
)
def test_the_least_chance_to_keep_a_limit_counts(name, time_s):
    """The idle expert above; times to first token and of each token after it depend on no length."""
    seen = observation(slots=0, length_log_std=0.6)
    for factor in (0.9, 1.1):
        limits = ServiceLimits(jnp.float32(10.0), **{name: jnp.float32(factor * time_s)})
        std = np.hypot(0.6 * DECODE_S / time_s, 0.3) if name == "e2e_limit_s" else 0.3
        impact = projected_impact(dataclasses.replace(seen, limits=limits), jnp.float32(0.3))
        np.testing.assert_allclose(impact.own_chance, scipy.stats.norm.cdf(np.log(factor) / std), rtol=1e-4)
        np.testing.assert_array_equal(impact.keeps_limits, factor > 1.0)
        both = dataclasses.replace(seen, limits=dataclasses.replace(limits, latency_limit_s=LIMIT_S))
        by_l = projected_impact(dataclasses.replace(seen), jnp.float32(0.3)).own_chance
        least = np.minimum(by_l, impact.own_chance)
        np.testing.assert_allclose(projected_impact(both, jnp.float32(0.3)).own_chance, least, rtol=1e-6)


def test_a_first_token_that_came_or_is_late_is_certain():
    """The request on expert 0 got its first token after 0.4 s: kept or missed, whatever the margin."""
    seen = with_slots(observation(), slot_ttft_s=[[0.4, -1.0, -1.0], [-1.0] * 3])
    margin, loose = jnp.float32(0.3), jnp.float32(10.0)
    quality = float(expected_qos_in_flight(dataclasses.replace(seen, limits=ServiceLimits(loose)), margin))
    assert quality > 0.7
    for limit_s, kept in ((0.4, 1.0), (0.39, 0.0)):
        limits = ServiceLimits(loose, ttft_limit_s=jnp.float32(limit_s))
        expected = expected_qos_in_flight(dataclasses.replace(seen, limits=limits), margin)
        np.testing.assert_allclose(expected, kept * quality, rtol=1e-5)


def test_an_expert_that_is_not_available_leaves_no_chance():
    at = dataclasses.replace(observation(slots=0), available=jnp.array([False, True]))
    chance = np.asarray(projected_impact(at, jnp.float32(0.3)).own_chance)
    assert chance[0] == 0.0
    assert chance[1] > 0.0


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_free_prefill_gives_no_nan(margin):
    """One predicted token, no prefill time, no round trip: a projected latency of zero."""
    seen = observation(slots=0, predicted_new=1.0)
    free = {name: jnp.zeros(2) for name in ("prefill_base_s", "prefill_per_token_s", "network_rtt_s")}
    at = dataclasses.replace(seen, profile=dataclasses.replace(seen.profile, **free))
    impact = projected_impact(at, jnp.float32(margin))
    np.testing.assert_allclose(impact.own_chance, 1.0)
    np.testing.assert_array_equal(impact.penalty, 0.0)


@functools.partial(jax.jit, static_argnums=0)
def judged_and_true(config, params, states):
    """What impact and potential say in each state, and what happens if nothing else arrives."""
    env = RoutingEnvironment(EnvConfig(config))

    def qos(fleet):
        return jnp.sum(pass_time(config, params.profile, fleet, jnp.inf, params.limits)[1].qos)

    def one(state):
        truth = env.true_observation(params, state)
        impact = true_impact(truth, jnp.float32(0.0))

        def with_newcomer(action):
            return qos(route(params.profile, state.fleet, state.request, state.step, action)[0])

        return impact, qos_in_flight(truth), qos(state.fleet), jax.vmap(with_newcomer)(jnp.arange(EXPERTS))

    return jax.lax.map(one, states)


ALL_LIMITS = ServiceLimits(0.04, ttft_limit_s=0.06, tpot_limit_s=0.035, e2e_limit_s=1.0)


def test_true_impact_and_potential_are_the_course_of_the_simulator_while_all_fits():
    config = ServingConfig(EXPERTS, 12, 4)
    params = replay_params(
        0, T, roomy(max_running=[12] * 3, max_waiting=[4] * 3), mean_gap_s=0.03, latency_limit_s=ALL_LIMITS
    )
    env = RoutingEnvironment(EnvConfig(config))
    states, _, _ = rollout(env, jax.random.key(0), params, random_actions(0, T))
    impact, potential, alone, joined = jax.device_get(judged_and_true(config, params, states))
    assert np.count_nonzero(impact.penalty) > 5
    np.testing.assert_allclose(potential, alone, atol=1e-4)
    # Joining changes the QoS to come by one's own less what the others lose.
    np.testing.assert_allclose(joined - alone[:, None], impact.own_qos - impact.penalty, atol=1e-4)
    # A hard test counts whole requests.
    np.testing.assert_allclose(impact.pushed, np.round(impact.pushed), atol=1e-4)


def test_expected_potential_is_the_true_one_where_predictions_are_exact_and_softer_with_a_margin():
    config = ServingConfig(EXPERTS, 12, 4)
    params = replay_params(
        0, T, roomy(max_running=[12] * 3, max_waiting=[4] * 3), mean_gap_s=0.03, latency_limit_s=0.04
    )
    table = params.table
    exact = dataclasses.replace(
        table,
        predicted_output_tokens=table.output_tokens.astype(jnp.float32),
        predicted_quality=table.quality,
    )
    params = dataclasses.replace(params, table=exact, length_log_std=jnp.zeros((EXPERTS,)))
    env = RoutingEnvironment(EnvConfig(config))
    states, _, _ = rollout(env, jax.random.key(0), params, random_actions(0, T))

    @jax.jit
    def judged(states):
        truths = jax.vmap(lambda state: env.true_observation(params, state))(states)
        margins = jnp.array([0.0, 0.3], jnp.float32)
        expected = jax.vmap(lambda seen: jax.vmap(lambda m: expected_qos_in_flight(seen, m))(margins))(
            truths.seen
        )
        held = jnp.sum(jnp.where(truths.seen.live, truths.slot_quality, 0.0), axis=(1, 2))
        return expected, jax.vmap(qos_in_flight)(truths), held

    expected, true, held = jax.device_get(judged(states))
    np.testing.assert_allclose(expected[:, 0], true, atol=1e-4)
    assert np.all((expected >= 0.0) & (expected <= held[:, None] + 1e-4))
    assert np.max(np.abs(expected[:, 1] - true)) > 0.1


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_estimates_stay_in_their_ranges_under_pressure(margin):
    env = RoutingEnvironment(EnvConfig(ServingConfig(EXPERTS, 4, 4)))
    params = replay_params(3, T, profile(), mean_gap_s=0.02, latency_limit_s=0.03)
    states, _, _ = rollout(env, jax.random.key(0), params, random_actions(3, T))
    observations = jax.vmap(lambda state: env.observation(params, state))(states)
    impact = over_states(observations, jnp.float32(margin))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(impact))
    assert bool(jnp.all((impact.own_chance >= 0.0) & (impact.own_chance <= 1.0)))
    live = jnp.sum(observations.live, axis=-1, dtype=jnp.float32)
    assert bool(jnp.all((impact.pushed >= 0.0) & (impact.pushed <= live)))
    assert bool(jnp.all((impact.penalty >= 0.0) & (impact.penalty <= impact.pushed + 1e-6)))
    # Limits that all keep change nothing but what a program of other operations rounds.
    endless = dataclasses.replace(observations.limits, **dict.fromkeys(LIMITS[1:], jnp.full(T, jnp.inf)))
    same = over_states(dataclasses.replace(observations, limits=endless), jnp.float32(margin))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), same, impact)
