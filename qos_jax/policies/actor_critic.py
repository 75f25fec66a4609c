"""The networks of a learned router: from its input to logits and a value, or to twin Q."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from qos_jax.policies.corrections import LearnedPrices, QualityCalibration
from qos_jax.policies.dense import Dense
from qos_jax.policies.encoders import NetworkConfig, RouterEncoder, pooled
from qos_jax.policies.han_star import StarEmbedding
from qos_jax.policies.router_input import (
    GREEDY,
    RouterInput,
    action_mask,
    searched_numbers,
    start_params,
)
from qos_jax.policies.types import PROFILES
from qos_jax.routing.graph import PAIR_FEATURES

MASKED_LOGIT = -1e9  # finite, so that no gradient is NaN; its softmax is 0 in float32


@struct.dataclass
class LearnedImpact:
    """The impact of the newcomer at each expert, as the network estimates it."""

    chance_logit: jax.Array  # [N] float32, of the chance to keep the limits
    lost_log: jax.Array  # [N] float32 >= 0, log(1 + QoS that others lose)

    def own_qos(self, quality: jax.Array) -> jax.Array:
        """Return quality ([..., N]) times the chance, [..., N] float32."""
        return quality * jax.nn.sigmoid(self.chance_logit)

    def lost(self) -> jax.Array:
        """Return the QoS that others lose, [..., N] float32."""
        return jnp.expm1(self.lost_log)


@struct.dataclass
class RouterOutput:
    """The output of an actor-critic, with its input's leading axes; A = N actions, or N + 1 with dropping."""

    logits: jax.Array  # [..., A] float32; MASKED_LOGIT where an action is masked
    value: jax.Array  # [...] float32, expected return
    quality_correction: jax.Array  # [..., N] float32, to be added to the predicted qualities
    impact: LearnedImpact | None = None  # with ``learned_impact``
    start: jax.Array | None = None  # [..., A] float32, the part of the logits that comes of it


def init_router(config: NetworkConfig, key: jax.Array, example: RouterInput) -> dict[str, Any]:
    """Return the parameters of a learned router before training.

    Returns:
      ``params``, the weights of :class:`ActorCritic`; and ``greedy``, the numbers of the net gain that its
      inputs are made with, at first those of ``load_aware_greedy`` or, where no profile is known, of
      ``measured_greedy``, [] float32 each. A checkpoint holds both. A network does not read ``greedy``, so
      it has no gradient: the search alone changes it.
    """
    start = start_params(config.allow_drop, config.information)
    greedy = {name: getattr(start, name) for name in searched_numbers(config.information)}
    return {**ActorCritic(config).init(key, example), GREEDY: greedy}


def is_trained(params: Any) -> Any:
    """Return, for each part of a router's parameters, whether gradients train it: all but ``greedy``."""
    return {name: name != GREEDY for name in params}


def actor_function(config: NetworkConfig) -> Callable[[Any, RouterInput], RouterOutput]:
    """Return (parameters, inputs) -> outputs of the :class:`ActorCritic` of this configuration."""
    return cast(Callable[[Any, RouterInput], RouterOutput], ActorCritic(config).apply)


def actor_outputs(
    config: NetworkConfig, params: Any, inputs: RouterInput, correction: jax.Array | None = None
) -> RouterOutput:
    """Return the outputs of the :class:`ActorCritic` for inputs with any leading axes.

    Args:
      config: of the networks.
      params: of the router.
      inputs: leaves [..., ...].
      correction: [..., N] float32, the quality correction where it is known, which saves computing it. It
        has no gradient from logits or value.
    """
    output: RouterOutput = ActorCritic(config).apply(params, inputs, correction)  # type: ignore[assignment]
    return output


