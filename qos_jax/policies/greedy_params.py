"""The numbers of the net gain that greedy routers maximise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class GreedyParams:
    """Parameters of the net gain, leaves [] float32; ``WEIGHTS`` says what the powers are of.

    By :func:`greedy_params` those from ``price_by_burst`` on have no effect.
    """

    drop_below: jax.Array  # drop if no expert's net gain exceeds this; -inf = never drop
    impact_weight: jax.Array  # of the paper's penalty, as in its reward; of impact_greedy alone
    margin: jax.Array  # std of log latency per token for what the projection cannot know
    congestion_price: jax.Array  # QoS charged for a place on an expert whose batch is full
    penalty_weight: jax.Array  # of the QoS that others are projected to lose
    price_by_occupancy: jax.Array  # power of the share of the batch that is taken
    price_by_load: jax.Array
    price_by_length: jax.Array
    margin_by_load: jax.Array
    price_by_burst: jax.Array
    price_by_level: jax.Array
    price_by_prefill: jax.Array
    price_by_pace: jax.Array
    price_by_slowness: jax.Array
    price_by_fleet: jax.Array
    margin_by_level: jax.Array
    margin_of_others: jax.Array  # factor on the margin of the requests in flight
    penalty_by_load: jax.Array
    quality_slope: jax.Array  # how far predicted qualities are believed, see ``believed_quality``


# What price, weight of the penalty and margin are times powers of. ``load``: offered of late; ``burst``: load
# by the shortest window over that by the longest; ``length``: predicted output tokens of the request over the
# mean of late; ``level``: that mean; ``prefill``: time that the request takes alone on the expert, whole over
# decode; ``pace``: the expert's time per token over the mean of all; ``slowness``: the same over L;
# ``fleet``: mean occupancy. Also tried, and found to be noise: a bent power of the load, the load over 512
# arrivals, the variation of the rate over them, how long those in flight will stay, penalty by burst, length
# and level, margin by burst.
WEIGHTS = {
    "price": ("load", "burst", "length", "level", "prefill", "pace", "slowness", "fleet"),
    "penalty": ("load",),
    "margin": ("load", "level"),
}


def greedy_params(
    margin: float = 0.3,
    congestion_price: float = 0.15,
    allow_drop: bool = False,
    price_by_load: float = 0.0,
    impact_weight: float = 1.0,
    price_by_length: float = 0.0,
    margin_by_load: float = 0.0,
    penalty_weight: float = 1.0,
    quality_slope: float = 1.0,
) -> GreedyParams:
    """Parameters of a greedy router; with ``allow_drop`` it drops what no expert gains from.

    The defaults were chosen on synthetic load (Poisson at 40, 75 and 110% of capacity, 8 seeds from 100
    on, which no reported figure uses): without the price, greed fills the best expert up to the brink
    of L and pays at the next burst.
    """
    numbers = {
        "drop_below": 0.0 if allow_drop else -jnp.inf,
        "impact_weight": impact_weight,
        "margin": margin,
        "congestion_price": congestion_price,
        "penalty_weight": penalty_weight,
        "price_by_occupancy": 3.0,
        "price_by_load": price_by_load,
        "price_by_length": price_by_length,
        "margin_by_load": margin_by_load,
        "margin_of_others": 1.0,
        "quality_slope": quality_slope,
    }
    return GreedyParams(
        **{name: jnp.float32(numbers.get(name, 0.0)) for name in GreedyParams.__dataclass_fields__}
    )


def load_aware_params(allow_drop: bool = False) -> GreedyParams:
    """Parameters of ``load_aware_greedy``, whose net gain the learned routers start from.

    Rounded from the best of 384 draws by average QoS on scenarios such as routers are trained on (six
    experts, loads of 0.3 to 1.2, bursts; 128 and 192 episodes of 512 requests, of keys that nothing else
    uses). Most of the gain is in ``price_by_length``, and the more so the higher the load.
    """
    return greedy_params(
        margin=0.3,
        congestion_price=0.11,
        allow_drop=allow_drop,
        price_by_load=1.0,
        price_by_length=0.9,
        margin_by_load=0.35,
        penalty_weight=1.5,
    )


# What training may change: the rest says what is allowed, or is another router's.
LEARNED_NUMBERS = tuple(
    name for name in GreedyParams.__dataclass_fields__ if name not in ("drop_below", "impact_weight")
)
