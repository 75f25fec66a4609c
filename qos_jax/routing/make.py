"""Make an environment that steps at once: a fleet by name, synthetic requests, Poisson arrivals."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from qos_jax.checks import COUNT, NON_NEGATIVE, POSITIVE, SEED, check_one_of
from qos_jax.errors import input_error
from qos_jax.routing.environment import RoutingEnvironment
from qos_jax.routing.faults import Faults
from qos_jax.routing.params import REWARDS, EnvConfig, EnvParams, make_params
from qos_jax.routing.telemetry import VIEWS, TelemetryConfig, live_telemetry
from qos_jax.workload import poisson
from qos_jax.workload.capacity import capacity_per_s
from qos_jax.workload.drawn_requests import draw_table, known_length_log_std
from qos_jax.workload.setting import open_setting


def make(
    fleet: str = "edge6",
    *,
    load: float | None = None,
    arrival_rate: float | None = None,
    latency_limit_s: float | None = None,
    ttft_limit_s: float | None = None,
    tpot_limit_s: float | None = None,
    e2e_limit_s: float | None = None,
    limits: str | None = None,
    scheduler: str = "prefill_first",
    reward: str = "qos",
    max_steps: int = 1000,
    allow_drop: bool = True,
    num_requests: int = 4096,
    seed: int = 0,
    view: str | None = None,
    routers: int = 1,
    scrape_period_s: float = 0.0,
    scraped: str = "everything",
    faults: Faults | None = None,
    measures: bool = False,
) -> tuple[RoutingEnvironment, EnvParams]:
    """Return an environment and its parameters, ready for ``reset`` and ``step``.

    Args:
      fleet: name of a shipped fleet, or the path of a fleet CSV.
      load: arrival rate as a share of the fleet's capacity; 0.75 if no ``arrival_rate`` is given.
      arrival_rate: requests per second, in place of ``load``.
      latency_limit_s: L, seconds per output token; None = the preset's, or else the shipped fleet's.
      ttft_limit_s: seconds to the first token, at the server; None = the preset's, or else no limit.
      tpot_limit_s: seconds per output token after the first, at the server; likewise.
      e2e_limit_s: seconds to the last token, network included; likewise.
      limits: name in ``workload.limit_presets.LIMIT_PRESETS`` of the limits that are not given.
      scheduler: of every expert, one of ``serving.SCHEDULERS``.
      reward: one of ``REWARDS``, see ``reward.py``.
      max_steps: decisions until the time limit.
      allow_drop: whether action N, to drop the request, counts as one.
      num_requests: rows of the table of synthetic requests, which arrivals are drawn from.
      seed: of the requests' contents.
      view: what routers know of the fleet, one of ``telemetry.VIEWS``; None = all of it, at every decision.
      routers: how many share the fleet, evenly; needs a view, as all that follows.
      scrape_period_s: seconds between two scrapes of a router; 0 = live, inf = never.
      scraped: what a scrape shows, one of ``telemetry.SCRAPED``.
      faults: how servers differ from their profile, leaves [N]; None = not at all.
      measures: measure answers, for routers that know no profile; not together with ``view`` or ``faults``.

    Raises:
      InputError: an unknown name, a number out of range, both rates, telemetry or faults without a view, or
        any fault of the fleet's file.
    """
    check_one_of("reward", reward, REWARDS)
    if load is not None and arrival_rate is not None:
        raise input_error("contradicts arrival_rate", field="load", remedy="give one of the two")
    checked = {"load": (load, POSITIVE), "arrival_rate": (arrival_rate, POSITIVE), "seed": (seed, SEED)}
    checked |= {"max_steps": (max_steps, COUNT), "num_requests": (num_requests, COUNT)}
    for field, (value, interval) in checked.items():
        if value is not None and value not in interval:
            raise input_error(f"{value!r} is out of range", field=field, remedy=f"give {interval}")
    choices, telemetry = None, None
    if view is not None:
        choices = TelemetryConfig(view, routers, scraped)
        if scrape_period_s != math.inf and scrape_period_s not in NON_NEGATIVE:
            raise input_error(
                f"{scrape_period_s!r} is out of range",
                field="scrape_period_s",
                remedy=f"give {NON_NEGATIVE}, or inf",
            )
        telemetry = dataclasses.replace(live_telemetry(routers), scrape_period_s=jnp.float32(scrape_period_s))
    elif routers != 1 or scrape_period_s != 0.0 or scraped != "everything" or faults is not None:
        raise input_error(
            "is needed where there are several routers, scrapes or faults",
            field="view",
            remedy=f"give view=, one of {', '.join(VIEWS)}",
        )
    setting = open_setting(
        fleet,
        scheduler=scheduler,
        latency_limit_s=latency_limit_s,
        ttft_limit_s=ttft_limit_s,
        tpot_limit_s=tpot_limit_s,
        e2e_limit_s=e2e_limit_s,
        limits=limits,
        seed=seed,
    )
    draw = jax.jit(draw_table, static_argnums=(2, 3))
    table = draw(jax.random.key(seed), setting.figures, None, num_requests)
    if arrival_rate is None:
        capacity = float(capacity_per_s(setting.fleet.profile, table).sum())
        arrival_rate = (0.75 if load is None else load) * capacity
    runs = jax.tree.map(lambda leaf: leaf[None], table)
    params = make_params(
        setting.fleet.profile,
        table,
        setting.limits,
        jnp.asarray(known_length_log_std(setting.figures, runs)),
        process=poisson(arrival_rate),
        telemetry=telemetry,
        faults=faults,
    )
    config = EnvConfig(
        setting.serving,
        max_steps=max_steps,
        reward=reward,
        allow_drop=allow_drop,
        measures=measures,
        telemetry=choices,
    )
    return RoutingEnvironment(config), dataclasses.replace(params, max_steps_in_episode=max_steps)
