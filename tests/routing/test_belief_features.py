"""What a router knows of its belief, as columns of features."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing.belief import MAX_PACE
from qos_jax.routing.belief_features import BELIEF_ARRIVED, BELIEF_EXPERT, with_belief_features
from qos_jax.routing.graph import GraphFeatures
from qos_jax.routing.observation import BeliefNotes
from tests.routing.seen import EXPERTS, SLOTS, observation


@pytest.fixture(scope="module")
def graph():
    mask = jnp.ones((EXPERTS, SLOTS), bool)
    return GraphFeatures(
        arrived=jnp.arange(2.0),
        expert=jnp.ones((EXPERTS, 3)),
        slot=jnp.zeros((EXPERTS, SLOTS, 1)),
        pair=jnp.zeros((EXPERTS, 1)),
        expert_mask=jnp.array([True, False]),
        running_mask=mask,
        waiting_mask=~mask,
        available=jnp.array([True, False]),
    )


def test_columns_stand_behind_the_others(graph):
    notes = BeliefNotes(
        jnp.float32(np.expm1(2.0)), jnp.array([MAX_PACE, 2.0]), jnp.float32(0.0), jnp.ones(2, bool)
    )
    seen = dataclasses.replace(observation(), belief=notes)
    found = with_belief_features(graph, seen)
    np.testing.assert_allclose(found.arrived, [0.0, 1.0, 0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found.expert, [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], rtol=1e-6)  # the second pads
    down = dataclasses.replace(seen, belief=dataclasses.replace(notes, up=jnp.array([False, True])))
    assert with_belief_features(graph, down).expert[0, -1] == 0.0


def test_who_sees_everything_has_a_live_belief_in_sound_servers(graph):
    found = with_belief_features(graph, observation())
    np.testing.assert_array_equal(found.arrived[-len(BELIEF_ARRIVED) :], 0.0)
    np.testing.assert_array_equal(found.expert[0, -len(BELIEF_EXPERT) :], [0.0, 1.0])
