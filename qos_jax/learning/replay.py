"""Replay memory: a ring of whole rollouts, from which single transitions are drawn uniformly.

A rollout is kept as its T + 1 inputs and T decisions in B lanes, so that an observation is stored once, not
as the end of one transition and the start of the next. A transition never leaves its rollout: none can
straddle the renewal of a lane or the head of the ring, and the last of a cut episode is kept, with the input
to bootstrap from. The memory is fixed when the ring is made; :func:`replay_bytes` computes it before.

flashbax 0.1.3 cannot stand in: its ``sample`` needs rank promotion, which this project forbids, and a pair of
neighbours in its ring may straddle a renewal.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Replay:
    """A ring of the last C rollouts of T decisions in B lanes."""

    inputs: Any  # leaves [C, T + 1, B, ...], float32 or float16; the last of T + 1 follows the rollout
    action: jax.Array  # [C, T, B] int32
    reward: jax.Array  # [C, T, B] float32
    terminated: jax.Array  # [C, T, B] bool, the state reached has no future
    head: jax.Array  # [] int32, the rollout to be overwritten next
    filled: jax.Array  # [] int32, rollouts held, at most C

    @property
    def size(self) -> jax.Array:
        """[] int32, transitions held."""
        return self.filled * (self.action.shape[1] * self.action.shape[2])

    @property
    def capacity(self) -> int:
        """Transitions that fit."""
        return int(self.action.size)


@struct.dataclass
class ReplayBatch:
    """Transitions over one or more steps; leading axis [batch]."""

    inputs: Any  # of the decision, leaves [batch, ...]
    action: jax.Array  # [batch] int32
    reward: jax.Array  # [batch] float32, discounted sum over the steps taken
    discount: jax.Array  # [batch] float32, factor on the value of ``next_inputs``; 0 where terminated
    next_inputs: Any  # to bootstrap from, leaves [batch, ...]


def empty_replay(inputs: Any, capacity: int, steps: int, half_precision: bool = False) -> Replay:
    """Return a ring without content.

    Args:
      inputs: of B lanes, leaves [B, ...]: an example for shapes and dtypes.
      capacity: transitions to hold at most; rounded down to whole rollouts.
      steps: T, decisions of one rollout in each lane.
      half_precision: keep the floats of inputs as float16, +-65504 at most: half the memory.

    Raises:
      ValueError: not one rollout fits.
    """
    num_envs = jax.tree.leaves(inputs)[0].shape[0]
    rollouts = capacity // (steps * num_envs)
    if rollouts < 1:
        raise ValueError(f"capacity = {capacity}: one rollout takes {steps} x {num_envs} transitions")

    def room(leaf: jax.Array) -> jax.Array:
        half = half_precision and leaf.dtype == jnp.float32
        return jnp.zeros((rollouts, steps + 1, *leaf.shape), jnp.float16 if half else leaf.dtype)

    shape = (rollouts, steps, num_envs)
    action, reward, terminated = (jnp.zeros(shape, dtype) for dtype in (jnp.int32, jnp.float32, bool))
    return Replay(jax.tree.map(room, inputs), action, reward, terminated, jnp.int32(0), jnp.int32(0))


def replay_bytes(inputs: Any, capacity: int, steps: int, half_precision: bool = False) -> int:
    """Return the bytes of what :func:`empty_replay` returns for these arguments, without making it."""
    shapes = jax.eval_shape(lambda example: empty_replay(example, capacity, steps, half_precision), inputs)
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(shapes))


def add_rollout(
    replay: Replay, inputs: Any, last: Any, action: jax.Array, reward: jax.Array, terminated: jax.Array
) -> Replay:
    """Return the ring with one rollout written over the oldest. Donate the ring, or all of it is copied.

    Args:
      replay: the ring.
      inputs: of each decision, leaves [T, B, ...], as action, reward and end.
      last: inputs after the last decision, before any lane was renewed, leaves [B, ...].
      action: [T, B] int32.
      reward: [T, B] float32.
      terminated: [T, B] bool.
    """
    head = replay.head

    def write(ring: jax.Array, steps: jax.Array, end: jax.Array) -> jax.Array:
        rows = jnp.concatenate([steps, end[None]])
        if rows.dtype != ring.dtype:
            rows = jnp.clip(rows, -_LARGEST_HALF, _LARGEST_HALF).astype(ring.dtype)
        return ring.at[head].set(rows)

    rollouts = replay.action.shape[0]
    return Replay(
        inputs=jax.tree.map(write, replay.inputs, inputs, last),
        action=replay.action.at[head].set(action),
        reward=replay.reward.at[head].set(reward),
        terminated=replay.terminated.at[head].set(terminated),
        head=(head + 1) % rollouts,
        filled=jnp.minimum(replay.filled + 1, rollouts),
    )


def sample_replay(
    replay: Replay,
    key: jax.Array,
    batch: int,
    discount: float,
    n_step: int = 1,
    baseline: jax.Array | float = 0.0,
) -> ReplayBatch:
    """Draw transitions uniformly with replacement; the ring must not be empty.

    Args:
      replay: the ring.
      key: [] key.
      batch: transitions to draw.
      discount: gamma, per decision.
      n_step: decisions to sum rewards over, at most; fewer at the end of a rollout or an episode.
      baseline: [] float32, subtracted from the reward of every decision.
    """
    _, steps, num_envs = replay.action.shape
    index = jax.random.randint(key, (batch,), 0, jnp.maximum(replay.size, 1))
    rollout, step, lane = index // (steps * num_envs), index // num_envs % steps, index % num_envs
    reward = jnp.zeros((batch,), jnp.float32)
    factor = jnp.ones((batch,), jnp.float32)  # discount of what comes next; 0 after an end
    for ahead in range(n_step):
        inside = step + ahead < steps
        at = (rollout, jnp.minimum(step + ahead, steps - 1), lane)
        reward += jnp.where(inside, factor * (replay.reward[at] - baseline), 0.0)
        factor *= jnp.where(inside, discount * (1.0 - replay.terminated[at].astype(jnp.float32)), 1.0)
    reached = jnp.minimum(step + n_step, steps)
    return ReplayBatch(
        inputs=_inputs_at(replay.inputs, (rollout, step, lane)),
        action=replay.action[rollout, step, lane],
        reward=reward,
        discount=factor,
        next_inputs=_inputs_at(replay.inputs, (rollout, reached, lane)),
    )


_LARGEST_HALF = float(np.finfo(np.float16).max)


def _inputs_at(inputs: Any, at: tuple[jax.Array, ...]) -> Any:
    """Return rows of stored inputs, floats as float32."""

    def read(leaf: jax.Array) -> jax.Array:
        rows = leaf[at]
        return rows.astype(jnp.float32) if rows.dtype == jnp.float16 else rows

    return jax.tree.map(read, inputs)
