"""Stepping the occupied slots only against stepping all of them: equal to the bit, at every width."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.devices import batched_like
from qos_jax.routing.fleet_state import empty_fleet, pass_time, route
from qos_jax.routing.fleet_step import last_slots, occupied_slots, step_fleet, step_widths
from qos_jax.routing.params import request_at
from qos_jax.serving import ServingConfig, scheduler
from tests.routing.scenes import EXPERTS, profile, random_actions, table
from tests.serving.replay import SHARED_MEMORY

WIDTHS = (16, 64, 140)
RUNNING, WAITING = 20, 120
T = 440
LIMIT_S = 0.06
# Memory for few of those that the first has places for: they wait, and are preempted.
FLEET = jax.tree.map(
    jnp.asarray,
    profile(
        max_running=[RUNNING] * EXPERTS,
        max_waiting=[WAITING] * EXPERTS,
        max_batched_tokens=[128] * EXPERTS,
        kv_capacity_tokens=[400, 1000, 4000],
    ),
)


def both_steps(config, fleet, x):
    """The edge after one request, by each of the two."""
    request, request_id, action, gap_s = x
    limit_s = jnp.float32(LIMIT_S)
    routed_fleet, routed = route(FLEET, fleet, request, request_id, action)
    whole = (*pass_time(config, FLEET, routed_fleet, gap_s, limit_s), routed)
    reached, step_routed, passed = step_fleet(
        config, FLEET, fleet, request, request_id, action, gap_s, limit_s
    )
    return whole, (reached, passed, step_routed)


@functools.partial(jax.jit, static_argnums=0)
def courses(config, requests, actions, gap_s):
    """Lanes [B] through T requests by the occupied slots; what both steps give at each, and slots in use."""

    def lane(actions, gap_s):
        def step(fleet, x):
            whole, stepped = both_steps(config, fleet, x)
            return stepped[0], (whole, stepped, occupied_slots(fleet))

        xs = (requests, jnp.arange(T, dtype=jnp.int32), actions, gap_s)
        return jax.lax.scan(step, empty_fleet(config), xs)[1]

    return jax.vmap(lane)(actions, gap_s)


@pytest.mark.parametrize("scheduler", SHARED_MEMORY)
def test_equals_stepping_all_slots_at_every_width(scheduler):
    config = ServingConfig(EXPERTS, RUNNING, WAITING, scheduler)
    requests = request_at(table(1, T), np.arange(T))
    # Two bursts and the calm after each, the last infinite; in the second lane most of them go to one expert.
    rng = np.random.default_rng(0)
    pace_s = np.repeat([0.05, 0.004, 0.4, 0.001, 0.6], [40, 40, 40, 280, 40])
    gap_s = rng.exponential(pace_s, (2, T)).astype(np.float32)
    gap_s[:, -1] = np.inf
    actions = np.stack([random_actions(0, T, EXPERTS + 1), np.minimum(random_actions(1, T, 12), EXPERTS - 1)])
    whole, stepped, occupied = jax.device_get(courses(config, requests, jnp.asarray(actions), gap_s))
    jax.tree.map(np.testing.assert_array_equal, stepped, whole)
    needed = np.minimum(occupied.max(0) + 1, config.slots)
    assert len(set(np.searchsorted(WIDTHS, needed))) == len(WIDTHS)
    assert int(occupied.max()) == config.slots  # an expert had no dead slot before the last live one
    (reached, passed, routed) = stepped
    assert int(reached.serving.preemptions.max()) > 0
    assert int(routed.rejected.sum()) > 0
    ended = passed.completed_count.sum() + routed.rejected.sum() + routed.dropped.sum()
    assert int(ended) == actions.size


def test_those_in_flight_stay_together_at_the_end():
    config = ServingConfig(EXPERTS, RUNNING, WAITING)
    requests = request_at(table(2, T), np.arange(T))
    actions = jnp.zeros((2, T), jnp.int32)
    gap_s = np.random.default_rng(1).exponential(0.02, (2, T)).astype(np.float32)
    _, (reached, _, _), occupied = jax.device_get(courses(config, requests, actions, gap_s))
    in_flight = reached.serving.live.sum(-1).max(-1)
    # Many more have come than there are slots, and yet hardly more are in use than were ever in flight.
    assert 2 * config.slots < T
    assert int(in_flight.max()) + 1 >= int(occupied.max()) > int(in_flight.max()) // 2


def test_widths_save_more_than_half():
    assert step_widths(140) == WIDTHS
    assert step_widths(32) == (32,)
    assert step_widths(33) == (16, 33)
    assert step_widths(256) == (16, 64, 256)


def test_occupied_slots_reach_to_the_first_live_one_of_any_expert():
    state = empty_fleet(ServingConfig(2, 3, 3))
    assert int(occupied_slots(state)) == 0
    for live, expected in ((((0, 5), (1, 4)), 2), (((0, 2),), 4), (((1, 0), (0, 5)), 6)):
        flags = np.zeros((2, 6), bool)
        flags[tuple(zip(*live, strict=True))] = True
        serving = state.serving.replace(live=jnp.asarray(flags))
        assert int(occupied_slots(state.replace(serving=serving))) == expected


def test_last_slots_are_cut_from_all_that_have_slots_and_nothing_else():
    state = empty_fleet(ServingConfig(2, 3, 3))
    numbered = state.replace(prompt_tokens=jnp.arange(12, dtype=jnp.int32).reshape(2, 6))
    narrow = last_slots(numbered, 4)
    np.testing.assert_array_equal(narrow.prompt_tokens, [[2, 3, 4, 5], [8, 9, 10, 11]])
    assert {leaf.shape for leaf in jax.tree.leaves(narrow.serving)} == {(2, 4), (2,)}
    jax.tree.map(np.testing.assert_array_equal, narrow.demand, state.demand)


def test_programs_with_the_same_step_trace_it_once(monkeypatch):
    traced = []

    def counted(*arguments):
        traced.append(1)
        return scheduler.prefill_first(*arguments)

    rules = dataclasses.replace(scheduler.BY_NAME["prefill_first"], decide=counted)
    monkeypatch.setitem(scheduler.BY_NAME, "prefill_first", rules)
    config = ServingConfig(EXPERTS, 3, 4)  # sizes that no other test has traced
    request, zero = request_at(table(0, 1), 0), jnp.int32(0)

    def program(sign):
        def step(gap_s):
            stepped = step_fleet(config, FLEET, empty_fleet(config), request, zero, zero, gap_s, gap_s)
            return sign * stepped[2].busy_s

        jax.make_jaxpr(jax.vmap(step))(jnp.ones(2))
        return len(traced)

    assert 0 < program(1.0) == program(-1.0)


@pytest.mark.parametrize("like", [0.0, np.nan])
def test_a_carry_is_batched_and_its_values_stay(like):
    zeros = (jnp.float32(0.0), jnp.int32(0))
    jax.vmap(lambda _: zeros, out_axes=None)(jnp.full(2, like))  # what a loop would begin with
    with pytest.raises(ValueError, match="out_axes"):
        jax.vmap(lambda each: batched_like(zeros, each), out_axes=None)(jnp.full(2, like))
    for leaf in jax.vmap(lambda each: batched_like(zeros, each))(jnp.full(2, like)):
        np.testing.assert_array_equal(leaf, [0, 0])
