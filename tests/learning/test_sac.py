"""Discrete SAC: targets by the formula, a temperature that holds the entropy, and learning from replay."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.learning.replay import ReplayBatch, replay_bytes
from qos_jax.learning.sac import make_sac, sac_replay_bytes
from qos_jax.learning.sac_config import SACConfig
from qos_jax.learning.sac_step import (
    critic_q,
    critic_target,
    entropy_surplus,
    gradient_step,
    init_weights,
    policy_divergence,
    policy_entropy,
    soft_value,
)
from qos_jax.policies.actor_critic import actor_outputs
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.router_input import action_mask
from qos_jax.routing import make_params
from qos_jax.training.hyper import unchecked
from qos_jax.training.train_config import TrainConfig
from qos_jax.workload import poisson
from tests.routing.scenes import EXPERTS, LENGTH_LOG_STD, environment, roomy, table

CONFIG = SACConfig(
    num_envs=8,
    steps_per_update=8,
    gradient_steps=8,
    batch_size=64,
    replay_capacity=512,
    warmup_decisions=256,
    critic_only_steps=16,
    gamma=0.5,
    polyak_tau=0.05,
    actor_learning_rate=3e-3,
    critic_learning_rate=1e-2,
    alpha_learning_rate=1e-2,
    total_updates=36,
    target_entropy_fraction=0.2,
)
WARM = 4  # the update that fills the warm-up, and learns
# Without profiles nothing is projected: programs are ready sooner.
NETWORK = NetworkConfig(
    encoder="flat", hidden=16, information="predictions", residual=False, allow_drop=False
)
ENV = environment(max_steps=16, allow_drop=False, measures=True)
SEEDS = 2


def one_good_expert_per_request(key):
    """A row's quality is 1 at one expert and 0 at the others, and predicted so; nobody is ever in the way."""
    rows = 32
    good = np.eye(EXPERTS, dtype=np.float32)[np.random.default_rng(0).integers(0, EXPERTS, rows)]
    requests = table(0, rows, output_up_to=4).replace(quality=good, predicted_quality=good)
    return make_params(roomy(), requests, 1.0, LENGTH_LOG_STD, process=poisson(1.0))


LEARNER = make_sac(ENV, one_good_expert_per_request, NETWORK, CONFIG)


def given(leaf):
    """Parameters that no initialiser gives, and no two of a leaf alike: experts must differ by them."""
    return jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)


@pytest.fixture(scope="module")
def start():
    """States of fresh parameters, and of given ones, for each seed."""

    def both(key):
        fresh = LEARNER.init(key, None)
        return fresh, LEARNER.init(key, jax.tree.map(given, fresh.weights.actor))

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


@pytest.fixture(scope="module")
def step():
    return jax.jit(functools.partial(gradient_step, NETWORK, CONFIG))


@pytest.fixture(scope="module")
def case(run):
    """Weights that have learned, and a batch: real inputs, some experts unavailable, some ends."""
    state = at(run[0][-1], 0)
    rng = np.random.default_rng(0)

    def some(row):
        """The inputs of decisions of one rollout, with other experts available."""
        inputs = jax.tree.map(lambda leaf: leaf[row, 1:], jax.device_get(state.replay.inputs))
        inputs = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float16 else x, inputs)
        available = rng.random((CONFIG.steps_per_update, CONFIG.num_envs, EXPERTS)) < 0.7
        inputs = dataclasses.replace(inputs, graph=dataclasses.replace(inputs.graph, available=available))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf.reshape(-1, *leaf.shape[2:])), inputs)

    inputs = some(0)
    size = CONFIG.batch_size
    mask = np.asarray(action_mask(inputs, False))
    ends = rng.random(size) < 0.3
    batch = ReplayBatch(
        inputs=inputs,
        action=jnp.asarray([rng.choice(np.flatnonzero(row)) for row in mask], jnp.int32),
        reward=jnp.asarray(rng.normal(size=size), jnp.float32),
        discount=jnp.asarray(np.where(ends, 0.0, 0.5), jnp.float32),
        next_inputs=some(1),
    )
    return state.weights, batch, mask


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


