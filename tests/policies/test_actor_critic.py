"""The actor-critic starts as projected_greedy, knows no order of experts, and looks at what it may."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.policies.actor_critic import MASKED_LOGIT, ActorCritic, TwinCritic, actor_function, actor_outputs
from qos_jax.policies.corrections import LearnedPrices
from qos_jax.policies.encoders import IMPACT_FEATURES, NetworkConfig
from qos_jax.policies.greedy_params import greedy_params
from qos_jax.policies.han import HANConfig
from qos_jax.policies.heuristics import best_of
from qos_jax.policies.learned import parameter_shapes
from qos_jax.policies.net_gain import impact_of_each, net_gain
from qos_jax.policies.router_input import action_mask, router_input
from qos_jax.routing.graph import PAIR_FEATURES
from tests.policies.random_seen import SLOTS, random_scenes, random_seen, reordered

SCENES, EXPERTS = 64, 3
TINY = {"han": HANConfig(layers=1, hidden=8, heads=2), "hidden": 8, "allow_drop": False}
GREEDY = greedy_params(allow_drop=False)


def network(**choices):
    return NetworkConfig(**(TINY | choices))


def actor(config):
    """(parameters, inputs [B, ...]) -> outputs [B, ...]."""
    return jax.vmap(actor_function(config), (None, 0))


@functools.cache
def program(config):
    """The same, compiled once."""
    return jax.jit(actor(config))


@functools.cache
def fresh(config):
    """Parameters before any training."""
    return jax.jit(ActorCritic(config).init)(jax.random.key(0), at(inputs_of(), 0))


@functools.cache
def random_params(config):
    """Parameters of which none is zero, as if trained."""
    leaves, tree = jax.tree.flatten(parameter_shapes(config, EXPERTS, SLOTS))
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(tree, drawn)


@jax.jit
def gains(greedy, seen):
    """What the greedy router of these parameters weighs, -inf where not available."""
    return jax.vmap(lambda seen: net_gain(greedy, seen, impact_of_each(greedy, seen)))(seen)


@functools.cache
def inputs_of(experts=EXPERTS):
    return jax.jit(jax.vmap(lambda seen: router_input(seen, GREEDY)))(random_scenes(SCENES, experts))


@pytest.fixture(scope="module")
def inputs():
    return inputs_of()


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def by_expert(inputs, rows):
    """The same scenes with the experts in another order; leaves [B, N, ...]."""
    graph = inputs.graph
    moved = {
        field.name: jnp.take(getattr(graph, field.name), rows, axis=1)
        for field in dataclasses.fields(graph)
        if field.name != "arrived"
    }
    return dataclasses.replace(
        inputs,
        graph=dataclasses.replace(graph, **moved),
        gain=jnp.take(inputs.gain, rows, axis=1),
        crowding=jnp.take(inputs.crowding, rows, axis=1),
    )


def close(a, b, tolerance=1e-4):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_the_scenes_are_what_they_are_for(inputs):
    available = np.asarray(inputs.graph.available)
    assert np.sum(~available.any(1)) == SCENES // 4
    assert np.sum(available.any(1) & ~available.all(1)) > SCENES // 8
    best = np.sort(np.where(available, inputs.gain, -np.inf), axis=1)
    assert np.sum((best[:, -1] == best[:, -2]) & np.isfinite(best[:, -1])) > SCENES // 16  # ties


@pytest.mark.parametrize("encoder", ["han", "sets", "flat"])
@pytest.mark.parametrize("drop", [False, True])
def test_before_training_it_chooses_as_projected_greedy(drop, encoder):
    config, seen = network(allow_drop=drop, encoder=encoder), random_scenes(SCENES)
    greedy = greedy_params(allow_drop=drop)
    known = gains(greedy, seen)
    if drop:  # make dropping the best in some scenes
        known = jnp.where(jnp.arange(SCENES)[:, None] % 3 == 0, known - 2.0, known)
    inputs = dataclasses.replace(inputs_of(), gain=jnp.where(jnp.isfinite(known), known, 0.0))
    logits = program(config)(fresh(config), inputs).logits
    expected = jax.vmap(best_of, (0, None))(known, greedy.drop_below)
    np.testing.assert_array_equal(jnp.argmax(logits, -1), expected)
    assert len(np.unique(expected)) == EXPERTS + drop


def test_a_tie_goes_to_the_first_as_the_heuristic_has_it(inputs):
    config = network()
    tied = dataclasses.replace(
        at(inputs, slice(0, 3)), gain=jnp.array([[0.5] * 3, [0.1, 0.5, 0.5], [0.0] * 3])
    )
    tied = dataclasses.replace(tied, graph=dataclasses.replace(tied.graph, available=jnp.ones((3, 3), bool)))
    np.testing.assert_array_equal(jnp.argmax(program(config)(fresh(config), tied).logits, -1), [0, 1, 0])


@pytest.mark.parametrize("drop", [False, True])
def test_masked_actions_are_never_chosen_and_teach_nothing(inputs, drop):
    config = network(allow_drop=drop)
    params = random_params(config)
    available = np.asarray(inputs.graph.available)
    mask = np.asarray(action_mask(inputs, drop))
    if drop:
        np.testing.assert_array_equal(mask[:, :-1], available)
        assert mask[:, -1].all()
    else:
        np.testing.assert_array_equal(mask, available | ~available.any(1, keepdims=True))
    logits = program(config)(params, inputs).logits
    assert logits.shape == (SCENES, EXPERTS + drop)
    np.testing.assert_array_equal(logits[~mask], np.float32(MASKED_LOGIT))
    assert np.all(np.abs(logits[mask]) < 1e4)
    share = np.asarray(jax.nn.softmax(logits))
    assert np.all(share[~mask] == 0.0)
    close(share.sum(-1), 1.0)

    def entropy(params):
        output = actor(config)(params, inputs)
        log_share = jax.nn.log_softmax(output.logits)
        return -jnp.sum(jnp.exp(log_share) * log_share) + jnp.sum(output.value)

    gradient = jax.jit(jax.grad(entropy))(params)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    assert float(jnp.max(jnp.abs(gradient["params"]["actor"]["score"]["kernel"]))) > 0


@pytest.mark.parametrize("encoder", ["han", "sets"])
def test_the_order_of_the_experts_does_not_matter(inputs, encoder):
    config, rows = network(encoder=encoder), np.array([2, 0, 1])
    params = random_params(config)
    plain, moved = program(config)(params, inputs), program(config)(params, by_expert(inputs, rows))
    close(moved.logits, plain.logits[:, rows], 1e-3)  # logits are of order 10
    close(moved.value, plain.value)
    close(moved.quality_correction, plain.quality_correction[:, rows])
    assert np.std(plain.value) > 0.01
    assert np.std(plain.quality_correction) > 0.001


@pytest.mark.parametrize("experts", [1, 7])
def test_one_set_of_weights_serves_any_number_of_experts(experts):
    """Shapes do not depend on it, and neither does what it says of equal experts, all alike."""
    config = network()
    params = random_params(config)
    assert parameter_shapes(config, experts, 2 * SLOTS) == parameter_shapes(config, EXPERTS, SLOTS)
    inputs = inputs_of(experts)
    output = program(config)(params, inputs)
    assert output.logits.shape == output.quality_correction.shape == (SCENES, experts)
    assert bool(jnp.all(jnp.isfinite(output.logits) & jnp.isfinite(output.value)[:, None]))
    twins = by_expert(inputs, np.zeros(experts, int))
    logits = np.asarray(program(config)(params, twins).logits)
    close(logits, np.broadcast_to(logits[:, :1], logits.shape), 1e-3)


@pytest.mark.parametrize("encoder", ["han", "sets"])
def test_experts_that_only_pad_the_fleet_change_nothing(encoder):
    config, seen = network(encoder=encoder), random_scenes(SCENES)
    params = random_params(config)
    padded = reordered(seen, np.array([0, 1, 2, 1, 0]), axis=1)  # the last two exist in no fleet
    exists = jnp.array([True, True, True, False, False])
    wide = jax.jit(jax.vmap(lambda seen: router_input(seen, GREEDY, exists)))(padded)
    plain, wider = program(config)(params, inputs_of()), program(config)(params, wide)
    close(wider.logits[:, :3], plain.logits, 1e-3)
    np.testing.assert_array_equal(wider.logits[:, 3:], np.float32(MASKED_LOGIT))
    close(wider.value, plain.value)
    close(wider.quality_correction[:, :3], plain.quality_correction)


def test_the_flat_encoder_sees_experts_by_their_place(inputs):
    config, rows = network(encoder="flat"), np.array([2, 0, 1])
    params = random_params(config)
    plain, moved = program(config)(params, inputs), program(config)(params, by_expert(inputs, rows))
    assert plain.logits.shape == (SCENES, EXPERTS)
    assert np.max(np.abs(moved.value - plain.value)) > 0.1
    assert fresh(config)["params"]["trunk"]["flat"]["in"]["kernel"].shape[1] == 4 * config.hidden
    with pytest.raises(Exception, match="kernel"):
        program(config)(params, inputs_of(1))


def test_hidden_impact_features_have_no_influence(inputs):
    columns = np.array([name in IMPACT_FEATURES for name in PAIR_FEATURES])
    assert columns.sum() == 6
    graph = inputs.graph
    noise = jax.random.normal(jax.random.key(1), graph.pair.shape)
    other = dataclasses.replace(
        inputs,
        graph=dataclasses.replace(graph, pair=jnp.where(columns, noise, graph.pair)),
        gain=inputs.gain + 1.0,
    )
    for shown in (False, True):
        config = network(impact_features=shown, residual=False)
        params = random_params(config)
        one, two = program(config)(params, inputs), program(config)(params, other)
        same = [np.array_equal(a, b) for a, b in ((one.logits, two.logits), (one.value, two.value))]
        assert same == [not shown] * 2
        np.testing.assert_array_equal(one.quality_correction, two.quality_correction)


def test_without_the_residual_nothing_is_known_before_training(inputs):
    config = network(residual=False)
    output = program(config)(fresh(config), inputs)
    mask = np.asarray(action_mask(inputs, False))
    assert np.max(np.abs(output.logits[mask])) < 0.1  # nearly even
    assert np.max(np.abs(output.logits[mask])) > 0.0


def test_quality_calibration_learns_by_its_own_loss_alone(inputs):
    config = network()
    np.testing.assert_array_equal(program(config)(fresh(config), inputs).quality_correction, 0.0)
    params = random_params(config)

    def others(params):
        output = actor(config)(params, inputs)
        return jnp.sum(jax.nn.log_softmax(output.logits)[:, 0]) + jnp.sum(output.value)

    def own(params):
        return jnp.sum(jnp.square(actor(config)(params, inputs).quality_correction - 0.1))

    def largest(gradient, name):
        return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient["params"][name]))

    of_others, of_own = jax.jit(jax.grad(others))(params), jax.jit(jax.grad(own))(params)
    assert largest(of_others, "quality") == 0.0
    assert largest(of_own, "quality") > 0.0
    for name in ("trunk", "actor", "critic"):
        assert largest(of_others, name) > 0.0
        assert largest(of_own, name) == 0.0


def test_the_calibration_counts_by_the_chance_to_meet_the_limit(inputs):
    """A correction c of the quality is worth c times that chance, in the choice."""
    config = network()
    trained = random_params(config)
    params = {"params": fresh(config)["params"] | {"quality": trained["params"]["quality"]}}
    output = program(config)(params, inputs)
    chance = inputs.graph.pair[..., PAIR_FEATURES.index("own_chance")]
    expected = (inputs.gain + output.quality_correction * chance) / config.temperature
    mask = action_mask(inputs, False)
    close(jnp.where(mask, output.logits, 0.0), jnp.where(mask, expected, 0.0), 1e-3)
    without = network(calibrate_quality=False)
    assert "quality" not in fresh(without)["params"]
    np.testing.assert_array_equal(program(without)(fresh(without), inputs).quality_correction, 0.0)


def test_a_batch_at_once_equals_one_by_one_and_takes_a_correction_that_is_known(inputs):
    config = network()
    params = random_params(config)
    single = program(config)(params, inputs)
    at_once = jax.jit(functools.partial(actor_outputs, config))
    for given in (None, single.quality_correction):
        output = at_once(params, inputs, given)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), output, single)


def test_twin_critics_are_two(inputs):
    config = network(allow_drop=True)
    critic = TwinCritic(config)
    params = jax.jit(critic.init)(jax.random.key(0), at(inputs, 0))
    values = jax.jit(jax.vmap(critic.apply, (None, 0)))
    plain = values(params, inputs)
    assert plain.shape == (SCENES, 2, EXPERTS + 1)
    assert np.max(np.abs(plain[:, 0] - plain[:, 1])) > 0.01
    for part in ("trunk_0", "head_0", "value_0"):
        changed = params["params"] | {part: jax.tree.map(lambda leaf: leaf + 0.1, params["params"][part])}
        moved = values({"params": changed}, inputs)
        assert np.max(np.abs(moved[:, 0] - plain[:, 0])) > 0.001
        np.testing.assert_array_equal(moved[:, 1], plain[:, 1])


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"encoder": "gat"}, "'encoder': 'gat' is unknown .*; use one of han, sets, flat"),
        ({"hidden": 0}, "'hidden': 0 is out of range"),
        ({"temperature": 0.0}, "'temperature': 0.0 is out"),
        ({"temperature": float("nan")}, "'temperature': nan is out"),
        ({"impact_features": False}, "set residual=False as well"),
        ({"information": "everything"}, "'information': 'everything' is unknown"),
        ({"information": "predictions"}, "set residual=False as well"),
        ({"learned_impact": True}, "set information=predictions as well"),
    ],
)
def test_choices_out_of_range(choices, says):
    with pytest.raises(InputError, match=says):
        NetworkConfig(**choices)


def test_learned_prices_are_zero_before_training_and_then_weigh_the_terms_of_the_net_gain():
    """With one change of all weights, that share of the net gain itself is what is added."""
    inputs = jax.jit(router_input)(random_seen(3), GREEDY)
    module = LearnedPrices(hidden=8)
    params = jax.jit(module.init)(jax.random.key(0), inputs)
    prices = jax.jit(module.apply)
    np.testing.assert_array_equal(prices(params, inputs), jnp.zeros_like(inputs.gain))
    change = params["params"]["change"] | {"bias": jnp.full((3,), 0.5)}
    moved = {"params": params["params"] | {"change": change}}
    expected = jnp.where(inputs.graph.available, 0.5 * inputs.gain, 0.0)
    np.testing.assert_allclose(prices(moved, inputs), expected, atol=1e-6)
