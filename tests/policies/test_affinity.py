"""Routers that follow prefix caches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies import policy
from qos_jax.routing.observation import SeenPrefixes
from tests.policies.random_seen import random_seen


def seen_with(group, cached, live):
    seen = jax.tree.map(jnp.asarray, random_seen(0))
    experts, slots = seen.live.shape
    rows = jnp.arange(slots)[None] < jnp.asarray(live)[:, None]
    prefix = SeenPrefixes(
        jnp.int32(group), jnp.asarray(cached, jnp.int32), jnp.zeros((experts, slots), jnp.int32)
    )
    return dataclasses.replace(
        seen,
        prefix=prefix,
        live=rows,
        running=rows,
        available=jnp.ones((experts,), bool),
        slot_prefill_left_tokens=jnp.zeros((experts, slots), jnp.int32),
        slot_prompt_tokens=jnp.full((experts, slots), 10, jnp.int32),
        slot_generated_tokens=jnp.full((experts, slots), 5, jnp.int32),
    )


def route(name, seen):
    return int(policy(name).router(None, jax.random.key(0), seen))


def test_a_session_stays_until_its_expert_is_over_the_bound():
    chosen = {group: route("session_affinity", seen_with(group, [0, 0, 0], [2, 2, 2])) for group in range(30)}
    assert set(chosen.values()) == {0, 1, 2}
    for group, home in chosen.items():
        assert route("session_affinity", seen_with(group, [0, 0, 0], [1, 1, 1])) == home
        at_the_bound = np.roll([2, 1, 0], home)  # 1.25 x 4 / 3, rounded up, is 2
        assert route("session_affinity", seen_with(group, [0, 0, 0], at_the_bound)) != home


def test_who_shares_nothing_joins_the_shortest_queue():
    assert route("session_affinity", seen_with(-1, [0, 0, 0], [3, 1, 2])) == 1


@pytest.mark.parametrize(("cached", "chosen"), [([0, 0, 0], 1), ([40, 0, 0], 0), ([20, 0, 0], 1)])
def test_cached_tokens_are_weighed_against_those_there(cached, chosen):
    assert route("prefix_load", seen_with(0, cached, [3, 1, 2])) == chosen
