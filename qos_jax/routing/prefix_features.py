"""What a router expects of each prefix cache, as a further column of the graph's features."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from qos_jax.routing.graph import GraphFeatures, masked
from qos_jax.routing.observation import Observation

# Behind ``graph.PAIR_FEATURES``. Where there are no caches it is 0, as if nothing were in them.
PREFIX_PAIR = ("cached",)  # prompt tokens expected in the expert's cache / prompt tokens


def with_prefix_features(graph: GraphFeatures, seen: Observation) -> GraphFeatures:
    """Return the graph features with the column ``PREFIX_PAIR`` behind the others of each pair.

    Args:
      graph: features of the observation.
      seen: the observation, of one environment; ``jax.vmap`` it over many.
    """
    share = jnp.zeros(graph.expert_mask.shape, jnp.float32)
    if seen.prefix is not None:
        prompt = jnp.maximum(seen.prompt_tokens, 1).astype(jnp.float32)
        share = seen.prefix.cached_tokens.astype(jnp.float32) / prompt
    column = masked(share[:, None], graph.expert_mask)
    return dataclasses.replace(graph, pair=jnp.concatenate([graph.pair, column], axis=-1))
