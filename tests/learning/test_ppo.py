"""PPO: it learns, by a schedule in the right unit, never twice the same, and exactly as its state says."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.learning.losses import entropy, impact_loss, normalised, policy_loss, value_loss
from qos_jax.learning.ppo import PPOConfig, make_ppo, scheduled
from qos_jax.learning.rollout import TrueImpact
from qos_jax.policies.actor_critic import LearnedImpact
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.han import HANConfig
from qos_jax.routing import make_params
from qos_jax.workload import poisson
from tests.routing.scenes import EXPERTS, LENGTH_LOG_STD, environment, roomy, table

CONFIG = PPOConfig(
    num_envs=8,
    rollout_steps=16,
    total_updates=12,
    epochs=4,
    minibatches=2,
    learning_rate=1e-2,
    final_learning_rate=0.0,
    gamma=0.5,
    value_warmup_updates=2,
)
NETWORK = NetworkConfig(
    han=HANConfig(layers=1, hidden=8, heads=2),
    hidden=8,
    information="predictions",
    residual=False,
    learned_impact=True,
    temperature=5.0,  # the net gain says little, so that the head must learn
    head_scale=1.0,
)
SEEDS = 2


def one_good_expert_per_request(key):
    """A row's quality is 1 at one expert and 0 at the others, and predicted so; nobody is ever in the way."""
    rows = 32
    good = np.eye(EXPERTS, dtype=np.float32)[np.random.default_rng(0).integers(0, EXPERTS, rows)]
    requests = table(0, rows, output_up_to=4).replace(quality=good, predicted_quality=good)
    return make_params(roomy(), requests, 1.0, LENGTH_LOG_STD, process=poisson(1.0))


LEARNER = make_ppo(environment(max_steps=1000, measures=True), one_good_expert_per_request, NETWORK, CONFIG)


@pytest.fixture(scope="module")
def start():
    """States of fresh parameters, and of given ones (all ones), for each seed."""

    def both(key):
        fresh = LEARNER.init(key, None)
        return fresh, LEARNER.init(
            key, {**fresh.params, "params": jax.tree.map(jnp.ones_like, fresh.params["params"])}
        )

    return jax.jit(jax.vmap(both))(jax.random.split(jax.random.key(0), SEEDS))


@pytest.fixture(scope="module")
def update():
    """The update of SEEDS runs at once; it compiles once, whatever its state."""
    traces = []

    @jax.jit
    def counted(states):
        traces.append(None)
        return jax.vmap(LEARNER.update)(states)

    yield counted
    assert len(traces) == 1


@pytest.fixture(scope="module")
def run(start, update):
    """States before each update and after the last, and the metrics of each, [SEEDS]."""
    states, metrics = [start[0]], []
    for _ in range(CONFIG.total_updates):
        state, figures = update(states[-1])
        states.append(state)
        metrics.append(figures)
    return states, jax.tree.map(lambda *x: np.stack(x), *metrics)


def bits(tree):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


@jax.jit
def at(states, seed):
    return jax.tree.map(lambda leaf: leaf[seed], states)


def test_it_learns_which_expert_serves_which_request(run):
    _, metrics = run
    # Before anything is learned one in three is good; hardly any choice is wrong in the end.
    assert np.all(np.abs(metrics["qos"][:2] - 1 / 3) < 0.15)
    assert np.all(metrics["qos"][-3:] > 0.9)
    assert np.all(metrics["entropy"][-1] < 0.3)
    assert np.all(metrics["entropy"][0] > 1.0)
    assert np.all(metrics["explained_variance"] < 1.0)
    # The first minibatch moves nothing yet; then the policy moves, within reason.
    assert np.all(metrics["approx_kl"][3:6].max(0) > 1e-4)
    assert np.all(metrics["clip_fraction"][2:6].max(0) > 0.01)
    assert np.all(metrics["clip_fraction"] < 0.6)
    # Every request keeps its limit, whoever serves it.
    assert np.all(metrics["impact_loss"][-1] < 0.1 * metrics["impact_loss"][0])


def test_metrics_are_finite_numbers(run):
    _, metrics = run
    for name, values in metrics.items():
        assert values.shape == (CONFIG.total_updates, SEEDS), name
        assert values.dtype == np.float32, name
        assert np.all(np.isfinite(values)), name
    assert np.all(metrics["rejected_share"] == 0.0)
    assert LEARNER.decisions_per_update == 128


