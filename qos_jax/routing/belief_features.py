"""What a router knows of its own belief, as further columns of the graph's features."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from qos_jax.routing.belief import MAX_PACE
from qos_jax.routing.graph import GraphFeatures, masked
from qos_jax.routing.observation import Observation

# Behind ``graph.ARRIVED_FEATURES``; l1p(x) = log(1 + x). Where routers see everything, all are as if scrapes
# were live, servers as their profiles say, and no other router there.
BELIEF_ARRIVED = (
    "scrape_age",  # l1p(seconds since the last scrape) / 4
    "foreign_load",  # l1p(requests of other routers for each own one) / 4
)
# Behind ``graph.EXPERT_FEATURES``.
BELIEF_EXPERT = (
    "pace",  # log(estimated pace) / log(MAX_PACE)
    "up",  # 1 if not known to be down, else 0
)


def with_belief_features(graph: GraphFeatures, seen: Observation) -> GraphFeatures:
    """Return the graph features with the columns ``BELIEF_ARRIVED`` and ``BELIEF_EXPERT`` behind the others.

    Args:
      graph: features of the observation.
      seen: the observation, of one environment; ``jax.vmap`` it over many.
    """
    notes = seen.belief
    ones = jnp.ones(graph.expert_mask.shape, jnp.float32)
    age_s, foreign = jnp.float32(0.0), jnp.float32(0.0)
    pace, up = jnp.zeros_like(ones), ones
    if notes is not None:
        age_s, foreign = notes.scrape_age_s, notes.foreign_load
        pace = jnp.log(notes.pace) / jnp.log(jnp.float32(MAX_PACE))
        up = notes.up.astype(jnp.float32)
    arrived = jnp.stack([jnp.log1p(age_s), jnp.log1p(foreign)]) / 4.0
    expert = masked(jnp.stack([pace, up], axis=-1), graph.expert_mask)
    return dataclasses.replace(
        graph,
        arrived=jnp.concatenate([graph.arrived, arrived]),
        expert=jnp.concatenate([graph.expert, expert], axis=-1),
    )