def by_hand(logits, mask, q, alpha):
    """Soft value and entropy of each state, with loops and float64, over the allowed actions only."""
    values, entropies = [], []
    for row in range(len(logits)):
        allowed = np.flatnonzero(mask[row])
        scores = np.asarray(logits, np.float64)[row, allowed]
        p = np.exp(scores - scores.max())
        p /= p.sum()
        entropies.append(-sum(x * np.log(x) for x in p if x > 0))
        values.append(sum(p * np.minimum(q[row, 0], q[row, 1])[allowed]) + alpha * entropies[-1])
    return np.array(values), np.array(entropies)


def test_soft_value_and_entropy_are_the_exact_expectations():
    rng = np.random.default_rng(1)
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]], bool)
    logits = np.where(mask, rng.normal(size=(3, 4)), -1e9).astype(np.float32)
    q = np.where(mask[:, None], rng.normal(size=(3, 2, 4)), 1e6).astype(np.float32)  # must not leak
    values, entropies = by_hand(logits, mask, q, 0.3)
    np.testing.assert_allclose(soft_value(logits, mask, q, jnp.float32(0.3)), values, rtol=1e-5)
    np.testing.assert_allclose(policy_entropy(logits, mask), entropies, rtol=1e-5, atol=1e-6)
    assert entropies[2] == 0.0
    surplus = np.mean(entropies - 0.5 * np.log([4, 2, 1]))
    np.testing.assert_allclose(entropy_surplus(entropies.astype(np.float32), mask, 0.5), surplus, rtol=1e-5)
    # Certain of a masked action's neighbour: no NaN in the gradient either.
    gradient = jax.grad(lambda x: jnp.sum(policy_entropy(x, mask)))(jnp.asarray(logits) * 100.0)
    assert np.all(np.isfinite(gradient))


@jax.jit
def opinions(actor, critic, inputs):
    """Logits and Q of the networks: what is made of them is the matter here."""
    return actor_outputs(NETWORK, actor, inputs).logits, critic_q(NETWORK, critic, inputs)


def targets(weights, batch):
    """Targets of the critics by hand."""
    logits, q = map(np.asarray, opinions(weights.actor, weights.target, batch.next_inputs))
    mask = np.asarray(action_mask(batch.next_inputs, False))
    values, _ = by_hand(logits, mask, q, np.exp(weights.log_alpha))
    return np.asarray(batch.reward) + np.asarray(batch.discount) * values


def test_critic_target_is_reward_and_discounted_soft_value_of_the_target_critics(case):
    weights, batch, _ = case
    assert not np.all(batch.next_inputs.graph.available)
    target = jax.tree.map(lambda leaf: leaf * 1.5, weights.critic)
    weights = dataclasses.replace(weights, target=target, log_alpha=jnp.log(jnp.float32(0.2)))
    target = np.asarray(jax.jit(functools.partial(critic_target, NETWORK))(weights, batch, jnp.float32(0.2)))
    np.testing.assert_allclose(target, targets(weights, batch), rtol=1e-4, atol=1e-4)
    ended = np.asarray(batch.discount) == 0
    assert ended.any()
    np.testing.assert_array_equal(target[ended], np.asarray(batch.reward)[ended])


def test_losses_are_of_the_decisions_taken_and_of_the_lower_critic(case, step):
    weights, batch, mask = case
    logits, q = map(np.asarray, opinions(weights.actor, weights.critic, batch.inputs))
    chosen = np.take_along_axis(q, np.asarray(batch.action)[:, None, None], -1)[..., 0]
    errors = np.square(chosen - targets(weights, batch)[:, None])
    values, _ = by_hand(logits, mask, q, np.exp(weights.log_alpha))
    _, metrics = step(weights, batch)
    np.testing.assert_allclose(metrics["critic_loss"], 0.5 * np.mean(errors.sum(-1)), rtol=1e-4)
    np.testing.assert_allclose(metrics["actor_loss"], -np.mean(values), rtol=1e-4)
    both = np.concatenate([q[:, 0][mask], q[:, 1][mask]])
    np.testing.assert_allclose(metrics["q"], both.mean(), rtol=1e-4)


