"""Servers with a hidden pace and outages: against the reference, and what must hold of the draws."""

import collections
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
    pace,
    pass_time_under,
)
from qos_jax.routing.fleet_state import empty_fleet, pass_time, remaining_outcomes, route
from qos_jax.routing.params import request_at
from qos_jax.serving.reference import simulate_fleet
from tests.routing.scenes import EXPERTS, SERVING, profile, random_actions, table
from tests.serving.replay import SHARED_MEMORY

T = 40
LIMIT_S = jnp.float32(0.06)
both_schedulers = pytest.mark.parametrize("scheduler", SHARED_MEMORY)


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
        hidden = (pace(faults, state), state.up)
        return (after, fleet), (routed, passed, failed, stranded, hidden, fleet)

    init_key, *_ = keys = jax.random.split(key, T + 1)
    start = (init_faults(init_key, faults), can_fail(empty_fleet(config)))
    xs = (requests, jnp.arange(T, dtype=jnp.int32), actions, gap_s, jnp.stack(keys[1:]))
    return jax.lax.scan(step, start, xs)[1]


def drawn(seed, mean_gap_s=0.08):
    rng = np.random.default_rng(seed)
    gap_s = (rng.exponential(mean_gap_s, T) * (rng.random(T) >= 0.1)).astype(np.float32)
    gap_s[-1] = np.inf
    return request_at(table(seed, T), np.arange(T)), random_actions(seed, T), jnp.asarray(gap_s)


def faults_of(seed):
    """Everything at once, at rates that let each happen several times in a course."""
    rng = np.random.default_rng(seed)

    def each(low, high):
        return jnp.asarray(rng.uniform(low, high, EXPERTS), jnp.float32)

    def one_of(*values):
        return jnp.float32(rng.choice(values))

    return dataclasses.replace(
        no_faults(EXPERTS),
        pace_log_std=each(0.0, 0.6),
        drift_log_std=each(0.0, 0.3),
        drift_time_s=each(0.5, 5.0),
        slowdown_per_s=each(0.0, 0.5),
        slowdown_length_s=each(0.1, 2.0),
        slowdown_pace=each(1.0, 4.0),
        outage_per_s=each(0.0, 0.8),
        outage_length_s=each(0.0, 0.8),
        detection_delay_s=one_of(0.0, 0.25, 1.0, np.inf),
        failure_delay_s=one_of(0.0, 0.1, 0.4, np.inf),
    )


def fates(out):
    """What became of each request: a dict of [T] arrays; each has exactly one end."""
    routed, _, failed, stranded, _, fleets = jax.device_get(out)
    left = jax.tree.map(np.asarray, remaining_outcomes(jax.tree.map(lambda leaf: leaf[-1], fleets)))
    outcome = jax.tree.map(lambda *parts: np.concatenate([p.ravel() for p in parts]), routed.evicted, left)
    known = outcome.request_id >= 0
    ids = outcome.request_id[known]
    status = np.full(T, "?", object)
    status[routed.rejected], status[routed.rejected_too_long] = "rejected", "rejected_too_long"
    assert np.array_equal(np.sort(ids), np.flatnonzero(routed.accepted)), "a request was lost or left twice"
    done = outcome.latency_s[known] >= 0.0
    status[ids] = np.where(done, "completed", "failed")
    times = {name: np.full(T, np.nan) for name in ("ttft_s", "latency_s")}
    for name, values in times.items():
        values[ids] = np.where(done, getattr(outcome, name)[known], np.nan)
    assert failed.sum() + stranded.sum() == (status == "failed").sum()
    return times | {"status": status}


@both_schedulers
def test_equals_the_reference_under_faults(scheduler):
    fleet_profile = jax.tree.map(jnp.asarray, profile())
    seen, compared = collections.Counter(), 0
    for seed in range(40):
        requests, actions, gap_s = drawn(seed)
        faults = faults_of(seed)
        out = course(
            SERVING[scheduler], fleet_profile, faults, requests, actions, gap_s, jax.random.key(seed)
        )
        got = fates(out)
        paces, up = jax.device_get(out[4])
        arrival_s = np.append(0.0, np.cumsum(np.asarray(gap_s[:-1], np.float64)))
        outcomes, runs = simulate_fleet(
            profile(),
            arrival_s,
            requests.prompt_tokens,
            requests.output_tokens,
            actions,
            scheduler,
            pace=[list(zip(arrival_s, column.astype(float), strict=True)) for column in paces.T],
            outages=[spells(arrival_s, column) for column in up.T],
            failure_delay_s=float(faults.failure_delay_s),
            detection_delay_s=float(faults.detection_delay_s),
        )
        if min(run.closest_tie_s for run in runs) < 1e-5:
            continue
        compared += 1
        np.testing.assert_array_equal(got["status"], [o.status for o in outcomes])
        seen.update(got["status"])
        for name in ("ttft_s", "latency_s"):
            expected = np.array([getattr(o, name) for o in outcomes], float)
            np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-6)
        for name in ("busy_s", "kv_token_s"):
            total = getattr(out[1], name).sum(0)
            np.testing.assert_allclose(total, [getattr(run, name) for run in runs], rtol=1e-4)
    assert compared > 30
    assert min(seen[status] for status in ("completed", "failed", "rejected")) > 50


def spells(arrival_s, up):
    """The outages of one expert as (start, end), from whether it is up from each arrival to the next."""
    change = np.diff(np.concatenate([[1], up.astype(int), [1]]))
    ends_s = np.append(arrival_s, np.inf)
    return list(zip(ends_s[change < 0], ends_s[change > 0], strict=True))


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
