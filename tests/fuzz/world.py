"""The worlds of fuzzed scenarios: views, several routers, stale scrapes, and servers that err and fail."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from qos_jax.routing.faults import Faults, no_faults
from qos_jax.routing.telemetry import Telemetry, TelemetryConfig
from qos_jax.simulation.world import World

# Static, so each is a program of its own for every shape and scheduler it is played with.
WORLDS = {
    "live": TelemetryConfig("live"),
    "known": TelemetryConfig("twin", observes_own=False),  # one router, which sees no request end
    "twin": TelemetryConfig("twin", routers=2),
    "counts": TelemetryConfig("twin", routers=2, scraped="counts", observes_own=False),
    "own": TelemetryConfig("own", routers=3),
    "times": TelemetryConfig("own_times_routers", routers=2),
}
EVENTS = 2  # of the script of outages


def world_of(scenario: Any, experts: int, arrival_s: np.ndarray) -> World:
    """Return the world of a scenario of a fleet of ``experts``; arrivals [R, T] seconds."""
    choices, rng = WORLDS[scenario.world], np.random.default_rng(scenario.seed + 1)
    share = rng.uniform(0.1, 1.0, choices.routers) ** 2
    share = (share / share.sum()).astype(np.float32)
    telemetry = Telemetry(
        scrape_period_s=jnp.float32(scenario.scrape_period_s),
        scrape_jitter=jnp.float32(0.2),
        scrape_failure=jnp.float32(0.1),
        router_share=jnp.asarray(share),
    )
    return World(choices, telemetry, _faults(scenario, experts, arrival_s, rng))


def _faults(scenario: Any, experts: int, arrival_s: np.ndarray, rng: np.random.Generator) -> Faults:
    """Return the faults; scripted outages end before the last arrival of any trace that lasts."""

    def each(value: float) -> Any:
        return jnp.full((experts,), value, jnp.float32)

    last_s = float(np.min(arrival_s[:, -1] - arrival_s[:, 0]))
    start_s = rng.uniform(0.0, 0.5, EVENTS) * last_s
    length_s = rng.uniform(0.0, 0.4, EVENTS) * last_s * (np.arange(EVENTS) < scenario.scripted_outages)
    return dataclasses.replace(
        no_faults(experts),
        pace_log_std=each(scenario.pace_log_std),
        drift_log_std=each(scenario.pace_log_std),
        slowdown_per_s=each(scenario.slowdown_per_s),
        slowdown_length_s=each(0.3),
        slowdown_pace=each(3.0),
        outage_per_s=each(scenario.outage_per_s),
        outage_length_s=each(0.2),
        script_expert=jnp.asarray(rng.integers(0, experts, EVENTS), jnp.int32),
        script_start_s=jnp.asarray(start_s, jnp.float32),
        script_length_s=jnp.asarray(length_s, jnp.float32),
        script_pace=jnp.full((EVENTS,), jnp.inf, jnp.float32),
        detection_delay_s=jnp.float32(scenario.detection_delay_s),
        failure_delay_s=jnp.float32(scenario.failure_delay_s),
        retry=jnp.bool_(scenario.retry),
    )
