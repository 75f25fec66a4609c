"""Heads that are networks: logits of quality and of length buckets, linear or through hidden layers."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from qos_jax.predictors.config import PredictorConfig

_LEAST_STEPS = 16  # gradient steps of an epoch: few rows are learned from in small batches

Params = Any
OnProgress = Callable[[int], None]
"""Takes the number of epochs done since the last call."""


@struct.dataclass
class Targets:
    """True answers to M prompts, NumPy or JAX arrays; a missing entry weighs 0."""

    quality: Any  # [M, N] float32, in [0, 1]
    quality_weight: Any  # [M, N] float32, 0 or 1
    bucket: Any  # [M, N] int32
    bucket_weight: Any  # [M, N] float32, 0 or 1


class HeadNetwork(nn.Module):
    """Logits of one network: quality [..., N] and length buckets [..., N, B]."""

    experts: int
    buckets: int
    hidden: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(self, features: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Map features [..., D] to logits."""
        x = features
        for size in self.hidden:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.gelu(nn.Dense(size)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        quality = nn.Dense(self.experts, kernel_init=nn.initializers.zeros, name="quality")(x)
        length = nn.Dense(self.experts * self.buckets, kernel_init=nn.initializers.zeros, name="length")(x)
        return quality, length.reshape((*length.shape[:-1], self.experts, self.buckets))


def network_of(config: PredictorConfig, experts: int) -> HeadNetwork:
    """Return the network that a configuration describes."""
    hidden = config.hidden if config.head == "mlp" else ()
    return HeadNetwork(experts, config.buckets, tuple(hidden), config.dropout)


@functools.partial(jax.jit, static_argnums=0)
def apply_networks(network: HeadNetwork, params: Params, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Average the probabilities of E networks.

    Args:
      network: of which they are members.
      params: leaves [E, ...].
      features: [M, D].

    Returns:
      Quality [M, N] and the probabilities of length buckets [M, N, B].
    """
    quality, length = typing.cast(Any, jax.vmap(network.apply, (0, None))(params, features))
    return nn.sigmoid(quality).mean(0), nn.softmax(length).mean(0)


def fit_networks(
    config: PredictorConfig,
    number: int,
    features: np.ndarray,
    targets: Targets,
    train: np.ndarray,
    validation: np.ndarray,
    on_progress: OnProgress | None = None,
) -> Params:
    """Train ``config.members`` networks, each until its loss on the validation rows stops falling.

    The loss is the cross-entropy of quality plus that of length buckets, each averaged over what is known.
    Networks start from what each expert does on average, so a text without information changes nothing.

    Args:
      config: sizes and training.
      number: of the head; another number draws other random numbers.
      features: [M, D] float32, centred and scaled.
      targets: of the same M rows.
      train: rows to learn from.
      validation: rows to judge by, at least one with a known answer.
      on_progress: called with epochs done; ``max_epochs`` in all, however early training stops.

    Returns:
      Parameters of the epoch with the lowest validation loss, leaves [members, ...].
    """
    network = network_of(config, targets.quality.shape[1])
    rng = np.random.default_rng([config.seed, 1, number])
    batch = min(config.batch_size, max(len(train) // _LEAST_STEPS, 1))
    steps = len(train) // batch
    inputs = jnp.asarray(features)
    optimiser = _optimiser(config, steps)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), number), config.members)
    params = _start(network, inputs[:1], keys, _prior(targets, train, config.buckets))
    state = jax.vmap(optimiser.init)(params)
    held = jnp.asarray(validation)
    best, best_loss, stale = params, np.full(config.members, np.inf), np.zeros(config.members, int)
    for epoch in range(config.max_epochs):
        orders = np.stack([rng.permutation(train) for _ in range(config.members)])
        rows = jnp.asarray(orders[:, : steps * batch].reshape(config.members, steps, batch))
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        params, state, loss = _epoch(network, optimiser, params, state, keys, rows, inputs, targets, held)
        found = np.asarray(loss)
        better = found < best_loss - 1e-5
        best = _chosen(better, params, best)
        best_loss, stale = np.where(better, found, best_loss), np.where(better, 0, stale + 1)
        if on_progress is not None:
            on_progress(1)
        if (stale >= config.patience).all():
            if on_progress is not None:
                on_progress(config.max_epochs - epoch - 1)
            break
    return jax.tree.map(np.asarray, best)


def _chosen(mask: np.ndarray, new: Params, old: Params) -> Params:
    """Return the new parameters of the members for which the mask [E] holds, the old ones of the others."""

    def pick(ours: jax.Array, theirs: jax.Array) -> jax.Array:
        return jnp.where(jnp.asarray(mask).reshape((-1,) + (1,) * (ours.ndim - 1)), ours, theirs)

    return jax.tree.map(pick, new, old)


@functools.lru_cache(maxsize=8)
def _optimiser(config: PredictorConfig, steps: int) -> optax.GradientTransformation:
    """Return one object per configuration, so that folds share a compiled program."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, max(config.max_epochs * steps, 1), 0.05)
    adamw = optax.adamw(schedule, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def _prior(targets: Targets, train: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of each expert's mean quality [N] and of its bucket shares [N, B], slightly smoothed."""
    known, seen = (np.asarray(w)[train] for w in (targets.quality_weight, targets.bucket_weight))
    mean = ((np.asarray(targets.quality)[train] * known).sum(0) + 0.5) / (known.sum(0) + 1)
    each = np.eye(buckets, dtype=np.float32)[np.asarray(targets.bucket)[train]] * seen[..., None]
    return np.log(mean / (1 - mean)).astype(np.float32), np.log(each.sum(0) + 0.1).astype(np.float32)


def _start(
    network: HeadNetwork, one: jax.Array, keys: jax.Array, prior: tuple[np.ndarray, np.ndarray]
) -> Params:
    """Return the members' first parameters: the output layers are zero but for the prior as their bias."""
    params = jax.vmap(lambda key: network.init(key, one))(keys)
    for layer, logits in zip(("quality", "length"), prior, strict=True):
        bias = params["params"][layer]["bias"]
        params["params"][layer]["bias"] = jnp.broadcast_to(jnp.asarray(logits).reshape(1, -1), bias.shape)
    return params


@functools.partial(jax.jit, static_argnums=(0, 1))
def _epoch(
    network: HeadNetwork,
    optimiser: optax.GradientTransformation,
    params: Params,
    state: Any,
    keys: jax.Array,
    rows: jax.Array,
    features: jax.Array,
    targets: Targets,
    validation: jax.Array,
) -> tuple[Params, Any, jax.Array]:
    """Take every member once through its rows [E, steps, batch]; return the validation losses too, [E]."""

    def loss(params: Params, at: jax.Array, key: jax.Array | None) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        outputs: Any = network.apply(params, features[at], train=key is not None, rngs=rngs)
        return _loss(outputs, jax.tree.map(lambda leaf: leaf[at], targets))

    def member(params: Params, state: Any, key: jax.Array, rows: jax.Array) -> tuple[Params, Any, jax.Array]:
        def step(carry: tuple[Params, Any], item: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            params, state = carry
            at, step_key = item
            gradient = jax.grad(loss)(params, at, step_key)
            with jax.numpy_dtype_promotion("standard"):  # Optax counts in int32 and scales in float32
                change, state = optimiser.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), None

        (params, state), _ = jax.lax.scan(step, (params, state), (rows, jax.random.split(key, len(rows))))
        return params, state, loss(params, validation, None)

    return jax.vmap(member)(params, state, keys, rows)


def _loss(outputs: tuple[jax.Array, jax.Array], targets: Targets) -> jax.Array:
    quality, length = outputs
    of_quality = optax.sigmoid_binary_cross_entropy(quality, targets.quality)
    of_length = optax.softmax_cross_entropy_with_integer_labels(length, targets.bucket)
    return _masked_mean(of_quality, targets.quality_weight) + _masked_mean(of_length, targets.bucket_weight)


def _masked_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1.0)
