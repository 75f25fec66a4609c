"""The net gain of routing a request to each expert, which the greedy routers maximise, and its parameters."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from qos_jax.policies.greedy_params import WEIGHTS, GreedyParams
from qos_jax.routing.believed_quality import believed_quality
from qos_jax.routing.impact import Impact, projected_impact
from qos_jax.routing.observation import Observation, relative_length
from qos_jax.routing.projection import left_given_survival
from qos_jax.serving.latency import decode_run_s, prefill_s

# Loads offered are taken to lie between these: beyond, much is lost whoever routes; below, nothing waits.
LOAD_RANGE = (0.1, 2.0)
# What is as usual, so that a power of it changes nothing: the experts' mean occupancy, as at a load of 0.6;
# predicted output tokens of an arrival; and an expert's time per token, as a share of L.
_USUAL_OCCUPANCY, _USUAL_OUTPUT_TOKENS, _USUAL_PACE = 0.3, 100.0, 0.5


# Of these, those that are about a place on an expert, whoever takes it.
_OF_A_PLACE = ("level", "pace", "slowness", "fleet")


def load_of_late(seen: Observation) -> jax.Array:
    """The load offered of late, mean of both ends of the windows, in ``LOAD_RANGE``; 1 before any, []."""
    load = 0.5 * (seen.offered_load[0] + seen.offered_load[-1])
    return jnp.where(load > 0.0, jnp.clip(load, *LOAD_RANGE), 1.0)


def margin_of_late(
    params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None
) -> jax.Array:
    """``margin`` times powers of what arrives of late, []; ``expert_mask`` as in :func:`crowding_price`."""
    return params.margin * _factor(params, "margin", _log_demand(seen, expert_mask))


def impact_of_each(params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None) -> Impact:
    """The projected impact at each expert that :func:`net_gain` is made of, by the qualities as believed."""
    margin = margin_of_late(params, seen, expert_mask)
    return projected_impact(as_believed(params, seen, expert_mask), margin, params.margin_of_others * margin)


def as_believed(params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None) -> Observation:
    """The observation with the arrived request's predicted qualities as believed: by ``quality_slope``.

    What is usual is the mean of the arrivals of late; before any, qualities are believed as they are. So
    are those of the requests in flight. ``expert_mask`` as in :func:`crowding_price`.
    """
    known = seen.mean_output_tokens > 0.0
    usual = jnp.where(known, seen.mean_quality, seen.predicted_quality)
    believed = believed_quality(seen.predicted_quality, usual, params.quality_slope, expert_mask)
    return dataclasses.replace(seen, predicted_quality=believed)


def crowding_price(
    params: GreedyParams, seen: Observation, expert_mask: jax.Array | None = None
) -> jax.Array:
    """QoS charged on behalf of those to come for a place on each expert, [N].

    ``congestion_price`` times a power of the share of the batch that is taken or waited for, so that little
    is charged on an expert with room. A place is worth what comes for it and is taken for as long as the
    answer is: the price is multiplied by powers of the load offered of late, and of the predicted length over
    the mean of late; and by the others of ``WEIGHTS``, which are 0 in the heuristics and are learned.

    Args:
      params: of the price.
      seen: the observation.
      expert_mask: [N] bool, False for rows that only pad the fleet; all exist by default.
    """
    context = _log_demand(seen, expert_mask) | _log_request(seen) | _log_place(seen, expert_mask)
    taken = _occupancy(seen) ** params.price_by_occupancy
    return params.congestion_price * _factor(params, "price", context) * taken


def net_gain(
    params: GreedyParams, seen: Observation, impact: Impact, expert_mask: jax.Array | None = None
) -> jax.Array:
    """QoS expected from routing to each expert, less what it costs those there and those to come, [N].

    -inf where the queue is full. ``expert_mask`` as in :func:`crowding_price`.
    """
    price = crowding_price(params, seen, expert_mask)
    weight = params.penalty_weight * _factor(params, "penalty", _log_demand(seen, expert_mask))
    gain = impact.own_qos - weight * impact.penalty - price
    return jnp.where(seen.available, gain, -jnp.inf)


def crowding_cost(params: GreedyParams, seen: Observation) -> jax.Array:
    """What the requests in flight cost those to come: the price of crowding for each at a load of 1, [] QoS.

    The sum of :func:`crowding_price` over the requests of each expert, the first of whom found it empty; of
    their lengths, what is left counts, and their prefill is over.
    """
    count = queue_length(seen).astype(jnp.float32)[:, None]
    found = jnp.arange(seen.live.shape[-1], dtype=jnp.float32)[None]  # by each who came, those before
    taken = found / seen.profile.max_running.astype(jnp.float32)[:, None]
    places = jnp.sum(jnp.where(found < count, taken**params.price_by_occupancy, 0.0), axis=-1)
    length = jax.vmap(relative_length, (None, 1), 1)(seen, tokens_left(seen)) ** params.price_by_length
    length = jnp.sum(jnp.where(seen.live, length, 0.0), axis=-1) / jnp.maximum(count[:, 0], 1.0)
    price = params.congestion_price * _factor(
        params, "price", _log_place(seen, None) | _log_demand(seen, None), _OF_A_PLACE
    )
    return jnp.sum(price * places * length)


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


def _factor(
    params: GreedyParams, what: str, context: dict[str, jax.Array], names: tuple[str, ...] | None = None
) -> jax.Array:
    """What ``what`` is multiplied by: powers of its ``WEIGHTS``, or of some of them, by their logarithms."""
    powers = [getattr(params, f"{what}_by_{name}") * context[name] for name in names or WEIGHTS[what]]
    return jnp.exp(sum(powers[1:], powers[0]))


def _log_demand(seen: Observation, expert_mask: jax.Array | None) -> dict[str, jax.Array]:
    """Of what arrives, [] each."""
    load = jnp.log(load_of_late(seen))
    short, long = seen.offered_load[0], seen.offered_load[-1]
    known = (short > 0.0) & (long > 0.0)
    burst = jnp.where(known, short, 1.0) / jnp.where(known, long, 1.0)
    tokens = _mean(seen.mean_output_tokens, expert_mask)
    tokens = jnp.where(tokens > 0.0, tokens, _USUAL_OUTPUT_TOKENS)
    return {
        "load": load,
        "burst": jnp.log(jnp.clip(burst, 0.25, 4.0)),
        "level": jnp.log(jnp.maximum(tokens, 1.0) / _USUAL_OUTPUT_TOKENS),
    }


def _log_request(seen: Observation) -> dict[str, jax.Array]:
    """Of the request at each expert, [N] each."""
    profile = seen.profile
    prompt = seen.prompt_tokens.astype(jnp.float32)
    output = jnp.maximum(seen.predicted_output_tokens, 1.0)
    share = prefill_s(profile, prompt, jnp.square(prompt)) / jnp.maximum(profile.decode_base_s * output, 1e-9)
    length = jnp.log(relative_length(seen, seen.predicted_output_tokens))
    return {"length": length, "prefill": jnp.log1p(jnp.minimum(share, 20.0))}


def _log_place(seen: Observation, expert_mask: jax.Array | None) -> dict[str, jax.Array]:
    """Of a place on each expert, [N] or []."""
    profile = seen.profile
    context = seen.slot_prompt_tokens + seen.slot_generated_tokens
    context = jnp.sum(jnp.where(seen.live, context, 0), axis=-1).astype(jnp.float32)
    batch = queue_length(seen).astype(jnp.float32)
    pace_s = jnp.maximum(decode_run_s(profile, jnp.ones_like(batch), batch, context), 1e-9)
    # A hundredth keeps an idle fleet's factor finite; no place of it costs anything.
    fleet = (_mean(_occupancy(seen), expert_mask) + 0.01) / _USUAL_OCCUPANCY
    return {
        "pace": jnp.log(pace_s / jnp.maximum(_mean(pace_s, expert_mask), 1e-9)),
        "slowness": jnp.log(pace_s / (_USUAL_PACE * seen.latency_limit_s)),
        "fleet": jnp.log(fleet),
    }


def _mean(of_each: jax.Array, expert_mask: jax.Array | None) -> jax.Array:
    """Mean of [N] over the experts that exist, []."""
    exists = jnp.ones(of_each.shape, bool) if expert_mask is None else expert_mask
    return jnp.sum(jnp.where(exists, of_each, 0.0)) / jnp.maximum(jnp.sum(exists, dtype=jnp.float32), 1.0)
