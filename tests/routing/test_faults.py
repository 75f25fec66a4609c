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
    clear_outcomes,
    fail_requests,
    faults_after_gap,
    init_faults,
    no_faults,
    pace,
    pass_time_under,
)
from qos_jax.routing.fleet_state import empty_fleet, pass_time, remaining_outcomes, route
from qos_jax.routing.observation import see_prefixes
from qos_jax.routing.params import request_at
from qos_jax.serving import SCHEDULERS, cut_at_limit, with_context_limit
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
        equal_servers(EXPERTS, [(0, 0.0, 0.0, 1.0)]),
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
    assert np.all(outcome.ttft_s[known][~done] == -1.0)
    assert failed.sum() + stranded.sum() == (status == "failed").sum()
    return times | {"status": status}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_equals_the_reference_under_faults(scheduler):
    fleet_profile = with_context_limit(scheduler, jax.tree.map(jnp.asarray, profile()))
    seen, compared = collections.Counter(), 0
    for seed in range(30):
        requests, actions, gap_s = drawn(seed)
        faults = faults_of(seed)
        served, key = cut_at_limit(fleet_profile, requests), jax.random.key(seed)
        out = course(SERVING[scheduler], fleet_profile, faults, served, actions, gap_s, key)
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
    assert compared > 24
    assert min(seen[status] for status in ("completed", "failed", "rejected")) > 30


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


@jax.jit
def history(key, faults, gaps_s):
    """Draw the hidden state at the arrivals after each gap [G], leaves [G, ...]."""

    def step(state, x):
        key, gap_s = x
        after = faults_after_gap(key, faults, state, gap_s)
        return after, (after, pace(faults, after))

    keys = jax.random.split(key, gaps_s.shape[0] + 1)
    return jax.lax.scan(step, init_faults(keys[0], faults), (keys[1:], gaps_s))[1]


def equal_servers(count, events=(), **given):
    """Faults of ``count`` equal servers, and a script of (expert, start_s, length_s, pace)."""
    script = dict(zip(("expert", "start_s", "length_s", "pace"), zip(*events, strict=True), strict=False))
    leaves = {
        name: jnp.asarray(value if "delay" in name else [value] * count, jnp.float32)
        for name, value in given.items()
    }
    leaves |= {f"script_{name}": jnp.asarray(values, jnp.float32) for name, values in script.items()}
    if events:
        leaves["script_expert"] = leaves["script_expert"].astype(jnp.int32)
    return dataclasses.replace(no_faults(count), **leaves)


COUNT, GAPS = 2000, 201


def test_pace_drifts_as_an_ornstein_uhlenbeck_process():
    gap_s = 0.5
    faults = equal_servers(COUNT, pace_log_std=0.4, drift_log_std=0.3, drift_time_s=2.0)
    states, paces = jax.device_get(history(jax.random.key(0), faults, jnp.full(GAPS, gap_s)))
    drift, fixed = states.drift_log_pace, states.fixed_log_pace
    # Stationary from the start, and forgotten as exp(-time / drift_time_s).
    for part in (drift[:8], drift[:100], drift[100:]):
        assert part.std() == pytest.approx(0.3, rel=0.03)
    for lag in (1, 4, 12):
        correlation = np.corrcoef(drift[:-lag].ravel(), drift[lag:].ravel())[0, 1]
        assert correlation == pytest.approx(np.exp(-lag * gap_s / 2.0), abs=0.01)
    assert fixed[0].std() == pytest.approx(0.4, rel=0.05)
    np.testing.assert_array_equal(fixed[0], fixed[-1])
    np.testing.assert_allclose(paces, np.exp(fixed + drift), rtol=1e-5)


