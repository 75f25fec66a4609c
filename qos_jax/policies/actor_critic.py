"""The learned router's networks: from what a router sees to a logit per expert, a value, or twin Q."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from qos_jax.policies.han import HANConfig
from qos_jax.policies.han_star import StarEmbedding, StarEncoder
from qos_jax.policies.net_gain import (
    LEARNED_NUMBERS,
    GreedyParams,
    as_believed,
    crowding_price,
    impact_of_each,
    load_aware_params,
    net_gain,
)
from qos_jax.routing.graph import (
    ARRIVED_FEATURES,
    EXPERT_FEATURES,
    PAIR_FEATURES,
    GraphFeatures,
    graph_features,
)
from qos_jax.routing.observation import Observation

ENCODERS = ("han", "sets", "flat")
# The columns of a pair that come from the action impact estimator.
IMPACT_FEATURES = ("own_chance", "own_qos", "pushed", "penalty", "net", "latency")
# What the quality calibration reads: the request and the servers, nothing of the load.
_STATIC_FEATURES = ("pace_alone", "pace_full", "length_log_std", "batch_size")
GREEDY = "greedy"  # part of a router's parameters, beside flax's "params"
MASKED_LOGIT = -1e9  # finite, so that no gradient is NaN; its softmax is 0 in float32


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Choices of a learned router's networks; hashable.

    Raises:
      ValueError: an unknown encoder, or a size or temperature out of range.
    """

    # "han": attention over the graph, beside what "sets" sees; "sets": experts as a set, without attention
    # and without slots; "flat": an MLP on all features in one row (fixed N and K), the baseline RL network
    encoder: str = "han"
    han: HANConfig = dataclasses.field(default_factory=HANConfig)
    hidden: int = 64  # width of the heads; the flat encoder's layers are four times as wide
    residual: bool = True  # scores start as the greedy router's net gain, the head's last layer at zero
    impact_features: bool = True  # False hides what the impact estimator says; then no residual either
    calibrate_quality: bool = True  # correct the predicted qualities by what training showed of them
    learned_prices: bool = (
        True  # with the residual: weigh the terms of the net gain by load, request and server
    )
    temperature: float = 0.03  # QoS, logits = scores / temperature
    head_scale: float = 0.3  # of the head's part beside a residual: below 1, noise moves scores less
    allow_drop: bool = False  # an action more: drop the request

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder {self.encoder!r} is unknown: use one of {', '.join(ENCODERS)}")
        if self.hidden < 1:
            raise ValueError(f"hidden = {self.hidden}: must be at least 1")
        for name in ("temperature", "head_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0")
        if self.residual and not self.impact_features:
            raise ValueError("residual = True needs impact_features: the net gain is made of them")


@struct.dataclass
class RouterInput:
    """What a network reads of one observation; N experts, K slots."""

    graph: GraphFeatures
    gain: jax.Array  # [N] float32, the greedy router's net gain, QoS; 0 where the expert is not available
    crowding: jax.Array  # [N] float32, the price of crowding in it, QoS


@struct.dataclass
class RouterOutput:
    """What an actor-critic says of one observation."""

    logits: jax.Array  # [A] float32, A = N, or N + 1 with drop; MASKED_LOGIT where an action is masked
    value: jax.Array  # [] float32, return to come
    quality_correction: jax.Array  # [N] float32, to be added to the predicted qualities


def router_input(
    seen: Observation, greedy: GreedyParams, expert_mask: jax.Array | None = None
) -> RouterInput:
    """Return what the networks read of ``seen``, its predicted qualities as ``greedy`` believes them.

    The projection is computed once for all of it.

    Args:
      seen: the observation, of one environment; ``jax.vmap`` it over many.
      greedy: of the net gain that the residual starts from, see :func:`greedy_of`.
      expert_mask: [N] bool, False for rows that only pad the fleet; all exist by default.
    """
    impact = impact_of_each(greedy, seen, expert_mask)
    graph = graph_features(as_believed(greedy, seen, expert_mask), impact, expert_mask)
    gain = net_gain(greedy, seen, impact, expert_mask)
    return RouterInput(
        graph=graph,
        gain=jnp.where(graph.available, gain, 0.0),
        crowding=jnp.where(graph.expert_mask, crowding_price(greedy, seen, expert_mask), 0.0),
    )


