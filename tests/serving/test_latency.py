"""Closed forms of iteration times against the sums they stand for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qos_jax.serving import DecodeKnot, FleetProfile, slowed
from qos_jax.serving.latency import (
    alone_s,
    decode_iterations_until,
    decode_run_kv_token_s,
    decode_run_s,
    prefill_s,
)

LANES = 64


def profile(base_s, per_seq_s=0.0, per_context_token_s=0.0, prefill=(0.0, 0.0, 0.0)):
    def leaf(value, dtype=jnp.float32):
        return jnp.broadcast_to(jnp.asarray(value, dtype), (LANES,))

    return FleetProfile(
        max_running=leaf(8, jnp.int32),
        max_waiting=leaf(8, jnp.int32),
        max_batched_tokens=leaf(8, jnp.int32),
        kv_capacity_tokens=leaf(8, jnp.int32),
        prefill_base_s=leaf(prefill[0]),
        prefill_per_token_s=leaf(prefill[1]),
        prefill_per_token_sq_s=leaf(prefill[2]),
        decode_base_s=leaf(base_s),
        decode_per_seq_s=leaf(per_seq_s),
        decode_per_context_token_s=leaf(per_context_token_s),
        network_rtt_s=leaf(0.0),
        busy_power_w=leaf(1.0),
        idle_power_w=leaf(1.0),
    )


def durations_s(p, lane, iterations, batch, held):
    """Each decode iteration's seconds, in float64: [m]."""
    context = held + batch * np.arange(iterations)
    base, seq, ctx = (
        float(x[lane]) for x in (p.decode_base_s, p.decode_per_seq_s, p.decode_per_context_token_s)
    )
    return base + seq * batch + ctx * context, context


