"""Spaces of actions, observations and states: gymnax's interface of them, without gymnax."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Bounds of what has no smaller ones: their difference, which a uniform draw computes, is still finite.
LARGEST = float(np.finfo(np.float32).max) / 4.0


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers 0..n-1: gymnax's space of that name, where gymnax is not installed."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = jnp.int32

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw one evenly."""
        return jax.random.randint(key, self.shape, 0, self.n, self.dtype)

    def contains(self, value: Any) -> jax.Array:
        """Return whether ``value`` is one of them, [] bool."""
        return jnp.all((jnp.asarray(value) >= 0) & (jnp.asarray(value) < self.n))


@dataclasses.dataclass(frozen=True)
class Box:
    """Arrays between two bounds: gymnax's space of that name, where gymnax is not installed."""

    low: float
    high: float
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw one evenly; the bounds must be finite."""
        if self.dtype == jnp.bool_:
            return jax.random.bernoulli(key, 0.5, self.shape)
        if jnp.issubdtype(self.dtype, jnp.integer):
            return jax.random.randint(key, self.shape, int(self.low), int(self.high), self.dtype)
        return jax.random.uniform(key, self.shape, self.dtype, self.low, self.high)

    def contains(self, value: Any) -> jax.Array:
        """Return whether all of ``value`` lies between the bounds, [] bool."""
        if self.dtype == jnp.bool_:
            return jnp.bool_(True)
        return jnp.all((jnp.asarray(value) >= self.low) & (jnp.asarray(value) <= self.high))


@dataclasses.dataclass(frozen=True)
class Tree:
    """A pytree whose every leaf lies in a space of its own."""

    spaces: Any  # a pytree of Box

    def sample(self, key: jax.Array) -> Any:
        """Draw every leaf evenly and independently."""
        spaces, treedef = jax.tree.flatten(self.spaces)
        keys = jax.random.split(key, len(spaces))
        return jax.tree.unflatten(treedef, [space.sample(k) for space, k in zip(spaces, keys, strict=True)])

    def contains(self, value: Any) -> jax.Array:
        """Return whether every leaf lies in its space, [] bool; the pytrees must be alike."""
        inside = jax.tree.map(lambda space, leaf: space.contains(leaf), self.spaces, value)
        return jnp.all(jnp.stack(jax.tree.leaves(inside)))


def tree_space(shapes: Any) -> Tree:
    """Return the space of all finite pytrees with leaves of these shapes and dtypes (``jax.eval_shape``)."""

    def space(leaf: jax.ShapeDtypeStruct) -> Box:
        if leaf.dtype == jnp.bool_:
            return Box(0, 1, leaf.shape, leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            limits = np.iinfo(leaf.dtype)
            return Box(limits.min, limits.max, leaf.shape, leaf.dtype)
        return Box(-LARGEST, LARGEST, leaf.shape, leaf.dtype)

    return Tree(jax.tree.map(space, shapes))
