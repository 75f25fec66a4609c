"""The load offered by recent arrivals: exact on a steady stream, and nothing where nothing came."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing.demand import (
    MAX_LOAD,
    WINDOWS,
    after_gap,
    after_request,
    mean_output_tokens,
    mean_quality,
    no_demand,
    offered_load,
)
from qos_jax.workload import fleet_path, read_fleet
from qos_jax.workload.capacity import capacity_per_s
from qos_jax.workload.request_table import RequestTable

FLEET = read_fleet(fleet_path("edge6"))
EXACT = jnp.zeros((6,), jnp.float32)


@jax.jit
def replayed(prompt, output, gap_s):
    """Demand after requests of prompts [T], outputs [T, N] and gaps [T]; qualities are outputs / 400."""

    def step(demand, arrival):
        prompt, output, gap_s = arrival
        return after_gap(after_request(demand, prompt, output, output / 400.0), gap_s), None

    return jax.lax.scan(step, no_demand(6), (prompt, output, gap_s))[0]


def stream(count, prompt=800, output=150.0, gap_s=0.2):
    return (
        jnp.full((count,), prompt, jnp.int32),
        jnp.full((count, 6), output, jnp.float32),
        jnp.full((count,), gap_s, jnp.float32),
    )


@pytest.mark.parametrize("count", [1, 2, 50])
def test_of_a_steady_stream_it_is_the_rate_over_the_capacity_from_the_first_gap_on(count):
    load = offered_load(FLEET.profile, replayed(*stream(count)), EXACT)
    tokens = np.full((1, 6), 150)
    none = np.zeros((1, 6), np.float32)
    table = RequestTable(np.array([800]), none, tokens, none, tokens.astype(np.float32))
    expected = 1 / 0.2 / capacity_per_s(FLEET.profile, table).sum()
    np.testing.assert_allclose(load, [expected] * len(WINDOWS), rtol=1e-5)


def test_before_any_gap_it_is_zero():
    nine = jnp.full((6,), 9.0, jnp.float32)
    first = after_request(no_demand(6), jnp.int32(100), nine, nine)
    for demand in (no_demand(6), first):
        np.testing.assert_array_equal(offered_load(FLEET.profile, demand, EXACT), [0.0, 0.0])


@pytest.mark.parametrize("count", [1, 3, 100])
def test_mean_output_tokens_and_quality_are_those_of_the_arrivals_so_far(count):
    prompt, _, gap_s = stream(count)
    output = jnp.broadcast_to(jnp.arange(1.0, 7.0) * 50.0, (count, 6))
    demand = replayed(prompt, output, gap_s)
    np.testing.assert_allclose(mean_output_tokens(demand), output[0], rtol=1e-5)
    np.testing.assert_allclose(mean_quality(demand), output[0] / 400.0, rtol=1e-5)
    for mean in (mean_output_tokens, mean_quality):
        np.testing.assert_array_equal(mean(no_demand(6)), 0.0)
    longer = after_gap(after_request(demand, prompt[0], 2.0 * output[0], output[0]), gap_s[0])
    ratio = mean_output_tokens(longer) / output[0]
    assert np.all((ratio > 1.0) & (ratio < 1.6))


def test_a_burst_shows_in_the_short_window_first():
    demand = replayed(*stream(200, gap_s=1.0))
    for _ in range(8):
        output = stream(1)[1][0]
        demand = after_gap(after_request(demand, jnp.int32(800), output, output), jnp.float32(0.01))
    short, long = offered_load(FLEET.profile, demand, EXACT)
    calm, _ = offered_load(FLEET.profile, replayed(*stream(200, gap_s=1.0)), EXACT)
    assert short > 2.0 * calm
    assert 1.05 * calm < long < 1.3 * calm


def test_arrivals_at_one_instant_are_bounded_and_the_end_of_a_trace_changes_nothing():
    demand = replayed(*stream(5, gap_s=0.0))
    np.testing.assert_allclose(offered_load(FLEET.profile, demand, EXACT), [MAX_LOAD] * 2, rtol=1e-6)
    ended = after_gap(demand, jnp.float32(jnp.inf))
    for field in dataclasses.fields(demand):
        np.testing.assert_array_equal(getattr(ended, field.name), getattr(demand, field.name))


def test_medians_of_uncertain_lengths_are_below_their_means():
    demand = replayed(*stream(20))
    sure, unsure = (offered_load(FLEET.profile, demand, EXACT + std) for std in (0.0, 1.0))
    assert np.all(unsure > 1.2 * sure)
    means = dataclasses.replace(demand, predicted_output_tokens=demand.predicted_output_tokens * np.exp(0.5))
    np.testing.assert_allclose(unsure, offered_load(FLEET.profile, means, EXACT), rtol=1e-5)
