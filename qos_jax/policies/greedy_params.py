"""The numbers of the net gain that greedy routers maximise: one table, which sweeps and the search read."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.checks import NON_NEGATIVE, Interval


@dataclasses.dataclass(frozen=True)
class Number:
    """A number of the net gain: its defaults, what a sweep may set, and how the search moves it."""

    default: float  # of projected_greedy and impact_greedy
    load_aware: float  # of load_aware_greedy, which learned routers start from
    help: str
    step: float | None = None  # of the search, of the logarithm if ``logarithmic``; None = not searched
    low: float = 0.0  # bounds of the search
    high: float = 0.0
    logarithmic: bool = False
    measured: float | None = None  # of measured_greedy, where no profile is known; None = not read there
    allowed: Interval = NON_NEGATIVE  # what a sweep may set


def _number(*row: Any, **columns: Any) -> Any:
    """Return the field of a :class:`Number`."""
    return struct.field(metadata={"number": Number(*row, **columns)})


def _power(
    help: str,
    step: float,
    low: float,
    high: float,
    load_aware: float = 0.0,
    measured: float | None = 0.0,
) -> Any:
    """Return the field of a power, by default 0: without effect."""
    allowed = Interval(-10.0, 10.0)
    return _number(0.0, load_aware, help, step, low, high, measured=measured, allowed=allowed)


@struct.dataclass
class GreedyParams:
    """Parameters of the net gain, leaves [] float32.

    A power ``TERM_by_QUANTITY`` multiplies a term (price, penalty or margin) by the quantity to that power.
    The search draws its changes in the order of these fields, so a new one goes last. Its steps are sized
    to cost or gain about as much QoS each, where the price of load_aware_greedy matters.
    """

    drop_below: jax.Array  # drop if no expert's net gain exceeds this; -inf = never drop
    congestion_price: jax.Array = _number(
        0.15, 0.11, "QoS charged for a slot of a full batch", 0.4, 0.01, 2.0, True, measured=0.4
    )
    price_by_occupancy: jax.Array = _number(
        3.0,
        3.0,
        "share of the batch that is taken",
        1.0,
        0.25,
        8.0,
        measured=3.0,
        allowed=Interval(0.0, 10.0),
    )
    price_by_load: jax.Array = _power("recent offered load", 0.3, 0.0, 3.0, load_aware=1.0)
    price_by_burst: jax.Array = _power("load by the shortest window over that by the longest", 0.3, -2.0, 2.0)
    price_by_length: jax.Array = _power(
        "predicted output tokens over their recent mean", 0.3, 0.0, 3.0, load_aware=0.9, measured=1.0
    )
    price_by_level: jax.Array = _power("recent mean of predicted output tokens", 0.3, -2.0, 2.0)
    price_by_prefill: jax.Array = _power(
        "time alone on the expert over that of its decoding", 0.5, -2.0, 4.0, measured=None
    )
    price_by_pace: jax.Array = _power("the expert's time per token over the mean of all", 0.8, -4.0, 4.0)
    price_by_slowness: jax.Array = _power("the expert's time per token over L", 0.6, -4.0, 4.0)
    price_by_fleet: jax.Array = _power("mean occupancy of all experts", 0.6, -4.0, 4.0)
    margin: jax.Array = _number(
        0.3,
        0.3,
        "std of log latency per token for what the projection cannot know",
        0.3,
        0.03,
        2.0,
        True,
        0.4,
    )
    margin_by_load: jax.Array = _power("recent offered load", 0.3, -2.0, 2.0, load_aware=0.35, measured=None)
    margin_by_level: jax.Array = _power(
        "recent mean of predicted output tokens", 0.2, -2.0, 2.0, measured=None
    )
    margin_of_others: jax.Array = _number(
        1.0, 1.0, "factor on the margin of the requests in flight", 0.4, 0.1, 5.0, True
    )
    penalty_weight: jax.Array = _number(
        1.0, 1.5, "weight of the QoS that others are projected to lose", 0.4, 0.1, 10.0, True, 1.0
    )
    penalty_by_load: jax.Array = _power("recent offered load", 0.4, -2.0, 2.0)
    quality_slope: jax.Array = _number(
        1.0,
        1.0,
        "how far predicted qualities are believed",
        0.4,
        0.0,
        1.5,
        measured=1.0,
        allowed=Interval(0.0, 1.5),
    )
    impact_weight: jax.Array = _number(1.0, 1.0, "weight of the paper's penalty, for impact_greedy alone")


NUMBERS: dict[str, Number] = {
    row.name: row.metadata["number"] for row in dataclasses.fields(GreedyParams) if "number" in row.metadata
}

# What the search may change, and what a learned router keeps beside its weights.
SEARCHED = {name: number for name, number in NUMBERS.items() if number.step is not None}

# The quantities of each term's powers; occupancy is apart, for the price is a power of it, not times one.
POWERS = {
    term: tuple(
        name.removeprefix(f"{term}_by_")
        for name in NUMBERS
        if name.startswith(f"{term}_by_") and name != "price_by_occupancy"
    )
    for term in ("price", "penalty", "margin")
}


# The same of a router that knows no profile: its margin is in what it measures or learns.
SEARCHED_MEASURED = {
    name: number for name, number in SEARCHED.items() if number.measured is not None and name != "margin"
}

# Those that the price of crowding of a router without profiles is made of.
PRICE_MEASURED = tuple(
    name for name in SEARCHED_MEASURED if name.startswith(("congestion_price", "price_by_"))
)


def measured_params(allow_drop: bool = True) -> GreedyParams:
    """Return parameters of ``measured_greedy``, whose price of crowding a learned impact starts with."""
    given = {name: number.measured for name, number in NUMBERS.items() if number.measured is not None}
    return greedy_params(allow_drop, **given)


def greedy_params(allow_drop: bool = True, **changes: float) -> GreedyParams:
    """Return parameters of ``projected_greedy`` and ``impact_greedy``, ``changes`` of their defaults made."""
    return _params(allow_drop, {name: number.default for name, number in NUMBERS.items()} | changes)


def load_aware_params(allow_drop: bool = True) -> GreedyParams:
    """Return parameters of ``load_aware_greedy``, whose net gain the learned routers start from."""
    return _params(allow_drop, {name: number.load_aware for name, number in NUMBERS.items()})


def _params(allow_drop: bool, numbers: dict[str, float]) -> GreedyParams:
    """Return the parameters; with ``allow_drop`` a request that no expert gains from is dropped."""
    leaves = {name: jnp.float32(value) for name, value in numbers.items()}
    return GreedyParams(drop_below=jnp.float32(0.0 if allow_drop else -jnp.inf), **leaves)