class ActorCritic(nn.Module):
    """Logits of routing the request to each expert, in units of QoS over the temperature; and a value.

    With the HAN one set of parameters serves any number of experts and slots. With ``residual`` the head
    corrects load_aware_greedy's net gain, and before training the most likely action is its choice.
    One observation a call, or a batch of any leading axes. Source: arXiv 2508.00234, actor and critic on the
    HAN.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, inputs: RouterInput, correction: jax.Array | None = None) -> RouterOutput:
        """Return logits and value of each observation; ``correction`` as in :func:`actor_outputs`."""
        config = self.config
        embedding = RouterEncoder(config, name="trunk")(inputs)
        # The head's scores are in units of the temperature: a step of the optimiser moves logits, not QoS.
        impact, start, corrects = None, None, config.residual or config.learned_impact
        if config.learned_impact:
            impact = ImpactHead(config.hidden, name="impact")(embedding)
            estimate = jax.lax.stop_gradient(
                jnp.stack([jax.nn.sigmoid(impact.chance_logit), impact.lost_log], -1)
            )
            embedding = StarEmbedding(embedding.arrived, jnp.concatenate([embedding.expert, estimate], -1))
        logits = ActionHead(config.hidden, config.allow_drop, corrects, name="actor")(embedding)
        if correction is None:
            correction = jnp.zeros_like(inputs.gain)
            if config.calibrate_quality and config.information == PROFILES:
                correction = QualityCalibration(config.hidden, name="quality")(inputs.graph)
        if config.residual:
            chance = inputs.graph.pair[..., PAIR_FEATURES.index("own_chance")]
            base = inputs.gain + jax.lax.stop_gradient(correction) * chance
            if config.learned_prices:
                base = base + LearnedPrices(config.hidden, name="prices")(inputs)
            logits = config.head_scale * logits + _with_drop(base, config.allow_drop) / config.temperature
        if impact is not None:
            quality = inputs.graph.pair[..., PAIR_FEATURES.index("quality")]
            own, lost = jax.lax.stop_gradient(impact.own_qos(quality)), jax.lax.stop_gradient(impact.lost())
            assert inputs.penalty_weight is not None
            gain = own - inputs.penalty_weight[..., None] * lost - inputs.crowding
            start = _with_drop(gain, config.allow_drop) / config.temperature
            logits = config.head_scale * logits + start
        mask = action_mask(inputs, config.allow_drop)
        value = ValueHead(config.hidden, name="critic")(embedding, inputs.graph.expert_mask)
        return RouterOutput(jnp.where(mask, logits, MASKED_LOGIT), value, correction, impact, start)


def _with_drop(scores: jax.Array, allow_drop: bool) -> jax.Array:
    """Return scores [..., N] of the experts as those of actions, [..., A]: a dropped request is worth 0."""
    return jnp.concatenate([scores, jnp.zeros_like(scores[..., :1])], -1) if allow_drop else scores


class TwinCritic(nn.Module):
    """Two independent estimates of the return of each action, for SAC: [..., 2, A] float32."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, inputs: RouterInput) -> jax.Array:
        """Return both estimates for each observation."""
        config = self.config
        both = []
        for k in range(2):
            embedding = RouterEncoder(config, name=f"trunk_{k}")(inputs)
            head = ActionHead(config.hidden, config.allow_drop, False, name=f"head_{k}")
            value = ValueHead(config.hidden, name=f"value_{k}")(embedding, inputs.graph.expert_mask)
            both.append(head(embedding) + value[..., None])
        return jnp.stack(both, -2)


class ImpactHead(nn.Module):
    """The impact of the newcomer at each expert from the embeddings, by one MLP shared by all experts."""

    hidden: int  # width of its layer

    @nn.compact
    def __call__(self, embedding: StarEmbedding) -> LearnedImpact:
        """Return the estimate of each expert."""
        mix = Dense(self.hidden, name="mix")
        hidden = nn.relu(mix(embedding.expert, embedding.arrived[..., None, :]))
        estimate = Dense(2, kernel_init=nn.initializers.zeros, name="estimate")(hidden)
        return LearnedImpact(estimate[..., 0], nn.softplus(estimate[..., 1] - 2.0))


class ActionHead(nn.Module):
    """A score per action from the embeddings, by one MLP shared by all experts and one for dropping."""

    hidden: int  # width of its layer
    allow_drop: bool
    zero_init: bool  # scores are 0 before training

    @nn.compact
    def __call__(self, embedding: StarEmbedding) -> jax.Array:
        """Return the scores, [..., A] float32."""
        mix = Dense(self.hidden, name="mix")
        hidden = nn.relu(mix(embedding.expert, embedding.arrived[..., None, :]))
        init = nn.initializers.zeros if self.zero_init else nn.initializers.orthogonal(0.01)
        scores = Dense(1, kernel_init=init, name="score")(hidden)[..., 0]
        if not self.allow_drop:
            return scores
        drop = nn.relu(Dense(self.hidden, name="drop_mix")(embedding.arrived))
        return jnp.concatenate([scores, Dense(1, kernel_init=init, name="drop_score")(drop)], -1)


class ValueHead(nn.Module):
    """The value of a state from the request's embedding, and the experts' mean and maximum."""

    hidden: int  # width of its layer

    @nn.compact
    def __call__(self, embedding: StarEmbedding, expert_mask: jax.Array) -> jax.Array:
        """Return the value, [...] float32; ``expert_mask`` is [..., N] bool."""
        mean, peak = pooled(embedding.expert, expert_mask)
        hidden = nn.relu(Dense(self.hidden, name="mix")(embedding.arrived, mean, peak))
        return Dense(1, name="value")(hidden)[..., 0]
