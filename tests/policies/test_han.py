"""The HAN layers agree with PyTorch Geometric's, their two forms with each other, and masks hide all."""

import doctest
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qos_jax.policies.han as han
from qos_jax.errors import InputError
from qos_jax.policies.han import HANConfig, HANEncoder, HANLayer
from qos_jax.policies.han_attention import Edges, GroupedEdges

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden_hanconv.json").read_text())
SMALL = HANConfig(layers=1, hidden=8, heads=2)


def array(value, dtype=np.float32):
    return jnp.asarray(np.asarray(value, dtype))


def edges(senders, receivers, **options):
    return Edges(senders=array(senders, np.int32), receivers=array(receivers, np.int32), **options)


def all_true(nodes):
    return {name: jnp.ones(len(value), bool) for name, value in nodes.items()}


def run(module, params, nodes, masks, sets):
    """Apply a module, compiled: op by op it is many small compiles."""
    return jax.jit(module.apply)(params, nodes, masks, sets)


def init(module, nodes, masks, sets):
    """Random weights, the biases too; by NumPy, for a compile less."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(1), nodes, masks, sets)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes)


def golden_case():
    """Inputs and weights of the golden file, in our names."""
    weights = GOLDEN["weights"]
    heads, width = np.shape(next(iter(weights["a_src"].values())))
    params = {
        "semantic": {
            "key": {name: array(value) for name, value in weights["key"].items()},
            "query": array(weights["query"]),
        }
    }
    for name, dense in weights["project"].items():
        params[f"project_{name}_kernel"] = array(dense["kernel"]).reshape(-1, heads, width)
        params[f"project_{name}_bias"] = array(dense["bias"]).reshape(heads, width)
    for end in ("a_src", "a_dst"):
        params |= {f"{kind}_{end}": array(value) for kind, value in weights[end].items()}
    nodes = {name: array(value) for name, value in GOLDEN["nodes"].items()}
    sets = {tuple(kind.split("__")): edges(*ends) for kind, ends in GOLDEN["edges"].items()}
    config = HANConfig(layers=1, hidden=heads * width, heads=heads)
    return config, {"params": params}, nodes, sets


def test_equals_pytorch_geometric():
    config, params, nodes, sets = golden_case()
    out = run(HANLayer(config, residual=False), params, nodes, all_true(nodes), sets)
    assert set(out) == set(GOLDEN["out"])
    for name, value in GOLDEN["out"].items():
        np.testing.assert_allclose(out[name], value, atol=1e-6)


def test_padding_the_golden_case_changes_nothing():
    config, params, nodes, sets = golden_case()
    masks = {name: jnp.arange(len(value) + 2) < len(value) for name, value in nodes.items()}
    padded = {name: jnp.pad(value, ((0, 2), (0, 0)), constant_values=9.0) for name, value in nodes.items()}
    sets = {
        kind: edges(
            np.append(np.asarray(e.senders), [0, len(nodes[kind[0]])]),
            np.append(np.asarray(e.receivers), [len(nodes[kind[2]]), 0]),
        )
        for kind, e in sets.items()
    }
    out = run(HANLayer(config, residual=False), params, padded, masks, sets)
    for name, value in GOLDEN["out"].items():
        np.testing.assert_allclose(out[name][: len(value)], value, atol=1e-6)
        np.testing.assert_array_equal(out[name][len(value) :], 0.0)


def test_by_hand():
    """One head of one feature: weights e^1 and e^2, so (1 e + 2 e^2) / (e + e^2) = 1.73106; then edges."""
    nodes = {"a": array([[1.0], [2.0]]), "b": array([[5.0]])}
    one = jnp.ones((1, 1), jnp.float32)
    params = {
        "project_a_kernel": one[None],
        "project_a_bias": 0.0 * one,
        "project_b_kernel": one[None],
        "project_b_bias": one,
        "a__to__b_a_src": one,
        "a__to__b_a_dst": 0.0 * one,
        "semantic": {"key": {"kernel": one, "bias": one[0]}, "query": one},
    }
    layer = HANConfig(layers=1, hidden=1, heads=1)

    def apply(params, residual, **options):
        sets = {("a", "to", "b"): edges([0, 1], [0, 0], **options)}
        return run(HANLayer(layer, residual), {"params": params}, nodes, all_true(nodes), sets)["b"].item()

    assert apply(params, False) == pytest.approx(1.7310586, rel=1e-6)
    assert apply(params, True) == pytest.approx(1.7310586 + 6.0, rel=1e-6)
    assert apply(params, False, mask=jnp.array([True, False])) == 1.0
    # An edge feature of 1 on the first edge makes both scores 2 and its message 2.
    params |= {"a__to__b_edge_kernel": one[None], "a__to__b_a_edge": one}
    assert apply(params, False, features=array([[1.0], [0.0]])) == pytest.approx(2.0, rel=1e-6)


def grouped_case(seed, groups, received, sent, keep=0.6):
    """The same random graph as grouped edges and as a list."""
    rng = np.random.default_rng(seed)
    nodes = {
        "s": array(rng.normal(size=(groups * sent, 3))),
        "r": array(rng.normal(size=(groups * received, 5))),
    }
    masks = {name: array(rng.random(len(value)) < 0.8, bool) for name, value in nodes.items()}
    mask = rng.random((groups, received, sent)) < keep
    features = rng.normal(size=(groups, received, sent, 2))
    g, r, s = np.indices(mask.shape).reshape(3, -1)
    back = {"features": array(features).swapaxes(1, 2), "mask": array(mask, bool).swapaxes(1, 2)}
    dense = {
        ("s", "to", "r"): GroupedEdges(groups, mask=array(mask, bool), features=array(features)),
        ("s", "also", "r"): GroupedEdges(groups),
        ("r", "back", "s"): GroupedEdges(groups, **back),
    }
    sender, receiver = g * sent + s, g * received + r
    features, mask = array(features.reshape(-1, 2)), array(mask.reshape(-1), bool)
    listed = {
        ("s", "to", "r"): edges(sender, receiver, features=features, mask=mask),
        ("s", "also", "r"): edges(sender, receiver),
        ("r", "back", "s"): edges(receiver, sender, features=features, mask=mask),
    }
    return nodes, masks, dense, listed


@functools.partial(jax.jit, static_argnums=0)
def value_and_slopes(encoder, params, nodes, masks, sets):
    def loss(params, nodes):
        out = encoder.apply(params, nodes, masks, sets)
        return sum(jnp.sum(jnp.sin(value)) for value in out.values()), out

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, nodes)


@pytest.mark.parametrize(
    ("groups", "received", "sent", "keep"), [(2, 3, 4, 0.6), (2, 3, 4, 0.0), (3, 1, 4, 0.6)]
)
def test_lists_and_groups_agree(groups, received, sent, keep):
    nodes, masks, dense, listed = grouped_case(5, groups, received, sent, keep)
    encoder = HANEncoder(SMALL)
    params = init(encoder, nodes, masks, dense)
    results = [value_and_slopes(encoder, params, nodes, masks, sets) for sets in (dense, listed)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(results))


@pytest.mark.parametrize("form", ["dense", "listed"])
def test_large_scores_do_not_overflow(form):
    nodes, masks, dense, listed = grouped_case(6, 2, 3, 4)
    sets = dense if form == "dense" else listed
    layer = HANLayer(SMALL)
    params = init(layer, nodes, masks, sets)
    nodes = jax.tree.map(lambda x: 1e4 * x, nodes)
    grad = jax.jit(jax.grad(lambda p: jnp.sum(layer.apply(p, nodes, masks, sets)["r"])))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grad))


def test_a_type_without_edges_takes_no_weight():
    """Where it differs from HANConv: an edge type of which no edge exists is as if it were not there."""
    nodes = {"a": array([[1.0, 2.0]]), "b": array([[3.0], [4.0]])}
    one = {("a", "to", "b"): edges([0, 0], [0, 1]), ("b", "near", "b"): edges([0], [1])}
    layer = HANLayer(SMALL)
    params = init(layer, nodes, all_true(nodes), one)
    none = one | {("b", "near", "b"): edges([0], [1], mask=jnp.array([False]))}
    out = run(layer, params, nodes, all_true(nodes), none)["b"]
    without = {("a", "to", "b"): one["a", "to", "b"]}
    np.testing.assert_allclose(out, run(layer, params, nodes, all_true(nodes), without)["b"], atol=1e-6)


def test_example_in_the_docstring():
    result = doctest.testmod(han)
    assert result.attempted > 5
    assert result.failed == 0


@pytest.mark.parametrize("wrong", [{"heads": 0}, {"layers": 0}, {"hidden": 60}])
def test_sizes_are_checked(wrong):
    with pytest.raises(InputError, match=r"multiple|out of range"):
        HANConfig(**wrong)


def test_nothing_to_compute_is_an_error():
    nodes = {"a": jnp.ones((1, 2)), "b": jnp.ones((1, 2))}
    layer = HANLayer(SMALL, residual=False, outputs=("a",))
    with pytest.raises(ValueError, match="no edge leads to a"):
        layer.init(jax.random.key(0), nodes, all_true(nodes), {("a", "to", "b"): edges([0], [0])})