@st.composite
def decodes(draw):
    """64 lanes of profiles and batches; either coefficient may be absent."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    p = profile(
        rng.uniform(1e-3, 0.05, LANES),
        rng.uniform(0, 2e-3, LANES) * draw(st.sampled_from([0, 1])),
        rng.uniform(0, 1e-4, LANES) * draw(st.sampled_from([0, 1])),
    )
    batch = rng.integers(1, 257, LANES)
    held = batch * rng.integers(1, draw(st.sampled_from([2, 100, 4000])), LANES)
    most = rng.integers(1, draw(st.sampled_from([2, 30, 3000])), LANES)
    return rng, p, batch, held, most


def f32(x):
    return jnp.asarray(x, jnp.float32)


def until(p, horizon_s, batch, held, most):
    found = decode_iterations_until(p, f32(horizon_s), f32(batch), f32(held), jnp.asarray(most, jnp.int32))
    assert found.dtype == jnp.int32
    return np.asarray(found)


def test_prefill_of_prompts():
    p = profile(1.0, prefill=(1.0, 0.1, 0.01))
    # Prompts of 10 and 20: 1 + 3 + 0.01 (100 + 400).
    np.testing.assert_allclose(prefill_s(p, f32(30.0), f32(500.0)), 9.0, rtol=1e-6)


@given(case=decodes())
def test_decode_run_is_the_sum_of_its_iterations(case):
    _, p, batch, held, m = case
    got = decode_run_s(p, f32(m), f32(batch), f32(held))
    kv = decode_run_kv_token_s(p, f32(m), f32(batch), f32(held))
    for lane in range(LANES):
        durations, context = durations_s(p, lane, m[lane], batch[lane], held[lane])
        assert got[lane] == pytest.approx(durations.sum(), rel=1e-5)
        assert kv[lane] == pytest.approx((durations * context).sum(), rel=1e-5)


def test_one_request_alone():
    p = profile(0.02, 0.001, 1e-5, prefill=(0.01, 1e-4, 1e-7))
    tokens = jnp.arange(1, LANES + 1, dtype=jnp.float32)
    lane = 5  # six output tokens: the prompt phase makes the first
    decode_s, _ = durations_s(p, lane, 5, 1, 101)
    expected_s = 0.01 + 1e-4 * 100 + 1e-7 * 100**2 + decode_s.sum()
    np.testing.assert_allclose(alone_s(p, jnp.float32(100), tokens)[lane], expected_s, rtol=1e-5)
    np.testing.assert_allclose(alone_s(p, jnp.float32(100), tokens)[0], 0.021, rtol=1e-5)


@pytest.mark.parametrize("with_knots", [False, True])
def test_a_slowed_profile_takes_so_many_times_as_long(with_knots):
    rng = np.random.default_rng(0)
    draw = [jnp.asarray(rng.uniform(1e-3, 0.03, LANES), jnp.float32) for _ in range(8)]
    nominal = profile(*draw[:3], prefill=draw[3:6])
    if with_knots:
        knots = tuple(
            DecodeKnot(jnp.full(LANES, batch), *part) for batch, part in ((1.0, draw[:2]), (9.0, draw[6:]))
        )
        nominal = dataclasses.replace(nominal, decode_knots=knots)
    pace = jnp.asarray(rng.uniform(0.3, 3.0, LANES), jnp.float32)

    def lone_s(profile):
        return alone_s(profile, jnp.full(LANES, 40.0), jnp.full(LANES, 30.0))

    np.testing.assert_allclose(lone_s(slowed(nominal, pace)), lone_s(nominal) * pace, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, slowed(nominal, jnp.ones(LANES)), nominal)


def test_no_iterations_take_no_time():
    p = profile(0.02, 1e-3, 1e-5)
    assert np.all(np.asarray(decode_run_s(p, f32(0.0), f32(4.0), f32(100.0))) == 0.0)
    assert np.all(np.asarray(decode_run_kv_token_s(p, f32(0.0), f32(4.0), f32(100.0))) == 0.0)


@settings(max_examples=60)
@given(case=decodes())
def test_iterations_until_is_the_smallest_that_reaches(case):
    rng, p, batch, held, most = case
    totals = [np.cumsum(durations_s(p, i, most[i], batch[i], held[i])[0]) for i in range(LANES)]
    # Anywhere up to a bit beyond the last iteration.
    horizon = np.array([t[-1] * rng.uniform(0, 1.3) for t in totals], np.float32)
    got = until(p, horizon, batch, held, most)
    for i in range(LANES):
        exact = min(int(np.searchsorted(totals[i], horizon[i], side="left")) + 1, most[i])
        if got[i] != exact:  # only where the horizon is within rounding of the boundary between the two
            boundary = totals[i][min(got[i], exact) - 1]
            assert abs(got[i] - exact) == 1
            assert horizon[i] == pytest.approx(boundary, rel=2e-6)


@given(case=decodes())
def test_exactly_at_a_boundary_the_closed_forms_agree(case):
    """At T(m) as float32 computes it, m iterations are found, or m - 1 where T(m - 1) rounds to the same."""
    rng, p, batch, held, most = case
    m = rng.integers(1, most + 1)
    horizon = decode_run_s(p, f32(m), f32(batch), f32(held))
    got = until(p, horizon, batch, held, most)
    assert np.all(got <= m)
    reached = decode_run_s(p, f32(got), f32(batch), f32(held))
    # A root rounded down stops one short, within rounding of the horizon: the next round does the rest.
    np.testing.assert_array_less(np.asarray(horizon) * (1 - 2e-6), np.asarray(reached) + 1e-30)


def test_exact_boundaries_on_a_binary_grid():
    p = profile(2.0**-5, 2.0**-9, 2.0**-12)
    batch, held = np.full(LANES, 4), np.full(LANES, 64)
    m = np.arange(1, LANES + 1)
    at = decode_run_s(p, f32(m), f32(batch), f32(held))
    many = np.full(LANES, 1000)
    np.testing.assert_array_equal(until(p, at, batch, held, many), m)
    np.testing.assert_array_equal(until(p, at + 2.0**-12, batch, held, many), m + 1)


@pytest.mark.parametrize("per_context_token_s", [0.0, 1e-6, 10.0])
@pytest.mark.parametrize("horizon_s", [np.inf, 1e30, 1e12])
def test_without_a_bound_in_time_all_are_run(horizon_s, per_context_token_s):
    most = np.arange(1, LANES + 1) * 1000
    p = profile(1e-3, 0.0, per_context_token_s)
    np.testing.assert_array_equal(
        until(p, np.full(LANES, horizon_s), np.ones(LANES), np.ones(LANES), most), most
    )


@pytest.mark.parametrize("horizon_s", [-np.inf, -1.0, 0.0, 1e-38, 1e-9])
def test_at_least_one(horizon_s):
    p = profile(1e-3, 1e-4, 1e-6)
    got = until(p, np.full(LANES, horizon_s), np.ones(LANES), np.ones(LANES), np.full(LANES, 50))
    np.testing.assert_array_equal(got, 1)


@pytest.mark.parametrize("most", [2**24 - 1, 2**24, 2**24 + 3])
def test_never_more_than_the_bound(most):
    """Also above 2^24, where float32 skips whole numbers: one iteration too many would hang the loop."""
    got = until(profile(1e-3), np.full(LANES, np.inf), np.ones(LANES), np.ones(LANES), np.full(LANES, most))
    assert got.max() <= most
