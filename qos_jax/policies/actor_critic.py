"""The learned router's networks: from what a router sees to a logit per expert, a value, or twin Q."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from qos_jax.policies.encoders import NetworkConfig, Trunk, pooled
from qos_jax.policies.greedy_params import SEARCHED, load_aware_params
from qos_jax.policies.han_star import StarEmbedding
from qos_jax.policies.router_input import GREEDY, RouterInput, action_mask
from qos_jax.routing.graph import (
    ARRIVED_FEATURES,
    EXPERT_FEATURES,
    PAIR_FEATURES,
    GraphFeatures,
)

# What the quality calibration reads: the request and the servers, nothing of the load.
_STATIC_FEATURES = ("pace_alone", "pace_full", "length_log_std", "batch_size")
MASKED_LOGIT = -1e9  # finite, so that no gradient is NaN; its softmax is 0 in float32


@struct.dataclass
class RouterOutput:
    """What an actor-critic says of one observation."""

    logits: jax.Array  # [A] float32, A = N, or N + 1 with drop; MASKED_LOGIT where an action is masked
    value: jax.Array  # [] float32, return to come
    quality_correction: jax.Array  # [N] float32, to be added to the predicted qualities


def drop_score(gain_like: jax.Array) -> jax.Array:
    """Score of dropping before anything is learned: 0, what a request that is not served is worth."""
    return jnp.zeros((1,), gain_like.dtype)


class _Head(nn.Module):
    """A score per action from the embeddings, by one MLP for all experts."""

    hidden: int
    allow_drop: bool
    zero_init: bool

    @nn.compact
    def __call__(self, embedding: StarEmbedding) -> jax.Array:
        """Return [A] float32."""
        count = embedding.expert.shape[0]
        arrived = jnp.broadcast_to(embedding.arrived, (count, embedding.arrived.shape[0]))
        hidden = nn.relu(nn.Dense(self.hidden, name="mix")(jnp.concatenate([embedding.expert, arrived], -1)))
        init = nn.initializers.zeros if self.zero_init else nn.initializers.orthogonal(0.01)
        scores = nn.Dense(1, kernel_init=init, name="score")(hidden)[:, 0]
        if not self.allow_drop:
            return scores
        drop = nn.relu(nn.Dense(self.hidden, name="drop_mix")(embedding.arrived))
        return jnp.concatenate([scores, nn.Dense(1, kernel_init=init, name="drop_score")(drop)])


class ActorCritic(nn.Module):
    """Scores, in QoS, of routing the request to each expert, as logits; and a value.

    With the HAN one set of parameters serves any number of experts and slots. With ``residual`` the head
    corrects load_aware_greedy's net gain, and before any learning the most likely action is its choice.
    One observation a call; ``jax.vmap`` for more. Source: arXiv 2508.00234, actor and critic on the HAN.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, inputs: RouterInput) -> RouterOutput:
        """Return logits and value of one observation."""
        config = self.config
        embedding = Trunk(config, name="trunk")(inputs)
        scores = _Head(config.hidden, config.allow_drop, config.residual, name="actor")(embedding)
        # Heads answer in units of the temperature: a step of the optimiser moves logits, not QoS.
        logits = scores
        correction = jnp.zeros_like(inputs.gain)
        if config.calibrate_quality:
            correction = QualityCalibration(config.hidden, name="quality")(inputs.graph)
        if config.residual:
            chance = inputs.graph.pair[:, PAIR_FEATURES.index("own_chance")]
            base = inputs.gain + jax.lax.stop_gradient(correction) * chance
            if config.learned_prices:
                base = base + LearnedPrices(config.hidden, name="prices")(inputs)
            if config.allow_drop:
                base = jnp.concatenate([base, drop_score(base)])
            logits = config.head_scale * logits + base / config.temperature
        mask = action_mask(inputs, config.allow_drop)
        value = _Value(config.hidden, name="critic")(embedding, inputs.graph.expert_mask)
        return RouterOutput(
            logits=jnp.where(mask, logits, MASKED_LOGIT), value=value, quality_correction=correction
        )


def init_router(config: NetworkConfig, key: jax.Array, example: RouterInput) -> dict[str, Any]:
    """Parameters of a learned router before any training.

    Args:
      config: the network's.
      key: [] key.
      example: one input, for its shapes.

    Returns:
      ``params``, the weights of :class:`ActorCritic`; and ``greedy``, the numbers of the net gain that its
      inputs are made with, at first those of ``load_aware_greedy``, [] float32 each. Both are what a
      checkpoint holds. A network does not read ``greedy``, so it has no gradient: search alone changes it.
    """
    return {
        **ActorCritic(config).init(key, example),
        GREEDY: {name: getattr(load_aware_params(), name) for name in SEARCHED},
    }


