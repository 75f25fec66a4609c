"""The search: ranks by hand, numbers kept in their bounds, and that it finds what is better."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.learning.search import (
    SPREAD_FLOOR,
    SearchConfig,
    balanced,
    episode_qos,
    make_search,
    moved_numbers,
    natural_step,
    utilities,
)
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.greedy_params import SEARCHED, SEARCHED_MEASURED, load_aware_params, measured_params
from qos_jax.policies.heuristics import projected_greedy
from qos_jax.policies.router_input import GREEDY, greedy_of
from qos_jax.workload import poisson
from tests.routing import scenes

NETWORK = NetworkConfig(encoder="sets", hidden=8)
CONFIG = SearchConfig(updates=4, candidates=6, num_envs=8, steps=48)


def sample_params(key):
    return scenes.process_params(poisson(12.0))


@pytest.fixture(scope="module")
def learner():
    return make_search(scenes.environment(max_steps=48), sample_params, NETWORK, CONFIG)


@pytest.fixture(scope="module")
def update(learner):
    return jax.jit(learner.update)


@pytest.fixture(scope="module")
def start(learner):
    return jax.jit(learner.init)(jax.random.key(0))


def test_utilities_follow_the_better_half_and_add_up_to_nothing():
    given = utilities(6)
    raw = np.array([np.log(4), np.log(4) - np.log(2), np.log(4) - np.log(3), 0, 0, 0])
    np.testing.assert_allclose(given, raw / raw.sum() - 1 / 6, rtol=1e-12)
    assert sum(given) == pytest.approx(0.0, abs=1e-12)


def test_equal_candidates_share_the_weights_of_their_ranks():
    drawn = jnp.array([[1.0], [2.0], [-1.0], [-2.0]])
    at = jnp.array([0.5]), jnp.array([0.0])
    still = natural_step(*at, drawn, jnp.array([0.3, 0.3, 0.3, 0.3]))  # nothing is better than anything
    np.testing.assert_allclose(np.concatenate(still), [0.5, 0.0], atol=1e-6)
    best, second, *_ = (weight + 1 / 4 for weight in utilities(4))
    centre, _ = natural_step(*at, drawn, jnp.array([0.1, 0.9, 0.2, 0.9]))  # 2 and -2 are as good
    np.testing.assert_allclose(centre, [0.5], atol=1e-6)
    centre, _ = natural_step(*at, drawn, jnp.array([0.9, 0.9, 0.2, 0.1]))
    np.testing.assert_allclose(centre, [0.5 + (best + second) / 2 * (1 + 2)], rtol=1e-6)


def test_every_episode_counts_by_its_own_spread():
    """A lead of a thousandth where candidates differ by little, against one of hundredths where by much."""
    qos = jnp.array([[0.60, 0.9], [0.70, 0.9], [0.65, 0.9]], jnp.float32)
    given = np.asarray(balanced(qos))
    assert list(np.argsort(given)) == [0, 2, 1]
    np.testing.assert_allclose(given.sum(), 0.0, atol=1e-5)
    spread = np.std([0.60, 0.70, 0.65]) + SPREAD_FLOOR
    np.testing.assert_allclose(given[1], 0.5 * 0.05 / spread, rtol=1e-4)
    small = jnp.array([[0.60, 0.90], [0.61, 0.89], [0.62, 0.88]], jnp.float32)
    np.testing.assert_allclose(balanced(small), 0.0, atol=1e-4)


def test_a_change_is_in_steps_and_stays_within_bounds():
    numbers = {name: getattr(load_aware_params(), name) for name in SEARCHED}
    none = moved_numbers(numbers, jnp.zeros((len(SEARCHED),), jnp.float32), SEARCHED)
    jax.tree.map(np.testing.assert_array_equal, none, numbers)
    one = moved_numbers(numbers, jnp.ones((len(SEARCHED),), jnp.float32), SEARCHED)
    assert float(one["congestion_price"]) == pytest.approx(0.11 * np.exp(0.4))
    assert float(one["price_by_pace"]) == pytest.approx(0.8)
    for far, end in ((-1e3, "low"), (1e3, "high")):
        moved = moved_numbers(numbers, jnp.full((len(SEARCHED),), far, jnp.float32), SEARCHED)
        for name, how in SEARCHED.items():
            assert float(moved[name]) == pytest.approx(getattr(how, end))


def test_an_update_moves_the_numbers_alone_and_repeats_itself(learner, update, start):
    one, metrics = update(start)
    same, _ = update(start)
    two, _ = update(one)
    assert update._cache_size() == 1
    np.testing.assert_array_equal(one.centre, same.centre)
    assert np.all(np.asarray(one.centre) != np.asarray(two.centre))
    assert int(two.update) == 2
    assert all(np.isfinite(value) for value in jax.tree.leaves(jax.device_get(metrics)))
    before, after = learner.params(start), learner.params(two)
    jax.tree.map(np.testing.assert_array_equal, before["params"], after["params"])
    changed = {name for name in SEARCHED if float(before[GREEDY][name]) != float(after[GREEDY][name])}
    assert changed == set(SEARCHED)
    # The running mean is of what there is, the second twice the first.
    np.testing.assert_allclose(one.average, one.centre, rtol=1e-6)
    expected = (np.asarray(one.centre) + 2.0 * np.asarray(two.centre)) / 3.0
    np.testing.assert_allclose(two.average, expected, rtol=1e-5)


def test_it_starts_from_the_parameters_given(learner, start):
    given = learner.params(start)
    given = {**given, GREEDY: {**given[GREEDY], "margin": jnp.float32(0.7)}}
    state = jax.jit(learner.init)(jax.random.key(1), given)
    assert float(greedy_of(learner.params(state), allow_drop=False).margin) == pytest.approx(0.7)
    jax.tree.map(np.testing.assert_array_equal, learner.params(state)["params"], given["params"])


def test_it_leaves_a_price_that_keeps_requests_from_the_better_expert(learner, update, start):
    """A price of crowding a hundred times too high: lower ones serve more within L, by a margin in QoS."""
    given = learner.params(start)
    given = {**given, GREEDY: {**given[GREEDY], "congestion_price": jnp.float32(2.0)}}
    state = jax.jit(learner.init)(jax.random.key(1), given)
    for _ in range(12):
        state, _ = update(state)
    env = scenes.environment(max_steps=48)
    keys = jax.random.split(jax.random.key(2), 64)

    @jax.jit
    def qos(params):
        route = functools.partial(projected_greedy, greedy_of(params, allow_drop=False))
        params = sample_params(keys[0])
        return jax.vmap(lambda key: episode_qos(env, params, route, key, 48))(keys)

    gain = np.asarray(qos(learner.params(state)) - qos(given))  # on episodes that it was not searched on
    assert gain.mean() > 0.01
    assert gain.mean() > 3.0 * gain.std() / np.sqrt(gain.size)


def test_it_pays_what_is_to_be_expected_or_what_is_true_and_moves_only_what_is_searched():
    def good_or_bad(key):
        """A quarter of the requests come to 1, the others to nothing, and nobody can tell."""
        params = sample_params(key)
        told = jnp.full_like(params.table.predicted_quality, 0.9)
        good = jnp.broadcast_to((jnp.arange(told.shape[0]) % 4 == 0)[:, None], told.shape).astype(jnp.float32)
        return params.replace(table=params.table.replace(predicted_quality=told, quality=good))

    few = ("margin", "price_by_load")
    paid = {}
    for expected in (True, False):
        config = SearchConfig(
            updates=1, candidates=2, num_envs=8, steps=48, expected_quality=expected, numbers=few
        )
        learner = make_search(scenes.environment(max_steps=48), good_or_bad, NETWORK, config)

        @jax.jit
        def start_and_update(key, learner=learner):
            state = learner.init(key)
            moved, metrics = learner.update(state)
            return learner.params(state)[GREEDY], learner.params(moved)[GREEDY], metrics

        before, after, metrics = start_and_update(jax.random.key(0))
        assert {name for name in SEARCHED if float(before[name]) != float(after[name])} == set(few)
        paid[expected] = float(metrics["qos"])
    requests = 2 * 8 * 48  # of both candidates
    share = np.mean(np.arange(sample_params(jax.random.key(0)).table.quality.shape[0]) % 4 == 0)
    good, in_time = paid[False] * requests, paid[True] * requests / share  # a share each, though 0.9 was told
    assert good == pytest.approx(round(good), abs=1e-3)
    assert in_time == pytest.approx(round(in_time), abs=1e-3)
    assert 0 < in_time <= requests
    assert in_time != pytest.approx(good / share, abs=0.5)  # not the same by two names


@pytest.mark.parametrize(
    ("field", "value"),
    [("updates", -1), ("candidates", 5), ("num_envs", 0), ("steps", 0), ("spread", 0.0), ("average", 1.0)],
)
def test_bad_settings_are_refused(field, value):
    with pytest.raises(InputError, match=f"field '{field}'"):
        dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize(
    ("numbers", "told"),
    [(("margi",), "did you mean 'margin'"), (("margin", "margin"), "twice; give each once")],
)
def test_numbers_to_search_are_checked(numbers, told):
    with pytest.raises(InputError, match=told):
        SearchConfig(numbers=numbers)


def test_without_profiles_it_searches_the_price_that_a_learned_impact_pays():
    """The untrained estimate gives every expert the same chance, so a huge price sends some away."""
    network = dataclasses.replace(NETWORK, information="predictions", residual=False, learned_impact=True)
    config = SearchConfig(updates=1, candidates=2, num_envs=2, steps=16)
    env = scenes.environment(max_steps=16, measures=True)
    learner = make_search(env, sample_params, network, config)

    @jax.jit
    def start_and_update(key):
        state = learner.init(key)
        moved, metrics = learner.update(state)
        dear = {**state.params, GREEDY: {**state.params[GREEDY], "congestion_price": jnp.float32(2.0)}}
        return (
            learner.params(state),
            learner.params(moved),
            metrics,
            learner.update(dataclasses.replace(state, params=dear))[1],
        )

    before, after, metrics, dear = start_and_update(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before["params"], after["params"])
    assert set(before[GREEDY]) == set(SEARCHED_MEASURED)
    for name in SEARCHED_MEASURED:
        assert float(before[GREEDY][name]) == float(getattr(measured_params(), name))
    assert all(before[GREEDY][name] != after[GREEDY][name] for name in ("congestion_price", "price_by_pace"))
    assert 0.0 < float(metrics["qos"]) <= 1.0
    assert float(dear["qos"]) != float(metrics["qos"])


def test_episodes_in_turn_are_those_together_even_of_searches_side_by_side(learner, take_turns):
    states = jax.jit(jax.vmap(learner.init))(jax.random.split(jax.random.key(1)))
    _, together = jax.jit(jax.vmap(learner.update))(states)
    taken = take_turns()
    _, in_turn = jax.jit(jax.vmap(lambda state: learner.update(state)))(states)
    assert True in taken
    assert np.ptp(together["qos"]) > 0
    for name, value in together.items():
        np.testing.assert_allclose(in_turn[name], value, rtol=1e-5)
