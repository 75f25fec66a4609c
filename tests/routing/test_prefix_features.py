"""What a router expects of prefix caches, as a column of features."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from qos_jax.routing.graph import GraphFeatures
from qos_jax.routing.observation import SeenPrefixes
from qos_jax.routing.prefix_features import with_prefix_features
from tests.routing.seen import EXPERTS, SLOTS, observation


def test_the_cached_share_of_the_prompt_stands_behind_the_others_and_is_0_without_caches():
    mask = jnp.ones((EXPERTS, SLOTS), bool)
    graph = GraphFeatures(
        arrived=jnp.arange(2.0),
        expert=jnp.ones((EXPERTS, 3)),
        slot=jnp.zeros((EXPERTS, SLOTS, 1)),
        pair=jnp.ones((EXPERTS, 2)),
        expert_mask=jnp.array([True, False]),
        running_mask=mask,
        waiting_mask=~mask,
        available=jnp.array([True, False]),
    )
    seen = observation()  # a prompt of 10 tokens
    found = SeenPrefixes(jnp.int32(3), jnp.array([4, 8], jnp.int32), jnp.zeros((EXPERTS, SLOTS), jnp.int32))
    cached = with_prefix_features(graph, dataclasses.replace(seen, prefix=found))
    np.testing.assert_allclose(cached.pair, [[1, 1, 0.4], [1, 1, 0]], rtol=1e-6)  # the second pads
    np.testing.assert_array_equal(with_prefix_features(graph, seen).pair, [[1, 1, 0], [1, 1, 0]])
