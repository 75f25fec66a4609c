"""Tests of arrivals: which slots move up, what leaves, and that nothing else changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.serving import SlotAssignment, evicted_content, insert

SLOTS = jnp.arange(12, dtype=jnp.int32).reshape(3, 4)


def assigned(expert: int, evicted: int, accepted: bool = True) -> SlotAssignment:
    moved = accepted & (jnp.arange(4) >= evicted)
    return SlotAssignment(jnp.bool_(accepted), jnp.bool_(False), jnp.int32(expert), jnp.int32(evicted), moved)


def test_slots_behind_the_evicted_move_up_and_the_newcomer_is_last() -> None:
    slots = insert(assigned(expert=1, evicted=2), SLOTS, jnp.int32(99))
    np.testing.assert_array_equal(slots, [[0, 1, 2, 3], [4, 5, 7, 99], [8, 9, 10, 11]])


def test_a_value_per_expert_gives_the_chosen_one_its_own() -> None:
    slots = insert(assigned(expert=2, evicted=3), SLOTS, jnp.array([70, 80, 90], jnp.int32))
    np.testing.assert_array_equal(slots, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 90]])


def test_nothing_changes_where_it_is_not_accepted() -> None:
    slots = insert(assigned(expert=1, evicted=0, accepted=False), SLOTS, jnp.int32(99))
    np.testing.assert_array_equal(slots, SLOTS)


def test_what_is_evicted_is_what_the_slot_held() -> None:
    assert evicted_content(assigned(expert=1, evicted=2), SLOTS) == 6


def test_every_lane_has_its_own_slot() -> None:
    assignments = [assigned(0, 0), assigned(2, 1), assigned(1, 3, accepted=False)]
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *assignments)
    values = jnp.array([50, 60, 70], jnp.int32)
    together = jax.vmap(insert, (0, None, 0))(lanes, SLOTS, values)
    for lane, assignment in enumerate(assignments):
        np.testing.assert_array_equal(together[lane], insert(assignment, SLOTS, values[lane]))