def test_slowdowns_and_outages_start_at_their_rate_and_last_their_length():
    gap_s = 0.125
    faults = equal_servers(
        COUNT,
        outage_per_s=0.2,
        outage_length_s=1.0,
        slowdown_per_s=0.5,
        slowdown_length_s=0.3,
        slowdown_pace=3.0,
    )
    gaps_s = jnp.full(GAPS, gap_s).at[-1].set(jnp.inf)
    states, paces = jax.device_get(history(jax.random.key(1), faults, gaps_s))
    slow, down = paces > 1.0, ~states.up
    assert set(np.unique(paces)) == {1.0, 3.0}
    assert abs(np.corrcoef(slow[50:].ravel(), down[50:].ravel())[0, 1]) < 0.02  # drawn apart
    # 1 s is 8 gaps; 0.3 s ends within the third.
    for on, per_s, length in ((down[:-1], 0.2, 8), (slow[:-1], 0.5, 3)):
        starts = on[1:] & ~on[:-1]
        chance = starts.sum() / (~on[:-1]).sum()
        assert chance == pytest.approx(-np.expm1(-per_s * gap_s), rel=0.05)
        step, lane = np.nonzero(starts[: GAPS // 2])
        for later in range(length):
            assert on[step + 1 + later, lane].all()
        assert not on[step + 1 + length, lane].any()
    # The infinite gap at the end changes nothing, but that what came up before it did not come up now.
    last, drained = (jax.tree.map(lambda leaf, at=at: leaf[at], states) for at in (-2, -1))
    assert last.restarted.any()
    assert not drained.restarted.any()
    unchanged = dataclasses.replace(last, restarted=drained.restarted)
    jax.tree.map(np.testing.assert_array_equal, drained, unchanged)


def test_a_script_takes_effect_at_the_first_arrivals_in_it_also_after_a_week():
    """A clock of one float32 would be off by seconds at the end."""
    rng = np.random.default_rng(2)
    gaps_s = rng.exponential(60.48, 10_000).astype(np.float32)
    at_s = np.cumsum(gaps_s.astype(np.float64))
    # The last float32 before an arrival; the third begins at the reset, the last two overlap.
    start_s = np.nextafter(np.float32(at_s[[8000, 9990, 0, 100, 150]]), np.float32(0.0))
    start_s[2] = 0.0
    length_s = np.float32([1.0, 1.0, 1000.0, 9000.0, 9e5])
    outage = np.inf
    faults = equal_servers(
        EXPERTS,
        list(zip((0, 1, 2, 1, 1), start_s, length_s, (outage, outage, outage, 2.0, 1.5), strict=True)),
    )
    assert np.array_equal(init_faults(jax.random.key(0), faults).up, [True, True, False])
    states, paces = jax.device_get(history(jax.random.key(0), faults, jnp.asarray(gaps_s)))
    on = (at_s[:, None] >= start_s) & (at_s[:, None] < start_s.astype(float) + length_s)
    assert on[:, [0, 1]].sum(0).tolist() == [1, 1]
    np.testing.assert_array_equal(states.up, ~on[:, :3])
    np.testing.assert_array_equal(paces[:, 1], np.where(on[:, 3], 2.0, 1.0) * np.where(on[:, 4], 1.5, 1.0))
    np.testing.assert_array_equal(paces[:, [0, 2]], 1.0)


def test_health_checks_notice_what_lasts():
    events = [(0, 1.0, 3.0, np.inf), (0, 6.0, 0.5, np.inf), *[(2, 0.0, 0.0, np.inf)] * 3]
    faults = equal_servers(EXPERTS, events, detection_delay_s=1.0)
    states, _ = jax.device_get(history(jax.random.key(0), faults, jnp.full(10_000, 0.5)))
    at_s = np.arange(1, 10_001) * 0.5
    np.testing.assert_array_equal(states.up[:, 0], ~(((at_s >= 1) & (at_s < 4)) | (at_s == 6)))
    np.testing.assert_array_equal(states.known_up[:, 0], ~((at_s >= 2) & (at_s < 5)))
    assert states.known_up[:, 1:].all()


def test_requests_fail_when_they_are_seen_to():
    """Two requests at a server that goes down at 1 s, a third sent there at 1.5 s."""
    requests, _, _ = drawn(5)
    gap_s = jnp.full(T, 0.25)
    actions = jnp.where(jnp.isin(jnp.arange(T), jnp.array([2, 3, 6])), 0, EXPERTS)  # the others are dropped
    faults = equal_servers(EXPERTS, [(0, 1.0, 100.0, np.inf)], failure_delay_s=0.75, detection_delay_s=np.inf)
    requests = dataclasses.replace(
        requests, output_tokens=jnp.full((T, EXPERTS), 60), prompt_tokens=jnp.full(T, 30)
    )
    fleet_profile = jax.tree.map(jnp.asarray, profile())

    def failures(faults):
        out = course(
            SERVING["prefill_first"], fleet_profile, faults, requests, actions, gap_s, jax.random.key(0)
        )
        failed, _, _, fleet = jax.device_get(out[2:])
        step, expert, slot = np.nonzero(failed)
        assert not expert.any()
        ids = fleet.serving.request_id[step, 0, slot]
        np.testing.assert_array_equal(fleet.serving.age_s[step, 0, slot], 0.25 * (step - ids))
        np.testing.assert_array_equal(fleet.serving.lead_s[4:, 0], 0.0)
        assert fleet.serving.lead_s[3, 0] > 0.0  # an iteration was cut off
        return dict(zip(ids, 0.25 * step, strict=True))

    assert failures(faults) == {2: 1.75, 3: 1.75, 6: 2.25}
    noticed = dataclasses.replace(faults, detection_delay_s=jnp.float32(1.0))
    assert failures(noticed) == {2: 1.75, 3: 1.75, 6: 2.0}
    hangs = dataclasses.replace(faults, failure_delay_s=jnp.float32(jnp.inf))
    assert failures(hangs) == {}
    short = dataclasses.replace(hangs, script_length_s=jnp.array([2.0]))
    assert failures(short) == {2: 3.0, 3: 3.0, 6: 3.0}


def test_a_request_that_is_routed_again_is_as_old_as_it_is_and_reported_once():
    config = SERVING["prefill_first"]
    fleet_profile = jax.tree.map(jnp.asarray, profile())
    request = jax.tree.map(lambda leaf: leaf[0], drawn(0)[0])
    faults = equal_servers(EXPERTS, [(0, 0.5, np.inf, np.inf)], failure_delay_s=0.0)

    @jax.jit
    def run(request):
        key, zero = jax.random.key(0), jnp.int32(0)
        before = init_faults(key, faults)
        fleet = can_fail(empty_fleet(config))
        alone, _ = route(fleet_profile, fleet, request, zero, zero + 1)
        alone, _ = pass_time(config, fleet_profile, alone, jnp.float32(jnp.inf), LIMIT_S)
        fleet, _ = route(fleet_profile, fleet, request, zero, zero)
        fleet, _, _ = pass_time_under(config, fleet_profile, faults, before, fleet, jnp.float32(0.5), LIMIT_S)
        state = faults_after_gap(key, faults, before, jnp.float32(0.5))
        fleet, failed = fail_requests(faults, state, fleet)
        age_s = jnp.max(jnp.where(failed, fleet.serving.age_s, 0.0))
        fleet = clear_outcomes(fleet, failed)
        fleet, _ = route(fleet_profile, fleet, request, zero, zero + 1, age_s)
        fleet, _, stranded = pass_time_under(
            config, fleet_profile, faults, state, fleet, jnp.float32(jnp.inf), LIMIT_S
        )
        return remaining_outcomes(alone), remaining_outcomes(fleet), jnp.sum(failed), jnp.any(stranded)

    alone, retried, failed, stranded = jax.device_get(run(request))
    assert (failed, stranded) == (1, False)
    ((expert, slot),) = np.argwhere(retried.request_id >= 0)
    assert expert == 1
    for name in ("ttft_s", "latency_s"):
        expected = getattr(alone, name)[expert, slot] + 0.5
        assert getattr(retried, name)[expert, slot] == pytest.approx(expected, rel=1e-6)


def test_a_fleet_that_cannot_fail_is_refused():
    with pytest.raises(ValueError, match=r"can_fail\(empty_fleet"):
        jax.eval_shape(
            lambda faults: fail_requests(
                faults, init_faults(jax.random.key(0), faults), empty_fleet(SERVING["prefill_first"])
            ),
            no_faults(EXPERTS),
        )


def test_a_server_that_goes_down_loses_what_its_cache_kept():
    config = dataclasses.replace(SERVING["chunked_prefill"], prefix_entries=2)
    fleet = can_fail(empty_fleet(config))
    slots = dataclasses.replace(fleet.serving.prefix, group=jnp.zeros_like(fleet.serving.prefix.group))
    slots = dataclasses.replace(slots, life_tokens=jnp.full_like(slots.life_tokens, 100))
    serving = dataclasses.replace(fleet.serving, prefix=slots, context_tokens=slots.life_tokens)
    fleet = dataclasses.replace(fleet, serving=serving)
    faults = no_faults(EXPERTS)
    state = init_faults(jax.random.key(0), faults)
    request = jax.tree.map(lambda leaf: leaf[0], drawn(0)[0])
    request = dataclasses.replace(request, prompt_tokens=jnp.int32(90), prefix_group=jnp.int32(0))
    request = dataclasses.replace(request, prefix_tokens=jnp.int32(90))
    for down, cached in (([], [80, 80, 80]), ([1], [80, 0, 80])):
        state = dataclasses.replace(state, up=jnp.array([i not in down for i in range(EXPERTS)]))
        after, _ = fail_requests(faults, state, fleet)
        seen = see_prefixes(config, jax.tree.map(jnp.asarray, profile()), after, request)
        np.testing.assert_array_equal(seen.cached_tokens, cached)
