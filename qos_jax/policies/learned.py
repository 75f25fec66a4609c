"""A trained network as a router; the shapes of its parameters."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from qos_jax.policies.actor_critic import actor_function, init_router
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.router_input import RouterInput, greedy_of, router_input
from qos_jax.policies.types import PREDICTIONS, Policy, Router
from qos_jax.routing import graph, measured_graph
from qos_jax.routing.belief_features import BELIEF_ARRIVED, BELIEF_EXPERT
from qos_jax.routing.observation import Observation
from qos_jax.routing.prefix_features import PREFIX_PAIR


def learned_policy(
    name: str, config: NetworkConfig, params: Any, *, stochastic: bool = False, allow_drop: bool = True
) -> Policy:
    """Return the router of trained parameters.

    Args:
      name: its name in tables.
      config: the networks' configuration.
      params: as :func:`~qos_jax.policies.actor_critic.init_router` makes them.
      stochastic: draw from the policy instead of taking its most likely action.
      allow_drop: whether it may drop, if it was trained to; else it acts as if that action were not valid.
    """
    summary = f"Learned: {config.encoder} actor, {'sampled' if stochastic else 'most likely action'}."
    masks_drop = config.allow_drop and not allow_drop
    router = learned_router(config, stochastic, masks_drop)
    measures = config.information == PREDICTIONS
    return Policy(name, summary, router, knows=config.information, measures=measures, params=params)


@functools.cache
def learned_router(config: NetworkConfig, stochastic: bool = False, masks_drop: bool = False) -> Router:
    """Return the router of the networks of a configuration, which takes their parameters.

    It is the same object for equal arguments, so that it does not recompile.

    Args:
      config: the networks' configuration.
      stochastic: draw from the policy instead of taking its most likely action.
      masks_drop: never drop, whatever it was trained to.
    """
    actor = actor_function(config)

    def route(params: Any, key: jax.Array, seen: Observation) -> jax.Array:
        greedy = greedy_of(params, config.allow_drop, config.information)
        inputs = router_input(
            seen,
            greedy,
            information=config.information,
            believes=config.believes,
            sees_caches=config.sees_caches,
        )
        logits = actor(params, inputs).logits
        if masks_drop:  # the last action
            logits = logits[:-1]
        if stochastic:
            return jax.random.categorical(key, logits).astype(jnp.int32)
        return jnp.argmax(logits).astype(jnp.int32)

    return route


def parameter_shapes(config: NetworkConfig, num_experts: int, slots: int) -> Any:
    """Return shape and dtype of every parameter of a learned router, nested dicts, without computing."""
    return jax.eval_shape(lambda: fresh_parameters(config, num_experts, slots, jax.random.key(0)))


def fresh_parameters(config: NetworkConfig, num_experts: int, slots: int, key: jax.Array) -> Any:
    """Return the parameters of a learned router before training, nested dicts.

    The number of experts, and of slots of each, matters to the flat encoder alone.
    """
    rows = (num_experts, slots)
    columns = measured_graph if config.information == PREDICTIONS else graph
    arrived, expert, pair = _widths(config)
    features = graph.GraphFeatures(
        arrived=jnp.zeros((arrived,)),
        expert=jnp.zeros((num_experts, expert)),
        slot=jnp.zeros((*rows, len(columns.SLOT_FEATURES))),
        pair=jnp.zeros((num_experts, pair)),
        expert_mask=jnp.ones((num_experts,), bool),
        running_mask=jnp.zeros(rows, bool),
        waiting_mask=jnp.zeros(rows, bool),
        available=jnp.ones((num_experts,), bool),
    )
    none = jnp.zeros((num_experts,))
    weight = jnp.zeros(()) if config.information == PREDICTIONS else None
    return init_router(config, key, RouterInput(features, gain=none, crowding=none, penalty_weight=weight))


def flat_sizes(config: NetworkConfig, params: Any) -> tuple[int, int]:
    """Return the numbers of experts and of slots of each that a flat encoder's parameters are for."""
    encoder = params["params"]["trunk"]["flat"]
    columns = measured_graph if config.information == PREDICTIONS else graph
    arrived, expert, pair = _widths(config)
    experts = encoder["experts"]["bias"].shape[0] // config.hidden
    per_expert = (encoder["in"]["kernel"].shape[0] - arrived) // experts
    of_slots = per_expert - expert - pair - 1
    return experts, of_slots // (2 * len(columns.SLOT_FEATURES))


def _widths(config: NetworkConfig) -> tuple[int, int, int]:
    """Return the numbers of features of the arrived request, of each expert and of each pair."""
    columns = measured_graph if config.information == PREDICTIONS else graph
    arrived, expert = len(columns.ARRIVED_FEATURES), len(columns.EXPERT_FEATURES)
    pair = len(columns.PAIR_FEATURES) + config.sees_caches * len(PREFIX_PAIR)
    if not config.believes:
        return arrived, expert, pair
    return arrived + len(BELIEF_ARRIVED), expert + len(BELIEF_EXPERT), pair
