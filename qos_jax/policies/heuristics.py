"""Routers that do not learn: the baselines, from random to greedy by projected impact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.impact import Impact, paper_impact, projected_impact
from qos_jax.routing.observation import Observation, relative_length
from qos_jax.routing.projection import left_given_survival

# Loads offered are taken to lie between these: beyond, much is lost whoever routes; below, nothing waits.
LOAD_RANGE = (0.1, 2.0)


@struct.dataclass
class GreedyParams:
    """Parameters of the greedy routers; the last four are neutral in ``projected_greedy``."""

    margin: jax.Array  # [] float32, std of log latency per token for what the projection cannot know
    congestion_price: jax.Array  # [] float32, QoS charged for a place on an expert whose batch is full
    drop_below: jax.Array  # [] float32, drop if no expert's net gain exceeds this; -inf = never drop
    impact_weight: jax.Array  # [] float32, of the paper's penalty, as in its reward; of impact_greedy alone
    price_by_load: (
        jax.Array
    )  # [] float32 in [0, 1], share of that price which is for a load of 1 and follows it
    price_by_length: jax.Array  # [] float32, power of predicted / mean output tokens that the price is times
    margin_by_load: jax.Array  # [] float32, power of the load that the margin is times
    penalty_weight: jax.Array  # [] float32, of the QoS that others are projected to lose


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
    return GreedyParams(
        margin=jnp.float32(margin),
        congestion_price=jnp.float32(congestion_price),
        drop_below=jnp.float32(0.0 if allow_drop else -jnp.inf),
        impact_weight=jnp.float32(impact_weight),
        price_by_load=jnp.float32(price_by_load),
        price_by_length=jnp.float32(price_by_length),
        margin_by_load=jnp.float32(margin_by_load),
        penalty_weight=jnp.float32(penalty_weight),
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


def load_of_late(seen: Observation) -> jax.Array:
    """The load offered, mean over the windows of demand, within ``LOAD_RANGE``; 1 before any gap, []."""
    load = jnp.mean(seen.offered_load)
    return jnp.where(load > 0.0, jnp.clip(load, *LOAD_RANGE), 1.0)


def margin_of_late(params: GreedyParams, seen: Observation) -> jax.Array:
    """``margin`` times a power of the load offered of late, []."""
    return params.margin * load_of_late(seen) ** params.margin_by_load


def impact_of_each(params: GreedyParams, seen: Observation) -> Impact:
    """The projected impact at each expert that :func:`net_gain` is made of."""
    return projected_impact(seen, margin_of_late(params, seen))


def crowding_price(params: GreedyParams, seen: Observation) -> jax.Array:
    """QoS charged on behalf of those to come for a place on each expert, [N].

    ``congestion_price`` times the cube of the share of the batch that is taken or waited for, so that little
    is charged on an expert with room. A place is worth what comes for it and is taken for as long as the
    answer is: a share ``price_by_load`` of the price is multiplied by the load offered of late, and the whole
    by a power of the predicted length over the mean of late.
    """
    price = params.congestion_price * (1.0 + params.price_by_load * (load_of_late(seen) - 1.0))
    price = price * relative_length(seen, seen.predicted_output_tokens) ** params.price_by_length
    occupancy = _queue_length(seen).astype(jnp.float32) / seen.profile.max_running.astype(jnp.float32)
    return price * occupancy**3


def net_gain(params: GreedyParams, seen: Observation, impact: Impact) -> jax.Array:
    """QoS expected from routing to each expert, less what it costs those there and those to come, [N].

    -inf where the queue is full.
    """
    gain = impact.own_qos - params.penalty_weight * impact.penalty - crowding_price(params, seen)
    return jnp.where(seen.available, gain, -jnp.inf)


def crowding_cost(params: GreedyParams, seen: Observation) -> jax.Array:
    """What the requests in flight cost those to come: the price of crowding for each at a load of 1, [] QoS.

    The sum of :func:`crowding_price` over the requests of each expert, the first of whom found it empty; of
    their lengths, what is left counts.
    """
    count = _queue_length(seen).astype(jnp.float32)
    cubes = jnp.square(0.5 * count * (count - 1.0))  # 0 + 1 + 8 + ... + (count - 1)^3
    length = jax.vmap(relative_length, (None, 1), 1)(seen, _tokens_left(seen)) ** params.price_by_length
    length = jnp.sum(jnp.where(seen.live, length, 0.0), axis=-1) / jnp.maximum(count, 1.0)
    return params.congestion_price * jnp.sum(
        cubes * length / seen.profile.max_running.astype(jnp.float32) ** 3
    )


def best_of(scores: jax.Array, drop_below: jax.Array) -> jax.Array:
    """Index of the highest of [N] scores, the first on ties; N (drop) if it is below ``drop_below``."""
    drop = jnp.int32(scores.shape[0])
    return jnp.where(jnp.max(scores) < drop_below, drop, jnp.argmax(scores).astype(jnp.int32))


def _least(key: jax.Array, cost: jax.Array) -> jax.Array:
    """Index of the lowest of [N] costs, drawn evenly among ties."""
    tie = jax.random.uniform(key, cost.shape)
    return jnp.argmin(jnp.where(cost == jnp.min(cost), tie, jnp.inf)).astype(jnp.int32)


def _queue_length(seen: Observation) -> jax.Array:
    return jnp.sum(seen.live, axis=-1, dtype=jnp.int32)


def _tokens_left(seen: Observation) -> jax.Array:
    """Predicted output tokens still to come of each slot, [N, K] float32, given that it got so far."""
    return left_given_survival(
        seen.slot_predicted_output_tokens,
        seen.slot_generated_tokens.astype(jnp.float32),
        seen.length_log_std[:, None],
    )


def random(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Any expert, evenly."""
    return jax.random.randint(key, (), 0, seen.num_experts)


