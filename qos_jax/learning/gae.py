"""Generalised advantage estimation, with the two ends of an episode kept apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
