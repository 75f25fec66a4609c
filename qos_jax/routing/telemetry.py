"""What routers measure of the fleet: when they scrape, what a scrape shows, and how views use it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.checks import COUNT, check_one_of, check_range

# How a router forms its belief; see README.md, rule 22.
VIEWS = {
    "informed": "the true queues, pace and outages at every decision: what no real router has",
    "live": "the true queues at every decision, profiles taken as they are",
    "scrape": "the queues as last scraped, nothing else",
    "own": "the queues as last scraped and one's own requests since",
    "own_times_routers": "one's own requests alone, each counted once per router, advanced in closed form",
    "twin": "the last scrape, own requests and others' estimated load, advanced in closed form to now",
}
SCRAPED = {
    "everything": "every request's tokens and age",
    "counts": "requests running, requests waiting and KV use, as /metrics of vLLM and llama.cpp",
}


@dataclasses.dataclass(frozen=True)
class TelemetryConfig:
    """Static choices of what routers know; hashable.

    Raises:
      InputError: an unknown name, or no router.
    """

    view: str = "twin"  # one of VIEWS
    routers: int = 1  # R, that share the fleet; each request belongs to one
    scraped: str = "everything"  # one of SCRAPED
    observes_own: bool = True  # whether routers are proxies: they see first tokens and ends of own requests

    def __post_init__(self) -> None:
        check_one_of("view", self.view, VIEWS)
        check_one_of("scraped", self.scraped, SCRAPED)
        check_range(self, ("routers",), COUNT)

    @property
    def advances(self) -> bool:
        """Whether beliefs advance in closed form between scrapes."""
        return self.view in ("twin", "own_times_routers")

    @property
    def keeps_own(self) -> bool:
        """Whether own requests enter the belief when they are routed."""
        return self.view in ("own", "own_times_routers", "twin")

    @property
    def scrapes(self) -> bool:
        """Whether beliefs are corrected by scrapes."""
        return self.view in ("scrape", "own", "twin")


@struct.dataclass
class Telemetry:
    """The numbers of telemetry, all traced."""

    scrape_period_s: jax.Array  # [] float32, seconds; 0 = live, inf = never
    scrape_jitter: jax.Array  # [] float32 in [0, 1), share of a period by which a scrape may be off
    scrape_failure: jax.Array  # [] float32 in [0, 1], chance that a scrape yields nothing
    router_share: jax.Array  # [R] float32, share of the requests that belong to each router; sums to 1


def live_telemetry(routers: int = 1) -> Telemetry:
    """Return telemetry without delay for R routers with equal shares."""
    zero = jnp.float32(0.0)
    return Telemetry(zero, zero, zero, jnp.full((routers,), 1.0 / routers, jnp.float32))


def router_of(key: jax.Array, telemetry: Telemetry) -> jax.Array:
    """Draw the router that a request belongs to, [] int32."""
    edges = jnp.cumsum(telemetry.router_share)
    drawn = jax.random.uniform(key, (), jnp.float32) * edges[-1]
    routers = edges.shape[0]
    return jnp.minimum(jnp.sum(drawn >= edges, dtype=jnp.int32), routers - 1)


def first_scrape_s(key: jax.Array, telemetry: Telemetry) -> jax.Array:
    """Draw the phase of each router, [R] float32 seconds until its first scrape."""
    routers = telemetry.router_share.shape[0]
    phase = jax.random.uniform(key, (routers,), jnp.float32)
    period_s = telemetry.scrape_period_s
    return jnp.where(
        jnp.isfinite(period_s), phase * jnp.where(jnp.isfinite(period_s), period_s, 0.0), jnp.inf
    )


def next_scrape_s(key: jax.Array, telemetry: Telemetry, due_s: jax.Array, until_s: jax.Array) -> jax.Array:
    """Return the seconds until the next scrape that a router takes, [] float32.

    Args:
      key: of the jitter.
      telemetry: its numbers.
      due_s: [] float32, seconds until the last one that it took was due.
      until_s: [] float32, seconds until the instant up to which others that were due are missed.
    """
    period_s = telemetry.scrape_period_s
    jitter = telemetry.scrape_jitter * jax.random.uniform(key, (), jnp.float32, -1.0, 1.0)
    repeats = jnp.isfinite(period_s) & (period_s > 0.0)
    safe_s = jnp.where(repeats, period_s, 1.0)
    # Those missed until then are not made up for.
    missed = jnp.floor(jnp.maximum(until_s - due_s, 0.0) / safe_s)
    following_s = due_s + (missed + 1.0 + jitter) * safe_s
    return jnp.where(repeats, following_s, jnp.where(period_s > 0.0, jnp.inf, 0.0))