def test_the_schedule_counts_updates_and_reaches_its_end(run, update):
    states, metrics = run
    rate = CONFIG.learning_rate * (1 - np.arange(CONFIG.total_updates) / (CONFIG.total_updates - 1))
    for seed in range(SEEDS):
        np.testing.assert_allclose(metrics["learning_rate"][:, seed], rate, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(metrics["entropy_weight"][:, seed], rate, rtol=1e-5, atol=1e-9)
    # Not the metric alone: the last update but one still moves the parameters, the last, of rate 0, does not.
    moved = [not equal(a.params, b.params) for a, b in itertools.pairwise(states)]
    assert moved == [True] * (CONFIG.total_updates - 1) + [False]
    # Adam has counted every optimiser step since the warm-up.
    count = (CONFIG.total_updates - CONFIG.value_warmup_updates) * CONFIG.epochs * CONFIG.minibatches
    np.testing.assert_array_equal(states[-1].optimiser[1].count, count)
    np.testing.assert_array_equal(states[-1].updates, CONFIG.total_updates)


@pytest.mark.parametrize(
    ("updates", "rate", "weight"), [(0, 2.0, 0.5), (50, 1.5, 0.3), (100, 1.0, 0.1), (999, 1.0, 0.1)]
)
def test_schedules_are_linear_and_then_stay(updates, rate, weight):
    config = PPOConfig(
        total_updates=101,
        learning_rate=2.0,
        final_learning_rate=0.5,
        entropy_weight=0.5,
        final_entropy_weight=0.1,
    )
    got = scheduled(config, jnp.int32(updates))
    np.testing.assert_allclose(got, (rate, weight), rtol=1e-6)


def test_warm_up_trains_the_value_alone_and_leaves_adam_as_new(run):
    states, metrics = run
    warm = CONFIG.value_warmup_updates
    first, ready, after = (state.params["params"] for state in (states[0], states[warm], states[warm + 1]))
    assert {name for name in first if not equal(first[name], ready[name])} == {"critic"}
    assert all(not equal(ready[name], after[name]) for name in ("trunk", "actor", "critic"))
    np.testing.assert_allclose(metrics["approx_kl"][:warm], 0.0, atol=1e-6)
    assert np.all(metrics["grad_norm"][:warm] > 0.0)
    np.testing.assert_array_equal(states[warm].optimiser[1].count, 0)
    np.testing.assert_array_equal(states[warm - 1].optimiser[1].count, (warm - 1) * 8)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(states[warm].optimiser))


def test_the_same_state_gives_the_same_bits_and_runs_side_by_side_do_not_touch(run, update):
    states, _ = run
    state, after = states[3], states[4]
    assert equal(update(state)[0], after)
    # Two copies of the first run: the same as that run beside the other.
    twice, _ = update(jax.tree.map(lambda x: x[jnp.zeros((SEEDS,), jnp.int32)], state))
    for seed in range(SEEDS):
        assert equal(at(twice, seed), at(after, 0))
    assert not equal(at(after.params, 0), at(after.params, 1))


def test_no_key_is_used_twice(run, update):
    states, _ = run
    keys = [jax.random.key_data(k).reshape(-1, 2) for state in states for k in (state.key, state.lanes.key)]
    keys = np.concatenate([np.asarray(k) for k in keys])
    assert len(np.unique(keys, axis=0)) == len(keys)
    # Each of the two does something: shuffling, and what happens in the environments.
    state, after = states[3], states[4]
    shuffled, _ = update(dataclasses.replace(state, key=after.key))
    assert equal(shuffled.lanes, after.lanes)
    assert not equal(shuffled.params, after.params)
    other, _ = update(dataclasses.replace(state, lanes=dataclasses.replace(state.lanes, key=after.lanes.key)))
    assert not equal(other.lanes.state, after.lanes.state)


def test_renewing_lanes_does_not_change_what_was_learned_before(run, update):
    """What is bootstrapped from is the state reached, not that of the next episode."""
    states, _ = run
    state, after = states[3], states[4]
    overdue = jnp.ones_like(state.lanes.overdue)
    cut, _ = update(dataclasses.replace(state, lanes=dataclasses.replace(state.lanes, overdue=overdue)))
    assert np.any(np.asarray(cut.lanes.state.step) == 0)
    assert not np.any(np.asarray(after.lanes.state.step) == 0)
    assert equal(cut.params, after.params)


def test_what_is_learned_is_the_running_mean_of_the_weights(run):
    states, _ = run
    for before, after in itertools.pairwise(states[:4]):
        for old, new, mean in zip(
            *(jax.tree.leaves(tree) for tree in (before.average, after.params, after.average)), strict=True
        ):
            expected = CONFIG.average * old + (1.0 - CONFIG.average) * new
            np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    assert equal(LEARNER.params(states[3]), states[3].average)
    assert not equal(states[3].average, states[3].params)