def action_mask(inputs: RouterInput, allow_drop: bool) -> jax.Array:
    """Actions that make sense, [A] bool: experts that can take the request, and dropping it if allowed.

    No mask is ever empty: where no expert can and dropping is not allowed, all that exist are valid, and
    the request will be rejected.
    """
    graph = inputs.graph
    some = jnp.any(graph.available, axis=-1, keepdims=True)
    if allow_drop:
        return jnp.concatenate([graph.available, jnp.ones_like(some)], axis=-1)
    return jnp.where(some, graph.available, graph.expert_mask)


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


class _FlatEncoder(nn.Module):
    """The baseline RL network: an MLP that sees all features in one row; experts by their place in it."""

    hidden: int

    @nn.compact
    def __call__(self, inputs: RouterInput) -> StarEmbedding:
        graph = inputs.graph
        count = graph.expert.shape[0]
        parts = (graph.arrived, graph.expert, graph.pair, graph.running, graph.waiting, inputs.gain)
        row = jnp.concatenate([part.reshape(-1) for part in parts])
        row = nn.relu(nn.Dense(4 * self.hidden, name="in")(row))
        row = nn.relu(nn.Dense(4 * self.hidden, name="between")(row))
        experts = nn.Dense(count * self.hidden, name="experts")(row).reshape(count, self.hidden)
        return StarEmbedding(arrived=nn.Dense(self.hidden, name="arrived")(row), expert=nn.relu(experts))


class _SetEncoder(nn.Module):
    """Experts as a set: each by itself, and their mean and maximum (Zaheer et al., "Deep sets", 2017)."""

    hidden: int

    @nn.compact
    def __call__(self, inputs: RouterInput) -> StarEmbedding:
        graph = inputs.graph
        arrived = jnp.broadcast_to(graph.arrived, (graph.expert.shape[0], graph.arrived.shape[0]))
        row = jnp.concatenate([graph.pair, graph.expert, inputs.gain[:, None], arrived], -1)
        hidden = nn.relu(nn.Dense(self.hidden, name="each")(row))
        return StarEmbedding(
            arrived=jnp.concatenate(pooled(hidden, graph.expert_mask)),
            expert=jnp.concatenate([row, hidden], -1),
        )


class _Trunk(nn.Module):
    """The encoder that the configuration names.

    With "han" the embeddings of the attention stand beside those of the plain set: features reach the
    heads undigested too, without which training took several times as many steps.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, inputs: RouterInput) -> StarEmbedding:
        config = self.config
        if not config.impact_features:
            shown = jnp.array([name not in IMPACT_FEATURES for name in PAIR_FEATURES])
            graph = dataclasses.replace(inputs.graph, pair=jnp.where(shown, inputs.graph.pair, 0.0))
            none = jnp.zeros_like(inputs.gain)
            inputs = RouterInput(graph=graph, gain=none, crowding=none)
        if config.encoder == "flat":
            return _FlatEncoder(config.hidden, name="flat")(inputs)
        plain = _SetEncoder(config.hidden, name="set")(inputs)
        if config.encoder == "sets":
            return plain
        star = StarEncoder(config.han, name="star")(inputs.graph)
        return StarEmbedding(
            arrived=jnp.concatenate([star.arrived, plain.arrived]),
            expert=jnp.concatenate([star.expert, plain.expert], -1),
        )


def pooled(rows: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and maximum of the rows [N, F] that exist, [F] each; 0 where none does."""
    shown = jnp.where(mask[:, None], rows, 0.0)
    count = jnp.maximum(jnp.sum(mask, dtype=rows.dtype), 1.0)
    peak = jnp.max(jnp.where(mask[:, None], rows, -jnp.inf), axis=0)
    return jnp.sum(shown, axis=0) / count, jnp.where(jnp.any(mask), peak, 0.0)


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
        embedding = _Trunk(config, name="trunk")(inputs)
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
        GREEDY: {name: getattr(load_aware_params(), name) for name in LEARNED_NUMBERS},
    }


def greedy_of(params: Any | None, allow_drop: bool) -> GreedyParams:
    """Parameters of the net gain in those of a learned router; of ``load_aware_greedy`` if there are none."""
    start = load_aware_params(allow_drop=allow_drop)
    return start if params is None else dataclasses.replace(start, **params[GREEDY])


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
            embedding = _Trunk(config, name=f"trunk_{k}")(inputs)
            head = _Head(config.hidden, config.allow_drop, False, name=f"head_{k}")
            value = _Value(config.hidden, name=f"value_{k}")(embedding, inputs.graph.expert_mask)
            both.append(head(embedding) + value)
        return jnp.stack(both)
