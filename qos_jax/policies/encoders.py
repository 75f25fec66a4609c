"""The encoders of a learned router: HAN, set or flat MLP, and the configuration that chooses among them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from qos_jax.checks import COUNT, POSITIVE, check_one_of, check_range
from qos_jax.errors import input_error
from qos_jax.options import option
from qos_jax.policies.dense import Dense
from qos_jax.policies.han import HANConfig
from qos_jax.policies.han_star import StarEmbedding, StarEncoder
from qos_jax.policies.router_input import INFORMATION, RouterInput
from qos_jax.policies.types import PREDICTIONS, PROFILES
from qos_jax.routing.graph import PAIR_FEATURES

ENCODERS = ("han", "sets", "flat")
# The features of a pair that come from the action impact estimator.
IMPACT_FEATURES = ("own_chance", "own_qos", "pushed", "penalty", "net", "latency")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Configuration of a learned router's networks; hashable.

    Raises:
      InputError: an unknown encoder, or a size or temperature out of range, naming the field.
    """

    encoder: str = option(
        "han",
        help="han: attention over the graph, beside what sets sees; sets: experts as a set, without "
        "attention and slots; flat: an MLP on all features in one row (fixed N and K), the baseline network",
    )
    information: str = option(
        PROFILES,
        help="what it knows. profiles: the closed form on profiled servers; predictions: predicted quality "
        "and length, its own requests and what it measures of their answers, so that it must learn the rest",
    )
    han: HANConfig = dataclasses.field(default_factory=HANConfig)
    # Whether it knows of its belief the age of the scrape, paces, others' load and who is up, besides.
    believes: bool = False
    # Whether it knows the share of the prompt that is expected in each expert's prefix cache, besides.
    sees_caches: bool = False
    hidden: int = 64  # width of the heads; the flat encoder's layers are four times as wide
    residual: bool = True  # scores start as the greedy router's net gain, the head's last layer at zero
    impact_features: bool = True  # False hides the impact estimator's features; then no residual either
    # Where no profile is known: learn an action impact estimator, from what the simulator says of each
    # expert; scores start as the net gain by it. PPO alone trains it.
    learned_impact: bool = False
    calibrate_quality: bool = True  # learn an additive correction of the predicted qualities
    learned_prices: bool = True  # with the residual: learn the weights of the net gain's terms
    temperature: float = 0.03  # QoS, logits = scores / temperature
    head_scale: float = 0.3  # factor on the head's scores beside a residual: below 1, noise moves them less
    allow_drop: bool = True  # one action more: drop the request

    def __post_init__(self) -> None:
        check_one_of("encoder", self.encoder, ENCODERS)
        check_one_of("information", self.information, INFORMATION)
        check_range(self, ("hidden",), COUNT)
        check_range(self, ("temperature", "head_scale"), POSITIVE)
        if self.residual and self.information == PREDICTIONS:
            fault = "is True, but the net gain is made of profiles, which are not known"
            raise input_error(fault, field="residual", remedy="set residual=False as well")
        if self.believes and self.information == PREDICTIONS:
            fault = "is True, but a belief is advanced by profiles, which are not known"
            raise input_error(fault, field="believes", remedy="set believes=False as well")
        if self.sees_caches and self.information == PREDICTIONS:
            fault = "is True, but what a cache spares is reckoned by profiles, which are not known"
            raise input_error(fault, field="sees_caches", remedy="set sees_caches=False as well")
        if self.learned_impact and self.information == PROFILES:
            fault = "is True, but with profiles the impact is projected"
            raise input_error(fault, field="learned_impact", remedy="set information=predictions as well")
        if self.residual and not self.impact_features:
            fault = "is True, but the net gain is made of the impact features, which are off"
            raise input_error(fault, field="residual", remedy="set residual=False as well")


class FlatEncoder(nn.Module):
    """The baseline RL network: an MLP on all features in one row, which tells experts by their index."""

    hidden: int  # a quarter of the width of its layers

    @nn.compact
    def __call__(self, inputs: RouterInput) -> StarEmbedding:
        """Return the embeddings of the arrived request and of each expert."""
        graph = inputs.graph
        *lead, count = graph.expert_mask.shape
        parts = (graph.arrived, graph.expert, graph.pair, graph.running, graph.waiting, inputs.gain)
        row = jnp.concatenate([part.reshape(*lead, -1) for part in parts], -1)
        row = nn.relu(Dense(4 * self.hidden, name="in")(row))
        row = nn.relu(Dense(4 * self.hidden, name="between")(row))
        experts = Dense(count * self.hidden, name="experts")(row).reshape(*lead, count, self.hidden)
        return StarEmbedding(arrived=Dense(self.hidden, name="arrived")(row), expert=nn.relu(experts))


class SetEncoder(nn.Module):
    """Experts as a set: each by itself, and their mean and maximum (Zaheer et al., "Deep sets", 2017)."""

    hidden: int  # width of its layer

    @nn.compact
    def __call__(self, inputs: RouterInput) -> StarEmbedding:
        """Return the embeddings of the arrived request and of each expert."""
        graph = inputs.graph
        shape = (*graph.expert_mask.shape, graph.arrived.shape[-1])
        arrived = jnp.broadcast_to(graph.arrived[..., None, :], shape)
        row = jnp.concatenate([graph.pair, graph.expert, inputs.gain[..., None], arrived], -1)
        hidden = nn.relu(Dense(self.hidden, name="each")(row))
        pool = jnp.concatenate(pooled(hidden, graph.expert_mask), -1)
        return StarEmbedding(arrived=pool, expert=jnp.concatenate([row, hidden], -1))


class RouterEncoder(nn.Module):
    """The encoder that the configuration names.

    With "han" the embeddings of the attention stand beside those of the plain set: features reach the
    heads undigested too, without which training took several times as many steps.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, inputs: RouterInput) -> StarEmbedding:
        """Return the embeddings of the arrived request and of each expert."""
        config = self.config
        if not config.impact_features and config.information == PROFILES:
            further = inputs.graph.pair.shape[-1] - len(PAIR_FEATURES)
            shown = jnp.array([name not in IMPACT_FEATURES for name in PAIR_FEATURES] + [True] * further)
            graph = dataclasses.replace(inputs.graph, pair=jnp.where(shown, inputs.graph.pair, 0.0))
            none = jnp.zeros_like(inputs.gain)
            inputs = dataclasses.replace(inputs, graph=graph, gain=none, crowding=none)
        if config.encoder == "flat":
            return FlatEncoder(config.hidden, name="flat")(inputs)
        plain = SetEncoder(config.hidden, name="set")(inputs)
        if config.encoder == "sets":
            return plain
        star = StarEncoder(config.han, name="star")(inputs.graph)
        arrived = jnp.concatenate([star.arrived, plain.arrived], -1)
        return StarEmbedding(arrived, jnp.concatenate([star.expert, plain.expert], -1))


def pooled(rows: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and maximum of the rows [..., N, F] that exist, [..., F] each; 0 where none does."""
    shown = jnp.where(mask[..., None], rows, 0.0)
    count = jnp.maximum(jnp.sum(mask, axis=-1, dtype=rows.dtype), 1.0)[..., None]
    peak = jnp.max(jnp.where(mask[..., None], rows, -jnp.inf), axis=-2)
    return jnp.sum(shown, axis=-2) / count, jnp.where(jnp.any(mask, axis=-1)[..., None], peak, 0.0)
