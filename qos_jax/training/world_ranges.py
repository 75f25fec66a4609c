"""What routers know and how servers err in training: choices, and ranges that each episode draws from."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from qos_jax.checks import COUNT, NON_NEGATIVE, check_range
from qos_jax.errors import input_error
from qos_jax.options import check_options, option
from qos_jax.routing.faults import Faults, no_faults
from qos_jax.routing.telemetry import SCRAPED, VIEWS, Telemetry, TelemetryConfig
from qos_jax.simulation.world_config import FAULTY, WORLD_NUMBERS, WorldConfig

_ALIKE = ("detection_delay_s", "failure_delay_s")  # numbers that all servers share


@dataclasses.dataclass(frozen=True)
class WorldRanges:
    """The world that a router is trained in; of a range, (lowest, highest), each episode draws a number.

    Numbers are drawn log-uniform where the lowest is above 0, else uniform; equal ends fix one. By default
    routers see everything and servers are as their profiles say.

    Raises:
      InputError: a range out of order or out of bounds, or any of it without a view, naming the field.
    """

    view: str | None = option(
        None,
        help="how routers form their belief; none = they see everything, and all below is off",
        known=VIEWS,
    )
    routers: int = 1  # how many share the fleet
    scraped: str = option("everything", help="what a scrape shows", known=SCRAPED)
    observes_own: bool = True  # routers are proxies: they see first tokens and ends of their own requests
    retry: bool = False  # failed requests are sent again; else they count as failed
    share_log_std: tuple[float, float] = (0.0, 0.0)  # std of the log of a router's share of the requests
    scrape_period_s: tuple[float, float] = (0.0, 0.0)  # seconds between scrapes; 0 = live
    scrape_jitter: tuple[float, float] = (0.0, 0.0)  # share of the period by which one is early or late
    scrape_failure: tuple[float, float] = (0.0, 0.0)  # chance that a scrape yields nothing
    pace_log_std: tuple[float, float] = (0.0, 0.0)  # std of the log of each server's fixed error in pace
    drift_log_std: tuple[float, float] = (0.0, 0.0)  # std of the log of a pace that drifts
    drift_time_s: tuple[float, float] = (60.0, 60.0)  # seconds until the drift is forgotten but for 1 / e
    slowdown_per_s: tuple[float, float] = (0.0, 0.0)  # slowdowns of a server that start in a second
    slowdown_length_s: tuple[float, float] = (60.0, 60.0)  # seconds of each
    slowdown_pace: tuple[float, float] = (3.0, 3.0)  # times that an iteration takes meanwhile
    outage_per_s: tuple[float, float] = (0.0, 0.0)  # outages of a server that start in a second
    outage_length_s: tuple[float, float] = (30.0, 30.0)  # seconds of each
    detection_delay_s: tuple[float, float] = (10.0, 10.0)  # seconds until health checks notice
    failure_delay_s: tuple[float, float] = (1.0, 1.0)  # seconds until a request to a dead server fails

    def __post_init__(self) -> None:
        check_options(self)
        check_range(self, ("routers",), COUNT)
        for name, interval in {"share_log_std": NON_NEGATIVE, **WORLD_NUMBERS}.items():
            check_range(self, (name,), interval)
            low, high = getattr(self, name)
            if low > high:
                raise input_error(f"{(low, high)} is out of order", field=name, remedy="give lowest, highest")
        for field in dataclasses.fields(self):
            default = field.name == "view" or getattr(self, field.name) == field.default
            if self.view is None and not default:
                remedy = f"give view, one of {', '.join(VIEWS)}"
                raise input_error("is of a world, and there is no view", field=field.name, remedy=remedy)

    @property
    def choices(self) -> TelemetryConfig | None:
        """What routers know, and how many they are; None = everything."""
        if self.view is None:
            return None
        return TelemetryConfig(self.view, self.routers, self.scraped, self.observes_own)

    @property
    def has_faults(self) -> bool:
        """Whether servers may err in any episode."""
        return any(getattr(self, name)[1] > 0 for name in FAULTY)

    def middle(self) -> WorldConfig:
        """Return the world in the middle of all ranges, with equal shares, which routers are judged in.

        Without a view it is none: routers see everything.
        """
        if self.view is None:
            return WorldConfig()
        numbers = {name: _between(0.5, getattr(self, name)) for name in WORLD_NUMBERS}
        return WorldConfig(
            views=(self.view,),
            routers=self.routers,
            scraped=self.scraped,
            observes_own=self.observes_own,
            retry=self.retry,
            **numbers,  # type: ignore[arg-type]
        )


def sample_world(
    key: jax.Array, ranges: WorldRanges, num_experts: int
) -> tuple[Telemetry | None, Faults | None]:
    """Draw telemetry and faults of one episode, None each without a view; jittable, of one key."""
    if ranges.view is None:
        return None, None
    keys = jax.random.split(key, len(WORLD_NUMBERS) + 2)
    drawn = {}
    for name, one in zip(WORLD_NUMBERS, keys[2:], strict=True):
        drawn[name] = _between(jax.random.uniform(one), getattr(ranges, name))
    spread = _between(jax.random.uniform(keys[0]), ranges.share_log_std)
    shares = jax.nn.softmax(spread * jax.random.normal(keys[1], (ranges.routers,)))
    scrapes = ("scrape_period_s", "scrape_jitter", "scrape_failure")
    telemetry = Telemetry(**{name: jnp.float32(drawn.pop(name)) for name in scrapes}, router_share=shares)
    if not ranges.has_faults:
        return telemetry, None
    numbers = {
        name: jnp.float32(value) if name in _ALIKE else jnp.full((num_experts,), value, jnp.float32)
        for name, value in drawn.items()
    }
    return telemetry, dataclasses.replace(no_faults(num_experts), **numbers, retry=jnp.bool_(ranges.retry))


def _between(share: float | jax.Array, ends: tuple[float, float]) -> float | jax.Array:
    """Return the number a share of the way from one end to the other, by logs where both are above 0."""
    low, high = ends
    if low > 0.0:
        return low * math.exp(math.log(high / low)) ** share
    return low + (high - low) * share