def round_robin(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """Each expert in turn."""
    return seen.step % seen.num_experts


def shortest_queue(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """The expert with the fewest requests waiting and running, ties drawn."""
    return _least(key, _queue_length(seen))


def least_work(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """The expert with the fewest predicted output tokens still to come, ties drawn."""
    return _least(key, jnp.sum(jnp.where(seen.live, _tokens_left(seen), 0.0), axis=-1))


def power_of_two(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """The shorter queue of two experts drawn evenly (Mitzenmacher 2001); the only one of one."""
    pair_key, tie_key = jax.random.split(key)
    drawn = jax.random.uniform(pair_key, (seen.num_experts,))
    rank = jnp.sum(drawn[:, None] > drawn[None, :], axis=-1)
    return _least(tie_key, jnp.where(rank < 2, _queue_length(seen), jnp.iinfo(jnp.int32).max))


def best_quality(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """The expert of the highest predicted quality, whatever its load (the paper's "BERT router")."""
    return jnp.argmax(seen.predicted_quality).astype(jnp.int32)


def quality_within_limit(params: None, key: jax.Array, seen: Observation) -> jax.Array:
    """The highest predicted quality among those projected to meet L; failing all, the quickest."""
    impact = projected_impact(seen, jnp.float32(0.0))
    per_token_s = impact.latency_per_token_s
    meets = (per_token_s <= seen.latency_limit_s) & seen.available
    by_quality = jnp.argmax(jnp.where(meets, seen.predicted_quality, -1.0))
    quickest = jnp.argmin(jnp.where(seen.available, per_token_s, jnp.inf))
    return jnp.where(jnp.any(meets), by_quality, quickest).astype(jnp.int32)


def impact_greedy(params: GreedyParams, key: jax.Array, seen: Observation) -> jax.Array:
    """Predicted quality less the weighted impact penalty of the paper: greedy by its estimator."""
    net = seen.predicted_quality - params.impact_weight * paper_impact(seen)
    return best_of(jnp.where(seen.available, net, -jnp.inf), params.drop_below)


def projected_greedy(params: GreedyParams, key: jax.Array, seen: Observation) -> jax.Array:
    """Expected own QoS less the expected QoS lost by others, by our projection: the one to beat."""
    return best_of(net_gain(params, seen, impact_of_each(params, seen)), params.drop_below)


def load_aware_greedy(params: GreedyParams, key: jax.Array, seen: Observation) -> jax.Array:
    """``projected_greedy`` with a price of crowding that follows load and length, and weights to match."""
    return projected_greedy(params, key, seen)


def assigned(params: jax.Array, key: jax.Array, seen: Observation) -> jax.Array:
    """Replay a given expert for each request: ``params`` is [T] int32, by order of arrival."""
    return params[seen.step]
