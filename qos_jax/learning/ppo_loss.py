"""The terms of PPO's loss, each a mean over a minibatch of M decisions.

Source: Schulman et al., "Proximal policy optimization algorithms", arXiv 1707.06347; clipped values and
normalised advantages as in Huang et al., "The 37 implementation details of PPO", ICLR blog track 2022.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def normalised(advantage: jax.Array) -> jax.Array:
    """``advantage`` [M] at mean 0 and standard deviation 1; zeros where all are equal."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)


def policy_loss(log_ratio: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """The clipped surrogate, [] float32: no reward for moving a probability further than ``clip``.

    Args:
      log_ratio: [M] float32, log of the probability of each action now over that when it was taken.
      advantage: [M] float32, of the action.
      clip: the ratio is held to 1 - clip ... 1 + clip, where that lowers the surrogate.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))


def value_loss(value: jax.Array, old_value: jax.Array, target: jax.Array, clip: float | None) -> jax.Array:
    """Half the mean squared error, [] float32; with ``clip``, the larger of that and of the held value's.

    Args:
      value: [M] float32, predicted now.
      old_value: [M] float32, predicted when the rollout was made.
      target: [M] float32.
      clip: the value is held within this distance of the old one; None = it is not.
    """
    error = jnp.square(value - target)
    if clip is not None:
        held = old_value + jnp.clip(value - old_value, -clip, clip)
        error = jnp.maximum(error, jnp.square(held - target))
    return 0.5 * jnp.mean(error)


def entropy(log_probs: jax.Array) -> jax.Array:
    """Mean entropy in nats of M distributions over A actions, [] float32; masked actions add nothing.

    Args:
      log_probs: [M, A] float32, normalised and finite.
    """
    return -jnp.mean(jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1))
