"""What PPO descends: advantages, and the losses of policy, value and learned impact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from qos_jax.learning.rollout import TrueImpact
from qos_jax.policies.actor_critic import LearnedImpact


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    gae_lambda: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return advantages and the value targets that go with them, both shaped like ``reward``.

    With d_t = r_t + gamma V(s_{t+1}) - V(s_t), A_t = d_t + gamma lambda A_{t+1}. A terminated step has no
    V(s_{t+1}); a truncated one has it, of the state that the step reached. Neither sees A_{t+1}, which
    belongs to another episode. The last step, which nothing follows, is truncated unless it is terminated.
    Source: Schulman et al., "High-dimensional continuous control using generalized advantage estimation",
    ICLR 2016; truncation as in Pardo et al., "Time limits in reinforcement learning", ICML 2018.

    Args:
      reward: [T, ...] float32.
      value: [T, ...] float32, V of the state before each step.
      next_value: [T, ...] float32, V of the state reached, before any reset; not read if terminated.
      terminated: [T, ...] bool, the state reached has no future.
      truncated: [T, ...] bool, the episode was cut there though it has one.
      gamma: discount per step.
      gae_lambda: 0 = one step, 1 = the whole of what follows.
    """
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
    carried = jnp.where(terminated | truncated, 0.0, gamma * gae_lambda)

    def back(later: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, carried = step
        advantage = delta + carried * later
        return advantage, advantage

    _, advantage = jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, carried), reverse=True)
    return advantage, advantage + value


def normalised(advantage: jax.Array) -> jax.Array:
    """Return ``advantage`` [M] at mean 0 and standard deviation 1; zeros where all are equal."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)


def policy_loss(log_ratio: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """Return the clipped surrogate loss, [] float32: no gain from moving a probability beyond ``clip``.

    Args:
      log_ratio: [M] float32, log of the probability of each action now over that when it was taken.
      advantage: [M] float32.
      clip: the ratio is held to 1 - clip ... 1 + clip, where that lowers the surrogate.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))


def impact_loss(learned: LearnedImpact, true: TrueImpact, available: jax.Array) -> jax.Array:
    """Return the error of the learned impact, [] float32, over the experts that can take the request.

    Cross entropy of the chance to keep the limits, and half the squared error of log(1 + QoS others lose).

    Args:
      learned: leaves [M, N].
      true: leaves [M, N].
      available: [M, N] bool.
    """
    chance = optax.sigmoid_binary_cross_entropy(learned.chance_logit, true.keeps)
    lost = 0.5 * jnp.square(learned.lost_log - jnp.log1p(true.lost))
    error = jnp.where(available, chance + lost, 0.0)
    return jnp.sum(error) / jnp.maximum(jnp.sum(available, dtype=jnp.float32), 1.0)


def value_loss(value: jax.Array, old_value: jax.Array, target: jax.Array, clip: float | None) -> jax.Array:
    """Return half the mean squared error, [] float32; with ``clip``, of the worse of value and clipped value.

    Args:
      value: [M] float32, predicted now.
      old_value: [M] float32, predicted when the rollout was made.
      target: [M] float32.
      clip: the value is clipped to this distance of the old one; None = it is not.
    """
    error = jnp.square(value - target)
    if clip is not None:
        held = old_value + jnp.clip(value - old_value, -clip, clip)
        error = jnp.maximum(error, jnp.square(held - target))
    return 0.5 * jnp.mean(error)


def entropy(log_probs: jax.Array) -> jax.Array:
    """Return the mean entropy in nats of finite [M, A] log probabilities; masked actions add nothing."""
    return -jnp.mean(jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1))
