"""A trained network as a policy: any fleet, deterministic unless asked, and the sizes its weights are for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies import policy
from qos_jax.policies.actor_critic import actor_function, init_router
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.greedy_params import load_aware_params
from qos_jax.policies.han import HANConfig
from qos_jax.policies.learned import flat_sizes, learned_policy, parameter_shapes
from qos_jax.policies.router_input import router_input
from qos_jax.simulation.simulate import Runs, repeated_limits, simulate
from tests.policies.random_seen import SLOTS, random_scenes, random_seen
from tests.routing.scenes import SERVING, profile, table

SCENES, TRAINED = 32, 6
CONFIG = NetworkConfig(han=HANConfig(layers=1, hidden=8, heads=2), hidden=8, allow_drop=False)
KEYS = jax.random.split(jax.random.key(0), SCENES)


def weights(config=CONFIG, experts=TRAINED, scale=0.3):
    """Parameters for a fleet of ``experts``; of scale 0, as before any training."""
    shapes = parameter_shapes(config, experts, SLOTS)
    leaves, tree = jax.tree.flatten(shapes["params"])
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(scale * rng.normal(size=x.shape), x.dtype) for x in leaves]
    start = load_aware_params()
    return {
        "params": jax.tree.unflatten(tree, drawn),
        "greedy": {name: getattr(start, name) for name in shapes["greedy"]},
    }


@functools.partial(jax.jit, static_argnums=0)
def choices(router, params, keys, seen):
    return jax.vmap(router, (None, 0, 0))(params, keys, seen)


@pytest.mark.parametrize("experts", [3, 6, 12, 24])
def test_weights_of_six_experts_route_on_any_fleet(experts):
    seen = random_scenes(SCENES, experts)
    mine = learned_policy("mine", CONFIG, weights())
    chosen = np.asarray(choices(mine.router, mine.params, KEYS, seen))
    available = np.asarray(seen.available)
    assert chosen.dtype == np.int32
    assert np.all(available[np.arange(SCENES), chosen] | ~available.any(1))
    assert len(np.unique(chosen)) > experts // 3
    # Before training it is the heuristic, on every fleet.
    untrained = learned_policy("untrained", CONFIG, weights(scale=0.0))
    greedy = policy("load_aware_greedy", allow_drop=False)
    same = choices(untrained.router, untrained.params, KEYS, seen)
    expected = np.asarray(choices(greedy.router, greedy.params, KEYS, seen))
    twins = np.arange(SCENES) % 4 == 2  # rounding breaks ties between equal experts, and so may the program
    np.testing.assert_array_equal(np.where(twins, same // 2, same), np.where(twins, expected // 2, expected))


def test_it_starts_from_the_net_gain_whose_numbers_it_was_trained_with():
    seen = random_scenes(SCENES, TRAINED)
    untrained = weights(scale=0.0)
    dear = {**untrained, "greedy": {**untrained["greedy"], "congestion_price": jnp.float32(50.0)}}
    plain, other = (learned_policy("x", CONFIG, params) for params in (untrained, dear))
    assert plain.router is other.router
    same = choices(plain.router, plain.params, KEYS, seen)
    assert np.any(np.asarray(same) != np.asarray(choices(other.router, other.params, KEYS, seen)))


def test_deterministic_by_default_and_drawn_when_asked():
    seen, count = random_seen(0, TRAINED), 4000
    config = dataclasses.replace(CONFIG, temperature=0.3)
    params = weights(config, scale=0.1)
    likely, drawn = (learned_policy("x", config, params, stochastic=draw) for draw in (False, True))
    assert likely.summary != drawn.summary
    logits = jax.jit(
        lambda seen: actor_function(config)(params, router_input(seen, load_aware_params())).logits
    )(seen)
    keys = jax.random.split(jax.random.key(1), count)
    scenes = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), seen)
    assert set(np.asarray(choices(likely.router, likely.params, keys, scenes))) == {int(jnp.argmax(logits))}
    shares = np.bincount(choices(drawn.router, drawn.params, keys, scenes), minlength=TRAINED) / count
    expected = np.asarray(jax.nn.softmax(logits))
    assert np.sum(expected > 0.02) > 1
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / count))


def test_equal_configurations_are_one_program():
    one, two = (learned_policy(name, NetworkConfig(), weights(NetworkConfig())) for name in "ab")
    assert one.act_function() is two.act_function()
    assert learned_policy("c", CONFIG, weights()).act_function() is not one.act_function()


def test_it_may_drop_where_it_was_trained_to():
    config = dataclasses.replace(CONFIG, allow_drop=True)
    hopeless = jax.tree.map(lambda leaf: leaf[1:2], random_scenes(SCENES))  # no queue has room
    assert not bool(jnp.any(hopeless.available))
    mine = learned_policy("mine", config, weights(config))
    assert choices(mine.router, mine.params, KEYS[:1], hopeless).tolist() == [3]
    never = learned_policy("never", config, mine.params, allow_drop=False)
    assert choices(never.router, never.params, KEYS[:1], hopeless).tolist()[0] < 3
    seen = random_scenes(SCENES)
    may, may_not = (np.asarray(choices(p.router, p.params, KEYS, seen)) for p in (mine, never))
    np.testing.assert_array_equal(may_not[may < 3], may[may < 3])
    assert np.all(may_not < 3)
    plain = learned_policy("plain", CONFIG, weights())
    assert choices(plain.router, plain.params, KEYS[:1], hopeless).tolist()[0] < 3


WITHOUT_PROFILES = {"information": "predictions", "residual": False, "learned_impact": True}


@pytest.mark.parametrize("choices", [{}, WITHOUT_PROFILES], ids=["profiles", "predictions"])
@pytest.mark.parametrize("encoder", ["han", "sets", "flat"])
def test_shapes_are_those_of_the_network(encoder, choices):
    config = NetworkConfig(encoder=encoder, han=CONFIG.han, hidden=8, **choices)
    known = jax.jit(router_input, static_argnames="information")
    inputs = known(random_seen(0), load_aware_params(), information=config.information)
    made = jax.eval_shape(lambda key: init_router(config, key, inputs), jax.random.key(0))
    assert parameter_shapes(config, 3, SLOTS) == made
    assert (parameter_shapes(config, 4, SLOTS) == made) == (encoder != "flat")


@pytest.mark.parametrize(("experts", "slots"), [(1, 2), (3, 7), (6, 32), (24, 1)])
def test_a_flat_network_tells_what_fleet_it_is_for(experts, slots):
    for choices in ({}, WITHOUT_PROFILES):
        config = NetworkConfig(encoder="flat", hidden=16, **choices)
        assert flat_sizes(config, parameter_shapes(config, experts, slots)) == (experts, slots)


def test_without_profiles_it_starts_from_the_net_gain_of_its_own_estimate():
    config = dataclasses.replace(CONFIG, **WITHOUT_PROFILES)
    untrained = learned_policy("untrained", config, weights(config, scale=0.0))
    assert (untrained.knows, untrained.measures) == ("predictions", True)
    seen = random_scenes(SCENES, TRAINED)
    chosen = np.asarray(choices(untrained.router, untrained.params, KEYS, seen))
    quality = np.where(seen.available, seen.predicted_quality, -1.0)
    some = np.asarray(seen.available).any(1)
    np.testing.assert_array_equal(chosen[some], quality.argmax(1)[some])


def test_what_it_measures_changes_its_choices_in_a_simulation():
    config = dataclasses.replace(CONFIG, **WITHOUT_PROFILES)
    trained = learned_policy("mine", config, weights(config, experts=3))
    rng, shape = np.random.default_rng(0), (2, 48)
    runs = Runs(
        profile=profile(),
        limits=repeated_limits(0.06, 2),
        length_log_std=np.full((2, 3), 0.5, np.float32),
        arrival_s=np.cumsum(rng.exponential(0.1, shape), axis=1),
        requests=jax.tree.map(lambda leaf: np.stack([leaf, leaf]), table(0, 48)),
        seed=np.zeros(2, np.uint32),
    )
    serving = SERVING["prefill_first"]
    records = simulate(serving, trained, runs).records
    blind = dataclasses.replace(trained, measures=False)
    assert np.any(records.expert != simulate(serving, blind, runs).records.expert)
