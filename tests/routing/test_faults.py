"""Servers with a hidden pace and outages: against the reference, and what must hold of the draws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing.faults import (
    can_fail,
    fail_requests,
    faults_after_gap,
    init_faults,
    no_faults,
    pass_time_under,
)
from qos_jax.routing.fleet_state import empty_fleet, pass_time, route
from qos_jax.routing.params import request_at
from tests.routing.scenes import EXPERTS, SERVING, profile, random_actions, table

T = 40
LIMIT_S = jnp.float32(0.06)
both_schedulers = pytest.mark.parametrize("scheduler", SERVING)


@functools.partial(jax.jit, static_argnums=0)
def course(config, fleet_profile, faults, requests, actions, gap_s, key):
    """Route T requests to given servers under faults, and drain; what happened, [T, ...]."""

    def step(carry, x):
        state, fleet = carry
        request, request_id, action, gap_s, key = x
        fleet, failed = fail_requests(faults, state, fleet)
        fleet, routed = route(fleet_profile, fleet, request, request_id, action)
        fleet, passed, stranded = pass_time_under(config, fleet_profile, faults, state, fleet, gap_s, LIMIT_S)
        after = faults_after_gap(key, faults, state, gap_s)
        return (after, fleet), (routed, passed, failed, stranded, state, fleet)

    init_key, *_ = keys = jax.random.split(key, T + 1)
    start = (init_faults(init_key, faults), can_fail(empty_fleet(config)))
    xs = (requests, jnp.arange(T, dtype=jnp.int32), actions, gap_s, jnp.stack(keys[1:]))
    return jax.lax.scan(step, start, xs)[1]


def drawn(seed, mean_gap_s=0.08):
    rng = np.random.default_rng(seed)
    gap_s = (rng.exponential(mean_gap_s, T) * (rng.random(T) >= 0.1)).astype(np.float32)
    gap_s[-1] = np.inf
    return request_at(table(seed, T), np.arange(T)), random_actions(seed, T), jnp.asarray(gap_s)


@both_schedulers
def test_without_faults_it_is_pass_time_to_the_bit(scheduler):
    config = SERVING[scheduler]
    fleet_profile = jax.tree.map(jnp.asarray, profile())
    requests, actions, gap_s = drawn(0)

    @jax.jit
    def plain(requests, actions, gap_s):
        def step(fleet, x):
            request, request_id, action, gap_s = x
            fleet, routed = route(fleet_profile, fleet, request, request_id, action)
            fleet, passed = pass_time(config, fleet_profile, fleet, gap_s, LIMIT_S)
            return fleet, (routed, passed, fleet)

        xs = (requests, jnp.arange(T, dtype=jnp.int32), actions, gap_s)
        return jax.lax.scan(step, empty_fleet(config), xs)[1]

    routed, passed, fleet = plain(requests, actions, gap_s)
    out = course(config, fleet_profile, no_faults(EXPERTS), requests, actions, gap_s, jax.random.key(0))
    without = dataclasses.replace(out[-1], stuck_s=None)
    jax.tree.map(np.testing.assert_array_equal, (out[0], out[1], without), (routed, passed, fleet))
    assert int(passed.completed_count.sum()) > T / 2
