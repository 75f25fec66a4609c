"""The input of a learned router's network, made from an observation; and the actions that are valid in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.policies.greedy_params import (
    SEARCHED,
    SEARCHED_MEASURED,
    GreedyParams,
    Number,
    load_aware_params,
    measured_params,
)
from qos_jax.policies.measured_price import measured_penalty_weight, measured_price
from qos_jax.policies.net_gain import as_believed, crowding_price, impact_of_each, net_gain
from qos_jax.policies.types import PREDICTIONS, PROFILES
from qos_jax.routing.belief_features import with_belief_features
from qos_jax.routing.graph import GraphFeatures, graph_features
from qos_jax.routing.measured_graph import measured_features
from qos_jax.routing.observation import Observation
from qos_jax.routing.prefix_features import with_prefix_features

INFORMATION = (PREDICTIONS, PROFILES)  # what a learned router may know
GREEDY = "greedy"  # part of a router's parameters, beside flax's "params"


@struct.dataclass
class RouterInput:
    """The input of a network for one observation; N experts, K slots."""

    graph: GraphFeatures
    gain: jax.Array  # [N] float32 QoS, the greedy router's net gain; 0 where the expert is not available
    crowding: jax.Array  # [N] float32 QoS, the price of crowding: in the gain, or where none is, by counts
    # [] float32, of the QoS that others lose, in the net gain by a learned impact; None where the gain is.
    penalty_weight: jax.Array | None = None


def router_input(
    seen: Observation,
    greedy: GreedyParams,
    expert_mask: jax.Array | None = None,
    information: str = PROFILES,
    believes: bool = False,
    sees_caches: bool = False,
) -> RouterInput:
    """Return the networks' input, with predicted qualities shrunk as in ``greedy``.

    The projection is computed once for features and net gain.

    Args:
      seen: of one environment; ``jax.vmap`` it over many.
      greedy: of the net gain that scores start from, see :func:`greedy_of`.
      expert_mask: [N] bool, False for rows that only pad the fleet; all exist by default.
      information: one of ``INFORMATION``; with ``PREDICTIONS`` there is no net gain.
      believes: whether the features say what the router knows of its belief, too, with profiles alone.
      sees_caches: whether they say what is expected in each prefix cache, likewise.
    """
    if information == PREDICTIONS:
        measured = measured_features(as_believed(greedy, seen, expert_mask), expert_mask)
        return RouterInput(
            graph=measured,
            gain=jnp.zeros_like(seen.predicted_quality),
            crowding=jnp.where(measured.expert_mask, measured_price(greedy, seen, expert_mask), 0.0),
            penalty_weight=measured_penalty_weight(greedy, seen, expert_mask),
        )
    impact = impact_of_each(greedy, seen, expert_mask)
    graph = graph_features(as_believed(greedy, seen, expert_mask), impact, expert_mask)
    if believes:
        graph = with_belief_features(graph, seen)
    if sees_caches:
        graph = with_prefix_features(graph, seen)
    gain = net_gain(greedy, seen, impact, expert_mask)
    return RouterInput(
        graph=graph,
        gain=jnp.where(graph.available, gain, 0.0),
        crowding=jnp.where(graph.expert_mask, crowding_price(greedy, seen, expert_mask), 0.0),
    )


def action_mask(inputs: RouterInput, allow_drop: bool) -> jax.Array:
    """Return the valid actions, [A] bool: experts that can take the request, and dropping it if allowed.

    No mask is empty: where no expert can and dropping is not allowed, all that exist are valid, and the
    request will be rejected. With ``allow_drop`` A = N + 1, the last action dropping the request.
    """
    graph = inputs.graph
    some = jnp.any(graph.available, axis=-1, keepdims=True)
    if allow_drop:
        return jnp.concatenate([graph.available, jnp.ones_like(some)], axis=-1)
    return jnp.where(some, graph.available, graph.expert_mask)


def start_params(allow_drop: bool, information: str) -> GreedyParams:
    """Return the net gain's parameters that a learned router starts with."""
    return (measured_params if information == PREDICTIONS else load_aware_params)(allow_drop)


def greedy_of(params: Any | None, allow_drop: bool, information: str = PROFILES) -> GreedyParams:
    """Return the net gain's parameters in those of a learned router; for None, those that it starts with."""
    start = start_params(allow_drop, information)
    return start if params is None else dataclasses.replace(start, **params[GREEDY])


def searched_numbers(information: str) -> dict[str, Number]:
    """Return the numbers of the net gain that a learned router keeps by its weights, and a search moves."""
    return SEARCHED_MEASURED if information == PREDICTIONS else SEARCHED
