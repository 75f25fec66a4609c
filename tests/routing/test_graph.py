"""The graph observation: documented numbers, finite and scale-free, and a jraph graph of static shape."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing import projected_impact
from qos_jax.routing.graph import (
    ARRIVED_FEATURES,
    EXPERT_FEATURES,
    PAIR_FEATURES,
    SLOT_FEATURES,
    graph_features,
)
from qos_jax.routing.graph_tuple import EDGE_TYPES, NODE_TYPES, GraphLayout, to_graphs_tuple
from tests.routing import scenes, seen

MARGIN = jnp.float32(0.3)
COUNT = 60
NAMES = {
    "arrived": ARRIVED_FEATURES,
    "expert": EXPERT_FEATURES,
    "running": SLOT_FEATURES,
    "waiting": SLOT_FEATURES,
    "pair": PAIR_FEATURES,
}


def graph_of(observation, margin, expert_mask=None):
    return graph_features(observation, projected_impact(observation, margin), expert_mask)


features_of = jax.jit(graph_of)
many = jax.jit(jax.vmap(graph_of, (0, None)))


@pytest.fixture(scope="module", params=["prefill_first", "chunked_prefill"])
def observations(request):
    env = scenes.environment(request.param)
    params = scenes.replay_params(3, COUNT, mean_gap_s=0.05)
    _, results, _ = scenes.rollout(env, jax.random.key(0), params, scenes.random_actions(3, COUNT))
    return results.observation


def columns(graph, part):
    return dict(zip(NAMES[part], np.moveaxis(np.asarray(getattr(graph, part)), -1, 0), strict=True))


def test_finite_and_of_order_one_in_a_crowded_run(observations):
    graph = many(observations, MARGIN)
    assert np.any(graph.waiting_mask)
    assert not np.all(graph.available)
    for part, names in NAMES.items():
        value = np.asarray(getattr(graph, part))
        assert value.dtype == np.float32
        assert value.shape[-1] == len(names)
        assert np.all(np.isfinite(value))
        assert np.abs(value).max() < 5.0
    np.testing.assert_array_equal(graph.running_mask, observations.running)
    np.testing.assert_array_equal(graph.waiting_mask, observations.waiting)
    for part in ("running", "waiting"):
        mask = np.asarray(getattr(graph, f"{part}_mask"))
        np.testing.assert_array_equal(np.asarray(getattr(graph, part))[~mask], 0.0)


def test_clocks_do_not_matter(observations):
    """Times in another unit, L with them, give the same features: they carry over to other hardware."""
    slow = {
        name: 4.0 * getattr(observations.profile, name)
        for name in [f.name for f in dataclasses.fields(observations.profile)]
        if name.endswith("_s")
    }
    other = dataclasses.replace(
        observations,
        profile=dataclasses.replace(observations.profile, **slow),
        limits=jax.tree.map(lambda limit_s: 4.0 * limit_s, observations.limits),
        **{name: 4.0 * getattr(observations, name) for name in ("lead_s", "age_s")},
    )
    one, two = many(observations, MARGIN), many(other, MARGIN)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one, two)


@pytest.mark.parametrize(
    "extreme",
    [
        {"slots": 0},
        {"slots": 3},
        {"age_s": 1e5, "generated": 1},
        {"generated": 4000, "predicted": 1.0, "length_log_std": 0.7},
        {"generated": 0, "age_s": 0.0, "lead_s": 30.0},
        {"predicted_new": 1.0},
        {"predicted_new": 1e4},
    ],
)
def test_extremes_stay_finite(extreme):
    graph = features_of(seen.observation(**extreme), MARGIN)
    for part in NAMES:
        value = np.asarray(getattr(graph, part))
        assert np.all(np.isfinite(value))
        assert np.abs(value).max() < 20.0


def test_formulas_by_hand():
    """Two requests of prompt 100, 10 generated of 20, run on expert 0; the newcomer: prompt 10, output 5."""
    view = seen.observation(slots=2, lead_s=0.06)
    graph = features_of(view, MARGIN)
    assert seen.LIMIT_S == 0.06
    l1p = math.log1p
    expected = {
        "arrived": {
            "prompt": l1p(10) / 8,
            "mean_output": l1p(5) / 8,
            "best_quality": 0.9,
            "mean_quality": 0.7,
            "fleet_load": l1p(2 / 6),
            "load_short": l1p(0.5),
            "load_long": l1p(0.25),
        },
        "expert": {
            "batch_share": 2 / 3,
            "queue_share": 0,
            "kv_share": 0.22,
            "kv_committed": l1p(0.24),
            "lead": l1p(1) / 2,
            "work": l1p(20 / 5) / 4,
            "pace_now": l1p((0.02 + 2e-4 * 230) / 0.06),
            "pace_alone": l1p((0.02 + 2e-4 * 10) / 0.06),
            "pace_full": l1p((0.02 + 2e-4 * 1000) / 0.06),
            "prefill": l1p(0.11 / 0.3),
            "network": l1p(0.05 / 0.3),
            "length_log_std": 0,
            "batch_size": l1p(3) / 8,
            "crowding": l1p((2 / 3) ** 3),
            "available": 1,
        },
        "running": {
            "left": l1p(10) / 8,
            "done": 0.5,
            "spent": l1p(0.5 / 1.2),
            "slack": (0.7 / 0.6) / (1 + 0.7 / 0.6),
            "age": l1p(0.5 / 0.06) / 8,
            "prompt": l1p(100) / 8,
            "kv_share": 0.11,
            "prefill_left": 0,
            "quality": 0.75,
        },
    }
    first = {"arrived": (), "expert": (0,), "running": (0, 0)}
    for part, values in expected.items():
        got = {name: column[first[part]].item() for name, column in columns(graph, part).items()}
        assert got == pytest.approx(values, rel=2e-3, abs=1e-6), part
    impact = jax.jit(projected_impact)(view, MARGIN)
    pair = columns(graph, "pair")
    np.testing.assert_allclose(pair["quality"], [0.5, 0.9])
    np.testing.assert_allclose(pair["own_chance"], impact.own_chance, rtol=1e-5)
    np.testing.assert_allclose(pair["net"], impact.own_qos - impact.penalty, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.expm1(pair["penalty"]), impact.penalty, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.expm1(pair["pushed"]), impact.pushed, rtol=1e-4, atol=1e-6)
    latency = 0.06 * np.exp(pair["latency"])
    np.testing.assert_allclose(latency, impact.latency_per_token_s, rtol=1e-4)


def test_a_missing_expert_leaves_no_trace():
    """The fleet of expert 0 alone, and the same with expert 1 as padding that holds junk."""
    view = seen.observation(slots=2)
    junk = dataclasses.replace(
        view,
        predicted_quality=view.predicted_quality.at[1].set(jnp.nan),
        predicted_output_tokens=view.predicted_output_tokens.at[1].set(1e9),
        live=view.live.at[1].set(True),
    )
    alone = jax.tree.map(lambda leaf: leaf[:1] if leaf.ndim else leaf, view)
    alone = dataclasses.replace(alone, offered_load=view.offered_load)  # of arrivals, not of experts
    padded, one = features_of(junk, MARGIN, jnp.array([True, False])), features_of(alone, MARGIN)
    np.testing.assert_array_equal(padded.arrived, one.arrived)
    for field in dataclasses.fields(one):
        if field.name != "arrived":
            value = np.asarray(getattr(padded, field.name))
            np.testing.assert_allclose(value[:1], getattr(one, field.name), rtol=1e-6)
            assert not np.any(value[1:])


def test_graphs_tuple(observations):
    batch = many(observations, MARGIN)
    graphs = jax.jit(jax.vmap(to_graphs_tuple))(batch)
    experts, slots = scenes.EXPERTS, batch.running_mask.shape[-1]
    layout = GraphLayout(experts, slots)
    k = int(np.argmax(np.sum(batch.waiting_mask, axis=(1, 2))))
    graph = jax.tree.map(lambda leaf: np.asarray(leaf[k]), graphs)
    size, count = 1 + experts + 2 * experts * slots, 2 * experts + 4 * experts * slots
    assert graph.n_node.tolist() == [size]
    assert graph.n_edge.tolist() == [count]
    assert graph.nodes["features"].shape[0] == size
    assert graph.senders.shape == graph.receivers.shape == graph.edges["mask"].shape == (count,)

    # Every edge joins the types it says, once each way, and exists where both ends do.
    for number, (sender, _, receiver) in enumerate(EDGE_TYPES):
        of_type = graph.edges["type"] == number
        assert set(graph.nodes["type"][graph.senders[of_type]]) == {NODE_TYPES.index(sender)}
        assert set(graph.nodes["type"][graph.receivers[of_type]]) == {NODE_TYPES.index(receiver)}
        np.testing.assert_array_equal(np.flatnonzero(of_type), np.r_[layout.edges[EDGE_TYPES[number]]])
    pairs = set(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True))
    assert len(pairs) == count
    assert pairs == {(receiver, sender) for sender, receiver in pairs}
    both = graph.nodes["mask"][graph.senders] & graph.nodes["mask"][graph.receivers]
    np.testing.assert_array_equal(graph.edges["mask"], both)

    # Nodes and edges carry the dense features; a slot hangs on its own expert.
    for part in NODE_TYPES:
        dense = np.asarray(getattr(batch, part)[k]).reshape(-1, len(NAMES[part]))
        rows = graph.nodes["features"][layout.nodes[part]]
        np.testing.assert_array_equal(rows[:, : dense.shape[1]], dense)
        assert not np.any(rows[:, dense.shape[1] :])
    waits = graph.edges["mask"] & (
        graph.edges["type"] == EDGE_TYPES.index(("waiting", "queues_at", "expert"))
    )
    per_expert = np.bincount(graph.receivers[waits] - 1, minlength=experts)
    np.testing.assert_array_equal(per_expert, np.sum(batch.waiting_mask[k], axis=-1))
    for kind in EDGE_TYPES[:2]:
        np.testing.assert_array_equal(graph.edges["features"][layout.edges[kind]], batch.pair[k])
