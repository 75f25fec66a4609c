"""Learned corrections of the net gain: of predicted qualities, and of the weights of its terms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from qos_jax.policies.dense import Dense
from qos_jax.policies.encoders import pooled
from qos_jax.policies.router_input import RouterInput
from qos_jax.routing.graph import ARRIVED_FEATURES, EXPERT_FEATURES, PAIR_FEATURES, GraphFeatures

# Features of the servers alone, which do not depend on the load.
_STATIC_FEATURES = ("pace_alone", "pace_full", "length_log_std", "batch_size")


class QualityCalibration(nn.Module):
    """An additive correction of each predicted quality, given all of them; 0 before training.

    It reads the request and the servers, not their load, so that it can be fitted to a table of requests
    without simulating.
    """

    hidden: int  # width of its layers

    @nn.compact
    def __call__(self, graph: GraphFeatures) -> jax.Array:
        """Return the corrections, [..., N] float32."""
        prompt = graph.arrived[..., None, ARRIVED_FEATURES.index("prompt"), None]
        prompt = jnp.broadcast_to(prompt, (*graph.expert_mask.shape, 1))
        predicted = jnp.stack(
            [graph.pair[..., PAIR_FEATURES.index(name)] for name in ("quality", "output")], -1
        )
        row = jnp.concatenate([prompt, _static(graph), predicted], -1)
        hidden = nn.relu(Dense(self.hidden, name="each")(row))
        others = jnp.concatenate(pooled(hidden, graph.expert_mask), -1)
        hidden = nn.relu(Dense(self.hidden, name="all")(hidden, others[..., None, :]))
        # In tenths: corrections are a few hundredths.
        return 0.1 * Dense(1, kernel_init=nn.initializers.zeros, name="correction")(hidden)[..., 0]


class LearnedPrices(nn.Module):
    """Changes of the weights of the net gain's terms, given load, request and server; 0 before training.

    The terms are own QoS, QoS lost by others and price of crowding. A heuristic fixes their weights for all
    loads, but what a slot is worth depends on later arrivals. A few weights that do not depend on the queues
    are learned from far fewer trials than a free function of everything.
    """

    hidden: int  # width of its layer

    @nn.compact
    def __call__(self, inputs: RouterInput) -> jax.Array:
        """Return what to add to the net gain, [..., N] float32 QoS."""
        graph = inputs.graph
        shape = (*graph.expert_mask.shape, graph.arrived.shape[-1])
        arrived = jnp.broadcast_to(graph.arrived[..., None, :], shape)
        length = graph.pair[..., PAIR_FEATURES.index("length"), None]
        own = graph.pair[..., PAIR_FEATURES.index("own_qos")]
        lost = jnp.expm1(graph.pair[..., PAIR_FEATURES.index("penalty")])
        terms = jnp.stack([own, -lost, -inputs.crowding], -1)
        row = jnp.concatenate([arrived, _static(graph), length], -1)
        hidden = nn.relu(Dense(self.hidden, name="mix")(row))
        change = Dense(3, kernel_init=nn.initializers.zeros, name="change")(hidden)
        return jnp.sum(change * jnp.where(graph.available[..., None], terms, 0.0), axis=-1)


def _static(graph: GraphFeatures) -> jax.Array:
    """Return the features of the servers alone, [..., N, 4] float32."""
    return jnp.stack([graph.expert[..., EXPERT_FEATURES.index(name)] for name in _STATIC_FEATURES], -1)
