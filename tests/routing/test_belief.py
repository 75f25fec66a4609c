"""Beliefs: right where nothing is hidden, close where some is, and in order whatever is reported."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos_jax.errors import InputError
from qos_jax.routing.belief import (
    MAX_PACE,
    after_own_events,
    believed_pace,
    no_belief,
    with_first_tokens,
    with_progress,
)
from qos_jax.routing.due_scrapes import after_due_scrapes
from qos_jax.routing.fleet_state import empty_fleet, pass_time, route
from qos_jax.routing.newcomers import Newcomer, add_each
from qos_jax.routing.observation import KnownFleet, observe
from qos_jax.routing.params import request_at
from qos_jax.routing.routers import act, after_gap_of_all, init_routers, perceive, redirected
from qos_jax.routing.scrape import after_scrape, as_seen_by
from qos_jax.routing.telemetry import (
    Telemetry,
    TelemetryConfig,
    first_scrape_s,
    live_telemetry,
    next_scrape_s,
    router_of,
)
from qos_jax.routing.world_params import WorldParams
from qos_jax.serving import ServiceLimits, empty_state
from tests.routing.scenes import EXPERTS, LENGTH_LOG_STD, SERVING, random_actions, roomy, table

T = 60
CONFIG = SERVING["prefill_first"]
KNOWN = KnownFleet(
    jax.tree.map(jnp.asarray, roomy()), ServiceLimits(jnp.float32(0.06)), jnp.asarray(LENGTH_LOG_STD)
)


def telemetry(period_s, routers=1):
    return dataclasses.replace(live_telemetry(routers), scrape_period_s=jnp.float32(period_s))


@functools.partial(jax.jit, static_argnums=0)
def course(choices, numbers, known, requests, actions, gap_s):
    """Route T requests by R routers in turn; what each saw, what was so, and what its router believed."""
    params = WorldParams(CONFIG, choices, known, numbers, None)

    def step(carry, x):
        routers, fleet = carry
        request, index, action, gap_s = x
        router = index % choices.routers
        belief, seen = perceive(params, None, routers, fleet, router, request, index)
        true = observe(known, fleet, request, index)
        now = jnp.float32(0.0)
        routers, fleet, _ = act(params, routers, belief, fleet, router, request, index, action, now)
        key = jax.random.fold_in(jax.random.key(1), index)
        routers = after_due_scrapes(params, None, routers, fleet, gap_s, key)
        fleet, _ = pass_time(CONFIG, known.profile, fleet, gap_s, known.limits)
        return (after_gap_of_all(routers, gap_s), fleet), (seen, true, belief)

    start = (init_routers(CONFIG, jax.random.key(0), numbers), empty_fleet(CONFIG))
    xs = (requests, jnp.arange(T, dtype=jnp.int32), actions, gap_s)
    return jax.lax.scan(step, start, xs)[1]


def drawn(exact=False, seed=0, mean_gap_s=0.1):
    rows = table(seed, T)
    if exact:
        predicted = rows.output_tokens.astype(np.float32)
        rows = dataclasses.replace(rows, predicted_output_tokens=predicted)
    gap_s = np.random.default_rng(seed).exponential(mean_gap_s, T).astype(np.float32)
    return request_at(rows, np.arange(T)), random_actions(seed, T), jnp.asarray(gap_s)


def test_a_twin_that_knows_the_lengths_needs_no_telemetry_at_all():
    known = dataclasses.replace(KNOWN, length_log_std=jnp.zeros(EXPERTS))
    blind = TelemetryConfig("twin", observes_own=False)
    seen, true, _ = course(blind, telemetry(np.inf), known, *drawn(exact=True))
    assert np.sum(true.live) > T  # requests do meet
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(seen, belief=None), true)


def test_a_proxy_knows_exactly_who_is_in_flight_and_a_twin_about_how_far_they_are():
    choices = TelemetryConfig("twin")
    seen, true, _ = course(choices, telemetry(np.inf), KNOWN, *drawn())
    np.testing.assert_array_equal(np.sum(seen.live, -1), np.sum(true.live, -1))
    tokens = [np.sum(np.where(o.live, o.slot_generated_tokens, 0), -1) for o in (seen, true)]
    assert np.mean(np.abs(tokens[0] - tokens[1])) < 0.25 * np.mean(tokens[1])
    assert np.all(seen.belief.pace > 0.7)
    assert np.all(seen.belief.pace < 1.5)


@pytest.mark.parametrize("scraped", ["everything", "counts"])
def test_a_scrape_brings_the_requests_of_others(scraped):
    choices, numbers = TelemetryConfig("twin", routers=2, scraped=scraped), telemetry(0.3, 2)
    requests, actions, gap_s = drawn()
    seen, true, belief = course(choices, numbers, KNOWN, requests, actions, gap_s)
    # Each scrape reads the fleet at the last arrival, be it whose it may, before it falls due.
    arrival_s = np.concatenate([[0.0], np.cumsum(np.float64(gap_s))])[:T]
    phase_s = np.float64(first_scrape_s(jax.random.key(0), numbers))[np.arange(T) % 2]
    due_s = phase_s + 0.3 * (np.ceil((arrival_s - phase_s) / 0.3) - 1)
    read = np.searchsorted(arrival_s, np.maximum(due_s, 0.0), side="right") - 1
    np.testing.assert_allclose(belief.scrape_age_s, arrival_s - arrival_s[read], atol=1e-3)
    count = [np.sum(o.live, (-1, -2))[T // 3 :] for o in (seen, true)]
    unseen, _, _ = course(TelemetryConfig("own", routers=2), telemetry(np.inf, 2), KNOWN, *drawn())
    own = np.sum(unseen.live, (-1, -2))[T // 3 :]
    error, blind = (np.mean(np.abs(each - count[1])) for each in (count[0], own))
    assert error < 0.6 * blind
    assert 0.5 < np.mean(seen.belief.foreign_load[T // 2 :]) < 2.0  # half of the requests are its own


def test_counts_are_taken_over():
    choices = TelemetryConfig("twin", routers=2, scraped="counts")
    request, actions, _ = drawn()
    truth = empty_fleet(CONFIG)
    for index in range(6):
        one = jax.tree.map(lambda leaf, at=index: jnp.asarray(leaf)[at], request)
        truth, _ = route(KNOWN.profile, truth, one, jnp.int32(2 * index + 1), actions[index])
        truth, _ = pass_time(CONFIG, KNOWN.profile, truth, jnp.float32(0.05), KNOWN.limits)
    seen = as_seen_by(choices, jnp.int32(0), truth)
    ones = jnp.ones(EXPERTS)
    belief = no_belief(CONFIG, jnp.float32(0.0))
    belief = after_scrape(choices, KNOWN.profile, KNOWN.length_log_std, ones, belief, seen)
    serving = belief.fleet.serving
    for name in ("live", "running"):
        mine, true = (np.sum(getattr(each, name), -1) for each in (serving, truth.serving))
        np.testing.assert_array_equal(mine, true)
    kv = [np.sum(np.where(s.running, s.context_tokens, 0), -1) for s in (serving, truth.serving)]
    # Spread evenly in whole tokens, each request at least its prompt and a token.
    assert np.all(np.abs(kv[0] - kv[1]) <= np.maximum(0.5 * kv[1], 4))
    assert np.all(serving.request_id[serving.live] < 0)  # all are others'


@given(st.data())
def test_first_tokens_keep_the_running_requests_the_earliest(data):
    shape = (2, 6)
    flags = st.lists(st.booleans(), min_size=12, max_size=12)
    live, running, begun, reported = (np.array(data.draw(flags)).reshape(shape) for _ in range(4))
    running = live & (np.cumsum(live & ~running, axis=1) == 0)
    generated = np.where(running, 3, 0)
    begun, not_begun = live & reported & begun, live & reported & ~begun
    state = dataclasses.replace(
        empty_state(dataclasses.replace(CONFIG, num_experts=2, running_slots=3, waiting_slots=3)),
        live=jnp.asarray(live),
        running=jnp.asarray(running),
        context_tokens=jnp.asarray(10 + generated, jnp.int32),
        left_tokens=jnp.full(shape, 5, jnp.int32),
    )
    prompt = jnp.full(shape, 10, jnp.int32)
    after = with_first_tokens(state, prompt, jnp.asarray(begun), jnp.asarray(not_begun))
    runs = np.asarray(after.running)
    assert not np.any(runs & ~live)
    assert np.all(runs[begun])
    assert np.all(np.cumsum(live & ~runs, axis=1)[runs] == 0)  # nobody who waits stands before one who runs
    made = np.asarray(after.context_tokens) - 10
    assert np.all(made[begun] >= 1)
    assert np.all(made[not_begun] == 0)


@given(st.lists(st.integers(0, 5), min_size=EXPERTS, max_size=EXPERTS), st.integers(0, 8))
def test_newcomers_come_last_and_stop_at_the_last_free_slot(number, taken):
    fleet = empty_fleet(CONFIG)
    live = jnp.broadcast_to(jnp.arange(CONFIG.slots) < taken, fleet.serving.live.shape)
    fleet = dataclasses.replace(fleet, serving=dataclasses.replace(fleet.serving, live=live))
    ints = jnp.arange(EXPERTS, dtype=jnp.int32)
    floats = jnp.ones(EXPERTS)
    newcomer = Newcomer(ints + 50, ints + 7, ints + 9, 0 * ints, 9 * floats, floats, 0 * floats)
    believed = (fleet, jnp.zeros(live.shape, jnp.int32))
    after, _ = jax.jit(add_each)(believed, jnp.asarray(number, jnp.int32), newcomer)
    entered = np.minimum(number, CONFIG.slots - taken)
    np.testing.assert_array_equal(np.sum(after.serving.live, -1), taken + entered)
    for expert, new in enumerate(entered):
        ids = np.asarray(after.serving.request_id[expert])
        assert np.all(ids[CONFIG.slots - new :] == 50 + expert)
        assert np.sum(ids == 50 + expert) == new


def test_a_pace_is_believed_by_evidence_and_within_bounds():
    belief = no_belief(CONFIG, jnp.float32(0.0))
    log_std, ones = jnp.asarray(LENGTH_LOG_STD), jnp.ones(EXPERTS)
    np.testing.assert_array_equal(believed_pace(belief, log_std), ones)
    generated = jnp.full(belief.synced_tokens.shape, 3000, jnp.int32)
    serving = dataclasses.replace(belief.fleet.serving, context_tokens=generated)
    far = dataclasses.replace(belief, fleet=dataclasses.replace(belief.fleet, serving=serving))
    first = jnp.zeros(generated.shape, bool).at[:, 0].set(True)
    tokens = jnp.asarray([[1000], [3000], [1]], jnp.int32) * jnp.ones_like(generated)
    paces = believed_pace(with_progress(far, ones, first, tokens), log_std)
    # Three times as slow, as expected, and as good as dead; 50 tokens of trust in the profile.
    np.testing.assert_allclose(paces, [3050 / 1050, 1.0, MAX_PACE], rtol=1e-5)


def test_scrapes_keep_their_grid_and_requests_their_shares():
    numbers = Telemetry(*map(jnp.float32, (5.0, 0.0, 0.0)), jnp.asarray([0.7, 0.2, 0.1], jnp.float32))
    assert np.all(
        (first_scrape_s(jax.random.key(0), numbers) >= 0) & (first_scrape_s(jax.random.key(0), numbers) < 5)
    )
    late = ((0.0, 0.0), (-1.5, 0.0), (-12.0, 0.0), (1.0, 2.0), (1.0, 17.0))  # due, and until when
    due = [float(next_scrape_s(jax.random.key(0), numbers, *map(jnp.float32, each))) for each in late]
    np.testing.assert_allclose(due, [5.0, 3.5, 3.0, 6.0, 21.0])
    never = dataclasses.replace(numbers, scrape_period_s=jnp.float32(np.inf))
    assert np.all(np.isinf(first_scrape_s(jax.random.key(0), never)))
    keys = jax.random.split(jax.random.key(2), 4000)
    owners = np.bincount(jax.vmap(router_of, (0, None))(keys, numbers), minlength=3) / 4000
    np.testing.assert_allclose(owners, [0.7, 0.2, 0.1], atol=0.03)


def test_a_proxy_takes_a_server_that_is_down_out_of_its_pool():
    _, seen = perceive(
        WorldParams(CONFIG, TelemetryConfig("twin"), KNOWN, live_telemetry(), None),
        None,
        init_routers(CONFIG, jax.random.key(0), live_telemetry()),
        empty_fleet(CONFIG),
        jnp.int32(0),
        jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], drawn()[0]),
        jnp.int32(0),
    )
    up = jnp.asarray([True, False, False])
    notes = dataclasses.replace(seen.belief, up=up)
    assert [int(redirected(jnp.int32(action), notes)) for action in range(EXPERTS + 1)] == [0, 0, 0, EXPERTS]
    nobody = dataclasses.replace(notes, up=jnp.zeros(EXPERTS, bool))
    assert int(redirected(jnp.int32(1), nobody)) == 1


@pytest.mark.parametrize("changes", [{"view": "twins"}, {"scraped": "all"}, {"routers": 0}])
def test_unknown_choices_are_refused(changes):
    with pytest.raises(InputError):
        TelemetryConfig(**changes)


@pytest.mark.parametrize("latency_s", [-1.0, 2.0])
def test_a_failed_request_is_gone_and_says_nothing_of_its_length_or_of_the_pace(latency_s):
    choices, ones = TelemetryConfig("twin"), jnp.ones(EXPERTS)
    numbers, zero = jnp.zeros(EXPERTS, jnp.int32), jnp.float32(0.0)
    new = Newcomer(numbers, numbers + 5, numbers + 50, numbers, ones * 50, ones, jnp.zeros(EXPERTS))
    before = no_belief(CONFIG, zero)
    here = (jnp.arange(EXPERTS) == 1).astype(jnp.int32)
    fleet, synced = add_each((before.fleet, before.synced_tokens), here, new)
    before = dataclasses.replace(before, fleet=fleet, synced_tokens=synced)
    serving = dataclasses.replace(
        fleet.serving,
        live=jnp.zeros_like(fleet.serving.live),
        latency_s=jnp.full_like(fleet.serving.latency_s, latency_s),
    )
    after = after_own_events(choices, ones, before, dataclasses.replace(fleet, serving=serving))
    assert not after.fleet.serving.live.any()
    assert bool(jnp.any(after.observed_tokens > 0.0)) == (latency_s > 0.0)