@pytest.mark.parametrize(("share", "falls"), [(0.0, True), (1e4, False)])
def test_alpha_moves_the_entropy_toward_its_target(case, step, share, falls):
    weights, batch, mask = case
    # Logits of zero are the largest entropy, huge ones the least.
    actor = jax.tree.map(lambda leaf: leaf * share, weights.actor)
    weights = dataclasses.replace(weights, actor=actor, steps=jnp.int32(CONFIG.critic_only_steps))
    logits, _ = opinions(actor, weights.critic, batch.inputs)
    entropy = np.mean(policy_entropy(logits, mask))
    target = np.mean(0.2 * np.log(mask.sum(-1)))
    assert (entropy > target) == falls
    log_alpha = float(weights.log_alpha)
    # From a fresh optimiser, whose first step is the sign of the gradient times the rate.
    optimizer = jax.tree.map(jnp.zeros_like, weights.alpha_optimizer)
    moved, _ = step(dataclasses.replace(weights, alpha_optimizer=optimizer), batch)
    np.testing.assert_allclose(float(moved.log_alpha) - log_alpha, -1e-2 if falls else 1e-2, rtol=1e-3)


WEIGHTS = (0.03, 1e3)  # of the prior, QoS per nat
HELD_STEPS = 50


@pytest.fixture(scope="module")
def held(case):
    """Weights that had a prior from the start, learned from the batch with each of WEIGHTS; their metrics."""
    weights, batch, _ = case
    actor = jax.tree.map(lambda leaf: 0.3 * given(leaf), weights.actor)  # no policy that is certain
    start = init_weights(NETWORK, CONFIG, jax.random.key(0), at(batch.inputs, 0), actor)
    # Critics that know something, on which the actor acts at once.
    start = dataclasses.replace(start, critic=weights.critic, target=weights.target)
    start = dataclasses.replace(start, steps=jnp.int32(CONFIG.critic_only_steps))

    @jax.jit
    @jax.vmap
    def learn(prior_weight):
        config = unchecked(TrainConfig(agent="sac", sac=CONFIG), {"sac.prior_weight": prior_weight}).sac
        step = functools.partial(gradient_step, NETWORK, config)
        return jax.lax.scan(lambda held, _: step(held, batch), start, None, length=HELD_STEPS)

    return start, *learn(jnp.array(WEIGHTS))


def test_what_the_actor_starts_from_is_its_prior_where_that_is_a_policy(start):
    fresh, from_given = start
    assert fresh.weights.prior is None
    assert equal(from_given.weights.prior, from_given.weights.actor)
    env = environment(max_steps=16, allow_drop=False)
    network = NetworkConfig(encoder="sets", hidden=8, allow_drop=False)
    for weight in (CONFIG.prior_weight, None):
        config = dataclasses.replace(CONFIG, prior_weight=weight)
        learner = make_sac(env, one_good_expert_per_request, network, config)
        residual = jax.eval_shape(learner.init, jax.random.key(0))
        assert (residual.weights.prior is None) == (weight is None)