def is_trained(params: Any) -> Any:
    """True for each part of a router's parameters that gradients train: all but ``greedy``."""
    return {name: name != GREEDY for name in params}


def actor_function(config: NetworkConfig) -> Callable[[Any, RouterInput], RouterOutput]:
    """Return (parameters, one input) -> output of the :class:`ActorCritic` of this configuration."""
    module = ActorCritic(config)

    def actor(params: Any, inputs: RouterInput) -> RouterOutput:
        return cast(RouterOutput, module.apply(params, inputs))

    return actor


class QualityCalibration(nn.Module):
    """What to add to each predicted quality, given all of them: predictors overstate how models differ.

    It reads the request and the servers, not their load, so that it can be fitted to a table of requests
    without simulating. Zero before any training.
    """

    hidden: int

    @nn.compact
    def __call__(self, graph: GraphFeatures) -> jax.Array:
        """Return [N] float32."""
        count = graph.pair.shape[0]
        prompt = jnp.broadcast_to(graph.arrived[ARRIVED_FEATURES.index("prompt")], (count, 1))
        static = jnp.stack([graph.expert[:, EXPERT_FEATURES.index(name)] for name in _STATIC_FEATURES], -1)
        told = jnp.stack([graph.pair[:, PAIR_FEATURES.index(name)] for name in ("quality", "output")], -1)
        hidden = nn.relu(nn.Dense(self.hidden, name="each")(jnp.concatenate([prompt, static, told], -1)))
        others = jnp.concatenate(pooled(hidden, graph.expert_mask))
        others = jnp.broadcast_to(others, (count, 2 * self.hidden))
        hidden = nn.relu(nn.Dense(self.hidden, name="all")(jnp.concatenate([hidden, others], -1)))
        # In tenths: corrections are a few hundredths.
        return 0.1 * nn.Dense(1, kernel_init=nn.initializers.zeros, name="correction")(hidden)[:, 0]


class LearnedPrices(nn.Module):
    """What to add to the net gain for weighing its terms by the load offered, the request and the server.

    The net gain is own QoS less what others lose less the price of crowding, each at a weight of its own that
    a heuristic must fix for all loads; what a place is worth depends on what comes for it. A few weights that
    do not depend on the queues are learned from far fewer trials than a free function of everything. Zero
    before any training.
    """

    hidden: int

    @nn.compact
    def __call__(self, inputs: RouterInput) -> jax.Array:
        """Return [N] float32, QoS."""
        graph = inputs.graph
        arrived = jnp.broadcast_to(graph.arrived, (graph.expert.shape[0], graph.arrived.shape[0]))
        static = jnp.stack([graph.expert[:, EXPERT_FEATURES.index(name)] for name in _STATIC_FEATURES], -1)
        length = graph.pair[:, PAIR_FEATURES.index("length"), None]
        own = graph.pair[:, PAIR_FEATURES.index("own_qos")]
        lost = jnp.expm1(graph.pair[:, PAIR_FEATURES.index("penalty")])
        terms = jnp.stack([own, -lost, -inputs.crowding], -1)
        terms = jnp.where(graph.available[:, None], terms, 0.0)
        hidden = nn.relu(nn.Dense(self.hidden, name="mix")(jnp.concatenate([arrived, static, length], -1)))
        change = nn.Dense(terms.shape[-1], kernel_init=nn.initializers.zeros, name="change")(hidden)
        return jnp.sum(change * terms, axis=-1)


class _Value(nn.Module):
    """The value of a state from the request's embedding, and the experts' mean and maximum."""

    hidden: int

    @nn.compact
    def __call__(self, embedding: StarEmbedding, expert_mask: jax.Array) -> jax.Array:
        mean, peak = pooled(embedding.expert, expert_mask)
        hidden = nn.relu(nn.Dense(self.hidden, name="mix")(jnp.concatenate([embedding.arrived, mean, peak])))
        return nn.Dense(1, name="value")(hidden)[0]


class TwinCritic(nn.Module):
    """Two independent estimates of the return of each action, for SAC: [2, A] float32."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, inputs: RouterInput) -> jax.Array:
        """Return both estimates for one observation."""
        config = self.config
        both = []
        for k in range(2):
            embedding = Trunk(config, name=f"trunk_{k}")(inputs)
            head = _Head(config.hidden, config.allow_drop, False, name=f"head_{k}")
            value = _Value(config.hidden, name=f"value_{k}")(embedding, inputs.graph.expert_mask)
            both.append(head(embedding) + value)
        return jnp.stack(both)
