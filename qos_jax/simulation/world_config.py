"""What a user says of routers' knowledge and of servers' faults, checked and made into worlds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np

from qos_jax.checks import (
    COUNT,
    DISCOUNT,
    NON_NEGATIVE,
    POSITIVE,
    SHARE,
    check_one_of,
    check_range,
    check_some_of,
)
from qos_jax.errors import input_error
from qos_jax.options import check_options, option
from qos_jax.policies import Policy
from qos_jax.routing.faults import Faults
from qos_jax.routing.telemetry import SCRAPED, VIEWS, Telemetry, TelemetryConfig
from qos_jax.simulation.reality import Reality
from qos_jax.simulation.world import World

# Views compared where a world is given and no views are: what routers lose to the best informed one.
DEFAULT_VIEWS = ("informed", "twin")
DOWN = "down"  # as the pace of a scripted event: an outage
_EVENT_FORM = "EXPERT:START_S:LENGTH_S:PACE, with down as the pace of an outage"
# The traced numbers of a world, and what each must be.
WORLD_NUMBERS = {
    "scrape_period_s": NON_NEGATIVE,
    "scrape_jitter": DISCOUNT,
    "scrape_failure": SHARE,
    "pace_log_std": NON_NEGATIVE,
    "drift_log_std": NON_NEGATIVE,
    "drift_time_s": POSITIVE,
    "slowdown_per_s": NON_NEGATIVE,
    "slowdown_length_s": NON_NEGATIVE,
    "slowdown_pace": POSITIVE,
    "outage_per_s": NON_NEGATIVE,
    "outage_length_s": NON_NEGATIVE,
    "detection_delay_s": NON_NEGATIVE,
    "failure_delay_s": NON_NEGATIVE,
}
# Servers differ from their profiles where any of these is above 0, or by script.
FAULTY = ("pace_log_std", "drift_log_std", "slowdown_per_s", "outage_per_s")
_MAY_BE_INFINITE = ("scrape_period_s", "failure_delay_s")

_Of = TypeVar("_Of")

PREFIX_HELP = (
    "prefix groups that each expert's cache remembers besides those in its slots, such as 64; 0 = no prefix "
    "caching. Requests say what they share by prefix_group and prefix_tokens"
)


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """How routers learn of the fleet, and how servers err; each number applies to every expert.

    The defaults are one router that sees everything, and servers that are as their profiles say.

    Raises:
      InputError: naming the field that is out of range, and what to give.
    """

    views: tuple[str, ...] = option(
        (),
        help="how routers form a belief of the fleet; every policy runs under each, named POLICY@VIEW, on "
        "identical requests and faults: informed (true queues, pace and outages), live (true queues), "
        "scrape (as last scraped), own (and own requests since), own_times_routers (own requests alone, "
        "each counted once per router), twin (last scrape, own requests and others' estimated load, advanced "
        "in closed form). By default routers see everything; with any flag of telemetry or faults, "
        f"{','.join(DEFAULT_VIEWS)}",
        known=VIEWS,
    )
    routers: int | None = None  # how many share the fleet; none = one for each of router_shares, else 1
    router_shares: tuple[float, ...] = ()  # of the requests, by router, such as 70,10,10,10; empty = equal
    scrape_period_s: float = 0.0  # seconds between scrapes of a router; 0 = live, inf = never
    scraped: str = option(
        "everything",
        help="what a scrape shows: every request's tokens and age, or counts of requests running and waiting "
        "and KV use, as /metrics of vLLM and llama.cpp",
        known=SCRAPED,
    )
    scrape_jitter: float = 0.0  # share of the period by which a scrape may be early or late, below 1
    scrape_failure: float = 0.0  # chance that a scrape yields nothing
    observes_own: bool = True  # routers are proxies: they see first tokens and ends of their own requests
    pace_log_std: float = 0.0  # std of the log of each server's fixed error in pace, hidden from routers
    drift_log_std: float = 0.0  # std of the log of a pace that drifts
    drift_time_s: float = 60.0  # seconds until the drift is forgotten but for 1 / e
    slowdown_per_s: float = 0.0  # slowdowns of a server that start in a second
    slowdown_length_s: float = 60.0  # seconds of each
    slowdown_pace: float = 3.0  # times that an iteration takes meanwhile
    outage_per_s: float = 0.0  # outages of a server that start in a second
    outage_length_s: float = 30.0  # seconds of each
    detection_delay_s: float = 10.0  # seconds until health checks notice that a server is down, or up again
    failure_delay_s: float = 1.0  # seconds until a request to a server that is down fails; inf = it hangs
    retry: bool = False  # routers send failed requests again; else those count as failed
    fault: tuple[str, ...] = option((), help=f"scripted event, {_EVENT_FORM}", repeatable=True)

    def __post_init__(self) -> None:
        check_options(self)
        if self.views:
            check_some_of("views", self.views, VIEWS)
        check_range(self, ("routers",), COUNT)
        check_range(self, ("router_shares",), POSITIVE)
        for name, interval in WORLD_NUMBERS.items():
            if not (name in _MAY_BE_INFINITE and getattr(self, name) == math.inf):
                check_range(self, (name,), interval)
        if self.routers is not None and self.router_shares and len(self.router_shares) != self.routers:
            fault = f"{len(self.router_shares)} shares for {self.routers} routers"
            remedy = "give one per router, or leave out routers"
            raise input_error(fault, field="router_shares", remedy=remedy)
        for event in self.fault:
            _event(event)

    @property
    def is_set(self) -> bool:
        """Whether anything differs from one router that sees everything and servers without faults."""
        return self != WorldConfig()

    @property
    def chosen_views(self) -> tuple[str, ...]:
        """The views to run under; () = routers see everything and servers have no faults."""
        return self.views or (DEFAULT_VIEWS if self.is_set else ())

    @property
    def has_faults(self) -> bool:
        """Whether any server may differ from its profile."""
        return any(getattr(self, name) for name in FAULTY) or bool(self.fault)

    @property
    def num_routers(self) -> int:
        """How many routers share the fleet."""
        return self.routers or len(self.router_shares) or 1

    def choices(self, view: str) -> TelemetryConfig:
        """Return what routers know under a view, and how many they are: the static part of its world."""
        return TelemetryConfig(view, self.num_routers, self.scraped, self.observes_own)

    def worlds(self, names: Sequence[str]) -> dict[str, World]:
        """Return the world under each of :attr:`chosen_views`, which differ in nothing but the view.

        Args:
          names: of the N experts.

        Raises:
          InputError: an event names an expert that is not in the fleet.
        """
        reality = self.reality(names)
        return {
            view: World(self.choices(view), reality.telemetry, reality.faults) for view in self.chosen_views
        }

    def reality(self, names: Sequence[str], *, has_faults: bool | None = None) -> Reality:
        """Return the traced part of the worlds under all views.

        Args:
          names: of the N experts.
          has_faults: whether there are faults, be they zero; by default where any number is set.

        Raises:
          InputError: an event names an expert that is not in the fleet.
        """
        shares = np.array(self.router_shares or (1.0,) * self.num_routers, np.float64)
        telemetry = Telemetry(
            jnp.float32(self.scrape_period_s),
            jnp.float32(self.scrape_jitter),
            jnp.float32(self.scrape_failure),
            jnp.asarray(shares / shares.sum(), jnp.float32),
        )
        return Reality(telemetry, self._faults(names, self.has_faults if has_faults is None else has_faults))

    def _faults(self, names: Sequence[str], has_faults: bool) -> Faults | None:
        """Return the faults of N servers; None = they never err, which is a faster program."""
        events = [_event(event) for event in self.fault]
        for expert, *_ in events:
            check_one_of("fault", expert, names)
        if not has_faults:
            return None

        def each(value: float) -> jnp.ndarray:
            return jnp.full((len(names),), value, jnp.float32)

        return Faults(
            pace_log_std=each(self.pace_log_std),
            drift_log_std=each(self.drift_log_std),
            drift_time_s=each(self.drift_time_s),
            slowdown_per_s=each(self.slowdown_per_s),
            slowdown_length_s=each(self.slowdown_length_s),
            slowdown_pace=each(self.slowdown_pace),
            outage_per_s=each(self.outage_per_s),
            outage_length_s=each(self.outage_length_s),
            script_expert=jnp.array([names.index(event[0]) for event in events], jnp.int32),
            script_start_s=jnp.array([event[1] for event in events], jnp.float32),
            script_length_s=jnp.array([event[2] for event in events], jnp.float32),
            script_pace=jnp.array([event[3] for event in events], jnp.float32),
            detection_delay_s=jnp.float32(self.detection_delay_s),
            failure_delay_s=jnp.float32(self.failure_delay_s),
            retry=jnp.bool_(self.retry),
        )


def named_under(policy_name: str, condition: str) -> str:
    """Return what a policy is called under a view, or under one of several kinds of predictions."""
    return f"{policy_name}@{condition}"


def under_views(
    policies: Sequence[Policy], by_view: Mapping[str, _Of]
) -> tuple[list[Policy], dict[str, _Of]]:
    """Return the policies, once for each view where there are views, and what belongs to the view of each.

    Args:
      policies: who routes.
      by_view: something of each view; empty = routers see everything.

    Returns:
      The policies, named POLICY@VIEW under views; what belongs to the view of each, by that name.
    """
    if not by_view:
        return list(policies), {}
    found, belongs = [], {}
    for view, thing in by_view.items():
        for policy in policies:
            found.append(dataclasses.replace(policy, name=named_under(policy.name, view)))
            belongs[found[-1].name] = thing
    return found, belongs


def check_views(policies: Sequence[Policy]) -> None:
    """Check that every policy can route by a view, which holds nothing of what a router measures of answers.

    Raises:
      InputError: a policy that goes by that.
    """
    for policy in policies:
        if policy.measures:
            fault = f"{policy.name!r} goes by what it measures of answers, which no view holds"
            raise input_error(fault, field="views", remedy="leave out that policy, or the views and faults")


def _event(text: str) -> tuple[str, float, float, float]:
    """Return expert, start (s), length (s) and pace of a scripted event; pace inf = an outage.

    Raises:
      InputError: it is no such event.
    """
    expert, *numbers = text.rsplit(":", 3)
    try:
        start_s, length_s = (float(number) for number in numbers[:2])
        pace = math.inf if numbers[2] == DOWN else float(numbers[2])
    except (ValueError, IndexError):
        raise input_error(f"{text!r} is no event", field="fault", remedy=f"give {_EVENT_FORM}") from None
    finite = math.isfinite(pace) or numbers[2] == DOWN
    if not (expert and start_s in NON_NEGATIVE and length_s in POSITIVE and pace > 0 and finite):
        remedy = f"give {_EVENT_FORM}: a start from 0, a length and a pace above 0"
        raise input_error(f"{text!r} is out of range", field="fault", remedy=remedy)
    return expert, start_s, length_s, pace
