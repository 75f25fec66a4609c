"""Tests of what is computed on the last slots alone: the width taken, and that results are the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing import projected_impact
from qos_jax.routing.observation import SeenPrefixes
from qos_jax.routing.occupied_slots import last_slots, over_occupied_slots, widths
from tests.routing.seen import EXPERTS, observation

SLOTS = 20


def crowded(counts):
    """Observations of SLOTS slots, in lane i ``counts[i]`` requests of different ages on expert 0."""
    seen = observation(slots=1)
    live = np.zeros((len(counts), EXPERTS, SLOTS), bool)
    for lane, count in enumerate(counts):
        live[lane, 0, SLOTS - count :] = True
    wide = {
        field.name: jnp.broadcast_to(getattr(seen, field.name)[:, :1], live.shape)
        for field in dataclasses.fields(seen)
        if field.name.startswith("slot_")
    }
    lanes = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(counts), *leaf.shape)), seen)
    age_s = jnp.where(live, jnp.linspace(1.2, 0.1, SLOTS, dtype=jnp.float32), 0.0)
    return dataclasses.replace(lanes, **wide, live=jnp.asarray(live), running=jnp.asarray(live), age_s=age_s)


@pytest.mark.parametrize(("counts", "width"), [((0, 0), 8), ((8, 1), 8), ((2, 9), 16), ((17, 3), 20)])
def test_the_least_width_that_holds_the_requests_of_all_lanes_is_taken(counts, width):
    assert widths(SLOTS) == (8, 16, 20)

    def function(seen):
        return jnp.sum(seen.live, axis=-1, dtype=jnp.int32), jnp.int32(seen.live.shape[-1])

    found, taken = jax.vmap(lambda seen: over_occupied_slots(function, seen))(crowded(counts))
    np.testing.assert_array_equal(found[:, 0], counts)
    np.testing.assert_array_equal(taken, [width] * len(counts))


def test_an_impact_is_the_same_on_fewer_slots():
    few, many = crowded((2, 1)), crowded((2, 1, SLOTS))  # the last lane has all slots of all lanes computed
    impact = jax.jit(jax.vmap(lambda seen: projected_impact(seen, jnp.float32(0.3))))
    narrow, whole = impact(few), impact(many)
    assert float(narrow.penalty[0, 0]) > 0.0
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other[:2], rtol=1e-6), narrow, whole)


def test_the_last_slots_keep_all_else():
    seen = jax.tree.map(lambda leaf: leaf[0], crowded((3,)))
    cached = jnp.broadcast_to(jnp.arange(SLOTS, dtype=jnp.int32), (EXPERTS, SLOTS))
    prefix = SeenPrefixes(jnp.int32(0), jnp.full(EXPERTS, 7, jnp.int32), cached)
    narrow = last_slots(dataclasses.replace(seen, prefix=prefix), 4)
    np.testing.assert_array_equal(narrow.prefix.slot_cached_tokens, cached[:, -4:])
    assert narrow.prefix.cached_tokens.shape == (EXPERTS,)
    assert last_slots(seen, 4).prefix is None
    assert {np.shape(narrow.live), np.shape(narrow.age_s), np.shape(narrow.slot_ttft_s)} == {(EXPERTS, 4)}
    assert narrow.mean_output_tokens.shape == (EXPERTS,)
