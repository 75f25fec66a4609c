"""The router's encoder: two forms, any fleet size, no order, no leak, no NaN, one compile."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies.han import HANConfig
from qos_jax.policies.han_star import StarEncoder, graph_by_type
from qos_jax.routing.graph import (
    ARRIVED_FEATURES,
    EXPERT_FEATURES,
    PAIR_FEATURES,
    SLOT_FEATURES,
    GraphFeatures,
)
from qos_jax.routing.graph_tuple import GraphLayout, to_graphs_tuple

ENCODER = StarEncoder(HANConfig(layers=2, hidden=16, heads=4))


def features(seed, experts=3, slots=4, live=0.7, running=0.6, present=1.0) -> GraphFeatures:
    """Random features, zero where masked."""
    rng = np.random.default_rng(seed)

    def draw(shape, mask=None):
        value = rng.normal(size=shape)
        return jnp.asarray(value if mask is None else value * mask[..., None], jnp.float32)

    exists = rng.random(experts) < present
    lives = (rng.random((experts, slots)) < live) & exists[:, None]
    runs = lives & (rng.random((experts, slots)) < running)
    waits = lives & ~runs
    return GraphFeatures(
        arrived=draw(len(ARRIVED_FEATURES)),
        expert=draw((experts, len(EXPERT_FEATURES)), exists),
        slot=draw((experts, slots, len(SLOT_FEATURES)), lives),
        pair=draw((experts, len(PAIR_FEATURES)), exists),
        expert_mask=jnp.asarray(exists),
        running_mask=jnp.asarray(runs),
        waiting_mask=jnp.asarray(waits),
        available=jnp.asarray(exists),
    )


@pytest.fixture(scope="module")
def params():
    """Random weights, the biases too, which start at zero; by NumPy, for a compile less."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(ENCODER.init, jax.random.key(0), features(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes)


@jax.jit
def embed(params, graph):
    return ENCODER.apply(params, graph)


def generic(graph):
    return graph_by_type(to_graphs_tuple(graph), GraphLayout(*graph.running_mask.shape))


def loss(params, graph):
    out = ENCODER.apply(params, graph)
    return jnp.sum(jnp.sin(out.arrived)) + jnp.sum(jnp.cos(out.expert)), out


@jax.jit
def compiled_forms(params, graph):
    both = jax.value_and_grad(loss, has_aux=True)
    return [both(params, graph), both(params, generic(graph))]


def both_forms(params, graph):
    """Outputs and gradients, structured and generic; any NaN on the way is an error."""
    with jax.debug_nans(True):
        return [(out, slope) for (_, out), slope in compiled_forms(params, graph)]


CORNERS = {
    "usual": {},
    "empty": {"live": 0.0},
    "all running": {"live": 1.0, "running": 1.0},
    "all waiting": {"live": 1.0, "running": 0.0},
    "one expert": {"experts": 1},
    "some experts missing": {"present": 0.5},
    "no expert": {"present": 0.0},
}


@pytest.mark.parametrize("case", CORNERS)
def test_both_forms_agree_and_are_finite(case, params):
    graph = features(1, **CORNERS[case])
    structured, reference = both_forms(params, graph)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), structured, reference)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(structured))
    np.testing.assert_array_equal(structured[0].expert[~np.asarray(graph.expert_mask)], 0.0)


def test_both_forms_have_the_same_parameters(params):
    other = jax.eval_shape(
        lambda key, graph: ENCODER.init(key, generic(graph)), jax.random.key(0), features(0)
    )
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, other)


def test_what_is_masked_does_not_count(params):
    """Junk in masked places, large but finite, changes nothing."""
    graph = features(1, present=0.5)
    assert not np.all(graph.expert_mask)
    assert np.any(graph.running_mask)

    def junk(value, mask):
        return jnp.where(mask[..., None], value, 1e3)

    dirty = dataclasses.replace(
        graph,
        expert=junk(graph.expert, graph.expert_mask),
        slot=junk(graph.slot, graph.running_mask | graph.waiting_mask),
        pair=junk(graph.pair, graph.expert_mask),
    )
    clean, other = both_forms(params, graph), both_forms(params, dirty)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), clean, other)


def test_padding_a_fleet_changes_nothing(params):
    graph = features(3)
    grown = {
        field.name: jnp.pad(value, ((0, 3),) + ((0, 0),) * (value.ndim - 1))
        for field in dataclasses.fields(graph)
        if field.name != "arrived"
        for value in [getattr(graph, field.name)]
    }
    small, large = embed(params, graph), embed(params, dataclasses.replace(graph, **grown))
    np.testing.assert_allclose(large.arrived, small.arrived, atol=1e-6)
    np.testing.assert_allclose(large.expert[:3], small.expert, atol=1e-6)


def test_order_of_experts_and_slots_does_not_matter(params):
    graph = features(4, experts=6, slots=8)
    rng = np.random.default_rng(0)
    order, slots = rng.permutation(6), rng.permutation(8)
    per_expert = [f.name for f in dataclasses.fields(graph) if f.name != "arrived"]
    moved = {name: getattr(graph, name)[order] for name in per_expert}
    per_slot = ("slot", "running_mask", "waiting_mask")
    moved |= {name: moved[name][:, slots] for name in per_slot}
    out, same = embed(params, graph), embed(params, dataclasses.replace(graph, **moved))
    np.testing.assert_allclose(same.arrived, out.arrived, atol=1e-5)
    np.testing.assert_allclose(same.expert, out.expert[order], atol=1e-5)


def test_each_part_of_the_graph_is_heard(params):
    """Two rounds reach from any slot to its expert and to the arrived request."""
    graph = features(5, live=1.0, running=0.5)

    out = embed(params, graph)
    for part in ("arrived", "expert", "slot", "pair"):
        other = embed(params, dataclasses.replace(graph, **{part: getattr(graph, part) + 0.5}))
        assert np.abs(other.arrived - out.arrived).max() > 1e-4
        assert np.abs(other.expert - out.expert).max() > 1e-4


@pytest.mark.parametrize("experts", [3, 6, 12])
def test_one_set_of_weights_serves_any_fleet(experts, params):
    out = embed(params, features(6, experts=experts, slots=experts + 2))
    assert out.expert.shape == (experts, 16)
    assert out.arrived.shape == (16,)
    # Experts that differ are told apart.
    assert np.ptp(out.expert, axis=0).max() > 0.01


def test_one_compile_for_one_shape_and_vmap_agrees(params):
    traces = 0

    @jax.jit
    def counted(params, graphs):
        nonlocal traces
        traces += 1
        return jax.vmap(lambda graph: ENCODER.apply(params, graph))(graphs)

    lanes = [features(k, live=0.3 * k) for k in range(4)]
    for some in (lanes[:2], lanes[2:]):
        out = counted(params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *some))
        for k, graph in enumerate(some):
            alone = embed(params, graph)
            jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, atol=1e-5), out, alone)
    assert traces == 1
