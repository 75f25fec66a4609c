"""Routers with beliefs, servers with faults: nothing is lost, and without either nothing changes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies import policy, types
from qos_jax.routing.faults import no_faults
from qos_jax.routing.telemetry import Telemetry, TelemetryConfig, live_telemetry
from qos_jax.simulation import world
from qos_jax.simulation.records import COMPLETED, FAILED
from qos_jax.simulation.simulate import simulate
from qos_jax.simulation.world import World, simulate_world
from tests.routing.scenes import EXPERTS
from tests.simulation.test_simulate import assert_same, config, runs


@pytest.fixture(scope="module")
def seen_whole():
    """What comes of it where routers see everything."""
    return simulate(config(), policy("shortest_queue"), runs(), block_runs=5)


def run(choices, telemetry, faults=None, name="shortest_queue"):
    return simulate_world(config(), policy(name), runs(), World(choices, telemetry, faults), block_runs=5)


def telemetry(period_s, share=(0.5, 0.5)):
    number = jnp.float32
    return Telemetry(number(period_s), number(0.1), number(0.1), jnp.asarray(share, jnp.float32))


def outages(retry):
    return dataclasses.replace(
        no_faults(EXPERTS),
        outage_per_s=jnp.full(EXPERTS, 2.0),
        outage_length_s=jnp.full(EXPERTS, 0.2),
        detection_delay_s=jnp.float32(0.05),
        failure_delay_s=jnp.float32(0.02),
        retry=jnp.bool_(retry),
    )


@pytest.mark.parametrize("view", ["live", "twin"])
def test_live_telemetry_changes_no_bit(seen_whole, view):
    found = run(TelemetryConfig(view=view), live_telemetry())
    # Totals are summed over other chunks.
    assert_same(dataclasses.replace(found, totals=seen_whole.totals), seen_whole)
    np.testing.assert_allclose(found.totals.busy_s, seen_whole.totals.busy_s, rtol=1e-5)


@pytest.mark.parametrize(
    "choices",
    [
        TelemetryConfig("scrape", routers=2),
        TelemetryConfig("own", routers=2),
        TelemetryConfig("own_times_routers", routers=2),
        TelemetryConfig("twin", routers=2),
        TelemetryConfig("twin", routers=2, scraped="counts", observes_own=False),
    ],
    ids=lambda choices: f"{choices.view}-{choices.scraped}",
)
def test_every_request_is_accounted_for_under_every_view(choices):
    found = run(choices, telemetry(0.2)).records
    assert found.status.shape == (5, 45)
    done = found.status == COMPLETED
    assert done.mean() > 0.5
    assert np.all(found.latency_s[done] >= found.ttft_s[done])
    assert np.isnan(found.latency_s[~done]).all()


def test_failed_requests_are_lost_or_routed_again():
    lost, again = (
        run(TelemetryConfig("twin", routers=2), telemetry(0.2), outages(retry)) for retry in (False, True)
    )
    failed = [(each.records.status == FAILED).sum() for each in (lost, again)]
    assert failed[0] > 10
    assert failed[1] < failed[0] / 2
    assert np.isnan(lost.records.latency_s[lost.records.status == FAILED]).all()


def test_the_same_seed_gives_the_same_world():
    first, second = (run(TelemetryConfig("twin", routers=2), telemetry(0.2), outages(True)) for _ in range(2))
    assert_same(first, second)


def test_runs_in_turn_are_the_runs_together(monkeypatch):
    choices = TelemetryConfig("twin", routers=2)
    together = run(choices, telemetry(0.2))
    monkeypatch.setattr(types, "small_loops_joined", lambda: True)
    monkeypatch.setattr(world, "TURNS_FROM_REQUESTS", 1)
    taken, route = [], world._route
    monkeypatch.setattr(world, "_route", lambda *given: (taken.append(given[0]), route(*given))[1])
    assert_same(run(choices, telemetry(0.2)), together)
    assert set(taken) == {True}
    taken.clear()
    monkeypatch.setattr(world, "TURNS_FROM_REQUESTS", 5 * 45 + 1)  # too few to be worth the compiling
    run(choices, telemetry(0.2))
    assert set(taken) == {False}