def test_with_a_prior_the_objective_is_the_lower_q_less_the_divergence(case, held):
    weights, batch, mask = case
    start, _, metrics = held
    prior, q = map(np.asarray, opinions(start.prior, weights.critic, batch.inputs))
    values, _ = by_hand(prior, mask, q, 0.0)
    # The first step is from the prior itself: nothing diverges yet.
    np.testing.assert_allclose(metrics["actor_loss"][:, 0], -values.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["divergence"][:, 0], 0.0, atol=1e-6)
    # The critics' target has neither entropy nor divergence.
    plain = dataclasses.replace(start, log_alpha=jnp.float32(-np.inf))
    chosen = np.take_along_axis(q, np.asarray(batch.action)[:, None, None], -1)[..., 0]
    errors = np.square(chosen - targets(plain, batch)[:, None])
    np.testing.assert_allclose(metrics["critic_loss"][:, 0], 0.5 * np.mean(errors.sum(-1)), rtol=1e-4)
    rng = np.random.default_rng(2)
    logits = np.where(mask, rng.normal(size=mask.shape), -1e9).astype(np.float32)
    expected = []
    for row, allowed in enumerate(mask):
        p, r = (np.exp(x[row, allowed].astype(np.float64)) for x in (logits, prior))
        p, r = p / p.sum(), r / r.sum()
        expected.append(np.sum(p * np.log(p / r)))
    np.testing.assert_allclose(policy_divergence(logits, prior, mask), expected, rtol=1e-4, atol=1e-6)


def test_a_heavy_prior_holds_the_policy_and_a_light_one_lets_it_learn(held):
    start, ends, metrics = held
    light, heavy = metrics["divergence"][:, -1]
    assert heavy < 1e-4
    assert light > 0.1
    # Alpha has no part in it, and the prior stays what it was.
    assert np.all(np.asarray(ends.log_alpha) == start.log_alpha)
    for index in range(len(WEIGHTS)):
        assert equal(at(ends.prior, index), start.prior)


def test_targets_follow_by_tau_and_the_critics_learn_first(case, step):
    weights, batch, _ = case
    weights = dataclasses.replace(weights, target=jax.tree.map(jnp.zeros_like, weights.target))
    learner = ("actor", "actor_optimizer", "log_alpha", "alpha_optimizer")
    for steps, still in ((CONFIG.critic_only_steps - 1, True), (CONFIG.critic_only_steps, False)):
        moved, _ = step(dataclasses.replace(weights, steps=jnp.int32(steps)), batch)
        jax.tree.map(
            lambda target, critic: np.testing.assert_allclose(target, 0.05 * critic, rtol=1e-5, atol=1e-9),
            moved.target,
            moved.critic,
        )
        assert not equal(moved.critic, weights.critic)
        assert [equal(getattr(moved, name), getattr(weights, name)) for name in learner] == [still] * 4
        assert int(moved.steps) == steps + 1


def test_it_learns_which_expert_serves_which_request(run):
    _, metrics = run
    # Before anything is learned one in three is good. Of the last 256 decisions 0.6 must be: nine standard
    # errors above chance, and below each of twelve keys tried (eleven 1.0, one 0.7): rounding changes a run.
    assert np.all(np.abs(metrics["qos"][:WARM].mean(0) - 1 / 3) < 0.1)
    assert np.all(metrics["qos"][-4:].mean(0) > 0.6)
    assert np.all(metrics["entropy"][-1] < 0.5 * np.log(EXPERTS))


def test_until_the_replay_is_warm_decisions_are_random_and_nothing_is_learned(run):
    states, metrics = run
    for update in range(WARM - 1):
        assert equal(states[update + 1].weights, states[0].weights)
        assert np.all(states[update].uniform)
    assert not equal(states[WARM].weights.critic, states[0].weights.critic)
    assert np.all(states[WARM].weights.steps == CONFIG.gradient_steps)
    assert equal(states[WARM + 1].weights.actor, states[0].weights.actor)  # the critics alone, 16 steps
    assert not equal(states[WARM + 2].weights.actor, states[0].weights.actor)
    np.testing.assert_allclose(metrics["entropy"][:WARM], np.log(EXPERTS), rtol=1e-5)
    fill = np.minimum(np.arange(1, CONFIG.total_updates + 1) * 64 / 512, 1.0)
    np.testing.assert_array_equal(metrics["replay_fill"], np.stack([fill] * SEEDS, 1).astype(np.float32))
    learning = np.arange(CONFIG.total_updates) >= WARM - 1
    for name in ("critic_loss", "actor_loss", "q"):
        np.testing.assert_array_equal(np.all(metrics[name] != 0, axis=1), learning)
    # Rewards are centered by the mean of the warm-up, once and for all.
    warm = np.asarray(states[WARM].replay.reward)[:, :WARM].mean((1, 2, 3))
    for state in states[WARM:]:
        np.testing.assert_allclose(state.baseline, warm, rtol=1e-5)


