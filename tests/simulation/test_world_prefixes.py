"""Prefix caches in a world: what routers see at once changes nothing, what they do not they estimate."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies import policy
from qos_jax.routing.faults import no_faults
from qos_jax.routing.telemetry import TelemetryConfig, live_telemetry
from qos_jax.simulation.records import COMPLETED, FAILED
from qos_jax.simulation.simulate import simulate
from qos_jax.simulation.world import World, simulate_world
from tests.routing.scenes import EXPERTS, roomy
from tests.simulation.test_simulate import assert_same, config, runs
from tests.simulation.test_world import outages, telemetry

CACHED = dataclasses.replace(config("chunked_prefill"), prefix_entries=6)
GROUPS, SHARED = 4, 96


def shared():
    """Runs of requests of four groups, most of whose prompts are shared."""
    what = runs(fleet=roomy(), mean_gap_s=0.1)
    group = np.random.default_rng(3).integers(-1, GROUPS, what.shape).astype(np.int32)
    prompt = what.requests.prompt_tokens + np.where(group >= 0, SHARED, 0).astype(np.int32)
    requests = dataclasses.replace(
        what.requests,
        prompt_tokens=prompt,
        prefix_group=group,
        prefix_tokens=np.where(group >= 0, SHARED, 0).astype(np.int32),
    )
    return dataclasses.replace(what, requests=requests)


def run(telemetry, faults):
    """Run two twins; one program for all telemetry and faults."""
    world = World(TelemetryConfig("twin", routers=2), telemetry, faults)
    return simulate_world(CACHED, policy("prefix_load"), shared(), world, block_runs=5)


@pytest.fixture(scope="module")
def seen_whole():
    """What comes of it where routers see everything."""
    return simulate(CACHED, policy("prefix_load"), shared(), block_runs=5)


def test_live_telemetry_changes_no_bit(seen_whole):
    found = run(live_telemetry(2), no_faults(EXPERTS))
    assert_same(dataclasses.replace(found, totals=seen_whole.totals), seen_whole)


def test_routers_with_stale_scrapes_find_what_they_sent_and_faults_take_it(seen_whole):
    rare = dataclasses.replace(outages(True), outage_per_s=jnp.full(EXPERTS, 0.3))
    found, failing = (run(telemetry(0.5), f).records for f in (no_faults(EXPERTS), rare))
    live = seen_whole.records
    assert live.cached_tokens.sum() > 0.3 * live.prompt_tokens.sum()
    assert np.all(found.status == COMPLETED)
    assert found.cached_tokens.sum() > 0.8 * live.cached_tokens.sum()
    assert np.mean(failing.status == COMPLETED) > 0.8
    assert np.all(failing.cached_tokens[failing.status == FAILED] == 0)
    assert 0 < failing.cached_tokens.sum() < 0.95 * found.cached_tokens.sum()
