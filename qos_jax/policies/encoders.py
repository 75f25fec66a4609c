"""The encoders of a learned router: HAN, set or flat MLP, and the choices among them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from qos_jax.options import option
from qos_jax.policies.han import HANConfig
from qos_jax.policies.han_star import StarEmbedding, StarEncoder
from qos_jax.policies.router_input import RouterInput
from qos_jax.routing.graph import (
    PAIR_FEATURES,
)

ENCODERS = ("han", "sets", "flat")


# The columns of a pair that come from the action impact estimator.
IMPACT_FEATURES = ("own_chance", "own_qos", "pushed", "penalty", "net", "latency")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Choices of a learned router's networks; hashable.

    Raises:
      ValueError: an unknown encoder, or a size or temperature out of range.
    """

    encoder: str = option(
        "han",
        help="han: attention over the graph, beside what sets sees; sets: experts as a set, without "
        "attention and slots; flat: an MLP on all features in one row (fixed N and K), the baseline network",
    )
    han: HANConfig = dataclasses.field(default_factory=HANConfig)
    hidden: int = 64  # width of the heads; the flat encoder's layers are four times as wide
    residual: bool = True  # scores start as the greedy router's net gain, the head's last layer at zero
    impact_features: bool = True  # False hides what the impact estimator says; then no residual either
    calibrate_quality: bool = True  # correct the predicted qualities by what training showed of them
    learned_prices: bool = True  # with the residual: weigh the net gain's terms by load, request and server
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


class Trunk(nn.Module):
    """The encoder that the configuration names.

    With "han" the embeddings of the attention stand beside those of the plain set: features reach the
    heads undigested too, without which training took several times as many steps.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, inputs: RouterInput) -> StarEmbedding:
        """Return the embeddings of the arrived request and of each expert."""
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