def test_the_replay_holds_what_each_decision_led_to_also_where_a_lane_was_renewed(run):
    states, _ = run
    replay = states[8].replay  # just full: its rollouts are in order
    prompt = np.asarray(replay.inputs.graph.arrived)[..., 0]
    gain = np.asarray(replay.inputs.gain)
    reached = np.concatenate([prompt[:, :, -1, :, None], gain[:, :, -1]], -1)[:, :-1]
    begun = np.concatenate([prompt[:, :, 0, :, None], gain[:, :, 0]], -1)[:, 1:]
    cut = np.any(reached != begun, axis=-1)
    # Episodes of 16 decisions are two rollouts: half the lanes end at each, and those only.
    assert 0.3 < cut.mean() <= 0.5
    # The time limit is no end: all of them are bootstrapped from.
    assert not np.any(replay.terminated)


def test_the_state_is_all_there_is(run, update):
    states, metrics = run
    again, figures = update(jax.tree.map(jnp.copy, states[WARM + 2]))
    assert equal(again, states[WARM + 3])
    assert equal(figures, {name: value[WARM + 2] for name, value in metrics.items()})


def test_seeds_are_independent_runs(run, update):
    states, _ = run
    assert not equal(at(states[-1], 0).weights, at(states[-1], 1).weights)
    swapped, _ = update(jax.tree.map(lambda leaf: leaf[::-1], states[WARM]))
    for seed in range(SEEDS):
        assert equal(at(swapped, seed), at(states[WARM + 1], 1 - seed))


def test_no_key_is_used_twice(run):
    states, _ = run
    keys = [np.asarray(jax.random.key_data(k)) for s in states for k in (s.key, s.lanes.key)]
    assert len({key.tobytes() for pair in keys for key in pair}) == 2 * SEEDS * len(states)


def test_given_parameters_are_where_the_actor_starts_and_what_decides(start, update):
    _, state = start
    for seed in range(SEEDS):
        assert equal(LEARNER.params(at(state, seed)), jax.tree.map(given, LEARNER.params(at(state, seed))))
    assert not np.any(state.uniform)
    # The prior is for the gradient steps: without it the program is the others'.
    _, metrics = update(dataclasses.replace(state, weights=dataclasses.replace(state.weights, prior=None)))
    # As random decisions would have it is log(experts), whatever was given.
    assert np.all(np.abs(metrics["entropy"] - np.log(EXPERTS)) > 0.01)


def test_the_replay_takes_the_bytes_that_are_told(start):
    told = sac_replay_bytes(ENV, one_good_expert_per_request, CONFIG)
    assert told * SEEDS == sum(leaf.nbytes for leaf in jax.tree.leaves(start[0].replay))
    full = dataclasses.replace(CONFIG, half_precision_replay=False)
    example = at(start[0], 0).lanes.input
    assert sac_replay_bytes(ENV, one_good_expert_per_request, full) == replay_bytes(example, 512, 8) > told


def test_network_and_environment_must_agree_on_dropping():
    with pytest.raises(ValueError, match="allow_drop"):
        make_sac(ENV, one_good_expert_per_request, dataclasses.replace(NETWORK, allow_drop=True), CONFIG)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_envs", 0),
        ("batch_size", 0),
        ("n_step", 9),
        ("gamma", 1.0),
        ("polyak_tau", 0.0),
        ("alpha_learning_rate", float("nan")),
        ("target_entropy_fraction", 1.5),
        ("initial_alpha", 2.0),
        ("prior_weight", 0.0),
        ("critic_only_steps", -1),
        ("replay_capacity", 63),
        ("warmup_decisions", 513),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(CONFIG, **{field: value})