@pytest.mark.parametrize("expected", [False, True])
def test_rewards_pay_expected_qualities_where_asked(expected):
    def overrated(key):
        params = one_good_expert_per_request(key)
        noise = jax.random.uniform(key, params.table.quality.shape)
        return params.replace(table=params.table.replace(quality=noise * params.table.quality))

    config = dataclasses.replace(CONFIG, expected_quality=expected)
    learner = make_ppo(environment(max_steps=1000, measures=True), overrated, NETWORK, config)
    table = jax.jit(lambda key: learner.init(key, None).lanes.params.table)(jax.random.key(0))
    told, paid = np.asarray(table.predicted_quality), np.asarray(table.quality)
    good = told == told.max()
    if expected:  # about half of what is told, and the same for all of whom the same is told
        assert 0.3 < paid[good].mean() < 0.7
    spread = np.mean([paid[lane][good[lane]].std() for lane in range(len(paid))])
    assert (spread < 0.1) == expected


def test_given_parameters_are_those_it_starts_from(start):
    fresh, given = start
    assert all(np.all(np.asarray(leaf) == 1.0) for leaf in jax.tree.leaves(LEARNER.params(given)["params"]))
    assert equal(fresh.lanes, given.lanes)
    kernels = jax.tree.leaves(fresh.params)
    assert any(not np.array_equal(leaf[0], leaf[1]) for leaf in kernels)  # seeds differ


def test_impact_loss_is_cross_entropy_and_half_the_square_over_those_available():
    learned = LearnedImpact(jnp.array([[0.0, np.log(3.0), 9.0]]), jnp.log1p(jnp.array([[1.0, 0.5, 9.0]])))
    true = TrueImpact(keeps=jnp.array([[1.0, 0.0, 0.0]]), lost=jnp.array([[3.0, 0.5, 0.0]]))
    available = jnp.array([[True, True, False]])
    expected = (np.log(2) + 0.5 * np.log(2) ** 2 + np.log(4)) / 2
    np.testing.assert_allclose(impact_loss(learned, true, available), expected, rtol=1e-6)
    assert impact_loss(learned, true, jnp.zeros((1, 3), bool)) == 0.0


def test_policy_loss_stops_pushing_beyond_the_clip():
    def slope(ratio, advantage):
        one = jnp.ones((1,))
        return float(jax.grad(lambda r: policy_loss(r, advantage * one, 0.2))(jnp.log(ratio * one))[0])

    assert slope(1.0, 2.0) == pytest.approx(-2.0)
    assert slope(1.3, 2.0) == 0.0  # far enough already
    assert slope(0.7, -2.0) == 0.0
    assert slope(0.7, 2.0) == pytest.approx(-1.4)  # the wrong way: pulled back
    assert slope(1.3, -2.0) == pytest.approx(2.6)
    two = policy_loss(jnp.log(jnp.array([2.0, 0.5])), jnp.array([1.0, -1.0]), 0.2)
    assert float(two) == pytest.approx(-(1.2 - 0.8) / 2)


def test_value_loss_is_half_the_square_and_is_held_where_asked():
    value, old, target = jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0]), jnp.array([3.0, 2.0])
    assert float(value_loss(value, old, target, None)) == pytest.approx(0.25)
    # The first is right, but went further than 0.5 from the old one: it is judged at 1.5.
    assert float(value_loss(value, old, target, 0.5)) == pytest.approx((1.5**2 + 1.0) / 4)


def test_advantages_are_normalised_whatever_their_scale():
    advantage = jnp.asarray(np.random.default_rng(0).normal(3.0, 5.0, 64), jnp.float32)
    got = normalised(advantage)
    assert float(jnp.mean(got)) == pytest.approx(0.0, abs=1e-6)
    assert float(jnp.std(got)) == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(normalised(100.0 * advantage - 7.0), got, atol=1e-5)
    np.testing.assert_array_equal(normalised(jnp.full((4,), 0.3)), 0.0)


def test_entropy_ignores_masked_actions():
    logits = jnp.array([[0.0, 0.0, -1e9], [0.0, -1e9, -1e9]])
    got, slope = jax.value_and_grad(lambda x: entropy(jax.nn.log_softmax(x)))(logits)
    assert float(got) == pytest.approx(np.log(2) / 2)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_envs", 0),
        ("minibatches", 7),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("clip", -0.1),
        ("value_clip", 0.0),
        ("gamma", 1.0),
        ("gae_lambda", 1.5),
        ("average", 1.0),
        ("entropy_weight", -1.0),
        ("value_warmup_updates", -1),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(InputError, match=field):
        PPOConfig(**{field: value})


def test_network_and_environment_must_agree_on_dropping():
    with pytest.raises(ValueError, match="allow_drop"):
        make_ppo(environment(allow_drop=False), one_good_expert_per_request, NETWORK, CONFIG)
