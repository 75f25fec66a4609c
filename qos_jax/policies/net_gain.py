"""The net gain of routing a request to each expert, which the greedy routers maximise, and its parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.impact import Impact, projected_impact
from qos_jax.routing.observation import Observation, relative_length
from qos_jax.routing.projection import left_given_survival

# Loads offered are taken to lie between these: beyond, much is lost whoever routes; below, nothing waits.
LOAD_RANGE = (0.1, 2.0)
# Mean occupancy of the experts at which ``price_by_fleet`` changes nothing: that of a load of about 0.6.
_USUAL_OCCUPANCY = 0.3


@struct.dataclass
class GreedyParams:
    """Parameters of the net gain, leaves [] float32; by :func:`greedy_params` the last ten have no effect."""

    drop_below: jax.Array  # drop if no expert's net gain exceeds this; -inf = never drop
    impact_weight: jax.Array  # of the paper's penalty, as in its reward; of impact_greedy alone
    margin: jax.Array  # std of log latency per token for what the projection cannot know
    congestion_price: jax.Array  # QoS charged for a place on an expert whose batch is full
    price_by_load: jax.Array  # power of the load of late that the price is times
    price_by_length: jax.Array  # power of predicted / mean output tokens that the price is times
    price_by_occupancy: jax.Array  # power of the share of the batch that is taken
    price_by_pace: jax.Array  # power of an expert's time per token over the mean of all
    price_by_fleet: jax.Array  # power of the experts' mean occupancy
    burst_weight: jax.Array  # in [0, 1], weight of the shortest window in the load of late
    margin_by_load: jax.Array  # power of the load that the margin is times
    margin_of_others: jax.Array  # factor on the margin of the requests in flight
    penalty_weight: jax.Array  # of the QoS that others are projected to lose
    penalty_by_load: jax.Array  # power of the load that this weight is times


def greedy_params(
    margin: float = 0.3,
    congestion_price: float = 0.15,
    allow_drop: bool = False,
    price_by_load: float = 0.0,
    impact_weight: float = 1.0,
    price_by_length: float = 0.0,
    margin_by_load: float = 0.0,
    penalty_weight: float = 1.0,
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
        "price_by_load": price_by_load,
        "price_by_length": price_by_length,
        "price_by_occupancy": 3.0,
        "price_by_pace": 0.0,
        "price_by_fleet": 0.0,
        "burst_weight": 0.5,
        "margin_by_load": margin_by_load,
        "margin_of_others": 1.0,
        "penalty_weight": penalty_weight,
        "penalty_by_load": 0.0,
    }
    return GreedyParams(**{name: jnp.float32(number) for name, number in numbers.items()})


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


def load_of_late(params: GreedyParams, seen: Observation) -> jax.Array:
    """The load offered of late, within ``LOAD_RANGE``; 1 before any gap, [].

    A mean over the windows of demand: the shortest weighs ``burst_weight``, the longest the rest.
    """
    short, long = seen.offered_load[0], seen.offered_load[-1]
    load = params.burst_weight * short + (1.0 - params.burst_weight) * long
    return jnp.where(load > 0.0, jnp.clip(load, *LOAD_RANGE), 1.0)


def margin_of_late(params: GreedyParams, seen: Observation) -> jax.Array:
    """``margin`` times a power of the load offered of late, []."""
    return params.margin * load_of_late(params, seen) ** params.margin_by_load


def impact_of_each(params: GreedyParams, seen: Observation) -> Impact:
    """The projected impact at each expert that :func:`net_gain` is made of."""
    margin = margin_of_late(params, seen)
    return projected_impact(seen, margin, params.margin_of_others * margin)


def crowding_price(
    params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None
) -> jax.Array:
    """QoS charged on behalf of those to come for a place on each expert, [N].

    ``congestion_price`` times a power of the share of the batch that is taken or waited for, so that little
    is charged on an expert with room. A place is worth what comes for it and is taken for as long as the
    answer is: the price is multiplied by powers of the load offered of late, and of the predicted length over
    the mean of late; and of how slow the expert has become beside the others, and of how full they all are,
    which are 0 in the heuristics and are learned.

    Args:
      params: of the price.
      seen: the observation.
      expert_mask: [N] bool, False for rows that only pad the fleet; all exist by default.
    """
    price = _price_of_full(params, seen, expert_mask) * load_of_late(params, seen) ** params.price_by_load
    price = price * relative_length(seen, seen.predicted_output_tokens) ** params.price_by_length
    return price * _occupancy(seen) ** params.price_by_occupancy


def net_gain(
    params: GreedyParams, seen: Observation, impact: Impact, expert_mask: jax.Array | None = None
) -> jax.Array:
    """QoS expected from routing to each expert, less what it costs those there and those to come, [N].

    -inf where the queue is full. ``expert_mask`` as in :func:`crowding_price`.
    """
    price = crowding_price(params, seen, expert_mask)
    weight = params.penalty_weight * load_of_late(params, seen) ** params.penalty_by_load
    gain = impact.own_qos - weight * impact.penalty - price
    return jnp.where(seen.available, gain, -jnp.inf)


def crowding_cost(params: GreedyParams, seen: Observation) -> jax.Array:
    """What the requests in flight cost those to come: the price of crowding for each at a load of 1, [] QoS.

    The sum of :func:`crowding_price` over the requests of each expert, the first of whom found it empty; of
    their lengths, what is left counts.
    """
    count = queue_length(seen).astype(jnp.float32)[:, None]
    found = jnp.arange(seen.live.shape[-1], dtype=jnp.float32)[None]  # by each who came, those before
    taken = found / seen.profile.max_running.astype(jnp.float32)[:, None]
    places = jnp.sum(jnp.where(found < count, taken**params.price_by_occupancy, 0.0), axis=-1)
    length = jax.vmap(relative_length, (None, 1), 1)(seen, tokens_left(seen)) ** params.price_by_length
    length = jnp.sum(jnp.where(seen.live, length, 0.0), axis=-1) / jnp.maximum(count[:, 0], 1.0)
    return jnp.sum(_price_of_full(params, seen, None) * places * length)


def queue_length(seen: Observation) -> jax.Array:
    """Requests waiting and running at each expert, [N] int32."""
    return jnp.sum(seen.live, axis=-1, dtype=jnp.int32)


def tokens_left(seen: Observation) -> jax.Array:
    """Predicted output tokens still to come of each slot, [N, K] float32, given that it got so far."""
    return left_given_survival(
        seen.slot_predicted_output_tokens,
        seen.slot_generated_tokens.astype(jnp.float32),
        seen.length_log_std[:, None],
    )


def _occupancy(seen: Observation) -> jax.Array:
    """Requests in flight over the size of the batch, [N] float32."""
    return queue_length(seen).astype(jnp.float32) / seen.profile.max_running.astype(jnp.float32)


def _price_of_full(params: GreedyParams, seen: Observation, expert_mask: jax.Array | None) -> jax.Array:
    """Price of a place on each expert, were its batch full, at a load of 1, for a usual length, [N] QoS."""
    profile = seen.profile
    exists = jnp.ones_like(seen.available) if expert_mask is None else expert_mask
    experts = jnp.maximum(jnp.sum(exists, dtype=jnp.float32), 1.0)

    def mean(of_each: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(exists, of_each, 0.0)) / experts

    context = seen.slot_prompt_tokens + seen.slot_generated_tokens
    context = jnp.sum(jnp.where(seen.live, context, 0), axis=-1).astype(jnp.float32)
    pace_s = (
        profile.decode_base_s
        + profile.decode_per_seq_s * queue_length(seen).astype(jnp.float32)
        + profile.decode_per_context_token_s * context
    )
    pace = jnp.maximum(pace_s, 1e-9) / jnp.maximum(mean(pace_s), 1e-9)
    # A hundredth keeps an idle fleet's factor finite; no place of it costs anything.
    fleet = (mean(_occupancy(seen)) + 0.01) / _USUAL_OCCUPANCY
    return params.congestion_price * pace**params.price_by_pace * fleet**params.price_by_fleet
