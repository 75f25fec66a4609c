"""Oracles, which see true lengths and qualities, and the upper bound: ceilings, not competitors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from qos_jax.policies.greedy_params import GreedyParams
from qos_jax.policies.heuristics import best_of
from qos_jax.policies.net_gain import latency_margin, net_gain
from qos_jax.routing.impact import true_impact
from qos_jax.routing.observation import TrueObservation
from qos_jax.serving import FleetProfile, ServiceLimits, as_limits, cut_at_limit, with_context_limit
from qos_jax.serving.latency import alone_s, prefill_s
from qos_jax.serving.limits import all_kept, limits_kept
from qos_jax.serving.profile import decode_law
from qos_jax.serving.scheduler import BY_NAME
from qos_jax.workload.request_table import RequestTable


def clairvoyant_greedy(params: GreedyParams, key: jax.Array, truth: TrueObservation) -> jax.Array:
    """Route as ``load_aware_greedy`` by true lengths and qualities; later arrivals are unknown."""
    margin = latency_margin(params, truth.seen)
    impact = true_impact(truth, margin, params.margin_of_others * margin)
    return best_of(net_gain(params, truth.seen, impact), params.drop_below)


def upper_bound(
    profile: FleetProfile,
    table: RequestTable,
    limits: ServiceLimits | jax.Array,
    scheduler: str = "prefill_first",
) -> jax.Array:
    """Return the best QoS an empty fleet could give each request, [M] float32: no policy can exceed it.

    An expert that serves nothing else takes one prefill iteration and output - 1 decode iterations. A
    request that no expert can hold, or answer within every limit, counts 0. Other requests only slow it,
    with two exceptions. Where prompts come in chunks, a decoding request that shares its iteration with a
    prompt is charged the prefill's base instead of the decode's, so there each token takes the cheaper one.
    And a preempted request, after an iteration of others, gets a token by a prefill of its whole context,
    which costs less than decoding on a server where a token of context is dearer than one of a prompt.

    Args:
      profile: the fleet, leaves [N].
      table: M requests.
      limits: the service levels; an array is L alone, [] float32 seconds per output token.
      scheduler: of every expert, one of ``SCHEDULERS``.
    """
    profile = with_context_limit(scheduler, profile)
    table = cut_at_limit(profile, table)
    profile = _cheapest_context(profile)
    saved_s = jnp.zeros_like(profile.decode_base_s)
    decode_s, price_s = decode_law(profile, jnp.ones_like(profile.decode_base_s))
    if BY_NAME[scheduler].splits_prompts:
        beside_a_prompt_s = prefill_s(profile, jnp.float32(2.0), jnp.float32(1.0))  # itself + one token
        saved_s = jnp.maximum(decode_s - beside_a_prompt_s, 0.0)

    # A float32 rounding of a sum must not turn a request that just meets a limit away; TPOT is a difference.
    loose = as_limits(limits)
    loose = jax.tree.map(lambda limit_s: limit_s * (1.0 + 1e-5), loose)
    if loose.tpot_limit_s is not None:
        loose = dataclasses.replace(loose, tpot_limit_s=loose.tpot_limit_s * (1.0 + 1e-4))

    def of_one(prompt: jax.Array, output: jax.Array, quality: jax.Array) -> jax.Array:
        prompt_f, output_f = prompt.astype(jnp.float32), output.astype(jnp.float32)
        busy_s = alone_s(profile, prompt_f, output_f)
        longest = prompt_f + output_f - 1.0  # context tokens
        by_prefill_s = (price_s - profile.prefill_per_token_s) * longest - profile.prefill_base_s
        saved_each_s = saved_s + jnp.maximum(by_prefill_s, 0.0)
        latency_s = busy_s - saved_each_s * (output_f - 1.0) + profile.network_rtt_s
        ttft_s = prefill_s(profile, prompt_f, jnp.square(prompt_f))
        quick = all_kept(limits_kept(loose, latency_s, ttft_s, output_f, profile.network_rtt_s))
        return jnp.max(jnp.where(quick & (prompt + output <= profile.request_capacity_tokens), quality, 0.0))

    return jax.vmap(of_one)(table.prompt_tokens, table.output_tokens, table.quality)


def _cheapest_context(profile: FleetProfile) -> FleetProfile:
    """Return the profile with the first knot's context as cheap as at any: a batch may make it cheaper."""
    if not profile.decode_knots:
        return profile
    first, *others = profile.decode_knots
    least = jnp.min(jnp.stack([knot.per_context_token_s for knot in profile.decode_knots]), axis=0)
    first = dataclasses.replace(first, per_context_token_s=least)
    return dataclasses.replace(profile, decode_knots=(first, *others))
