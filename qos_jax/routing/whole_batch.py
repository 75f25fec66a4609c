"""Let a loop see its whole batch under ``jax.vmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Function = TypeVar("Function", bound=Callable[..., Any])


def whole_batch(function: Function) -> Function:
    """Return ``function`` with a ``jax.vmap`` rule of its own: one call with one more leading axis.

    A loop whose first or last round depends on the data has a bound per lane under ``jax.vmap``: its
    counter becomes an array, each slice by it a gather, and all that it carries is selected per lane in
    every round. A function written for any leading axes takes the bound of the whole batch instead, which
    is correct where a further round changes nothing.

    Args:
      function: pytrees of arrays to a pytree of arrays, all with the same leading axes [...], or none. No
        lane may depend on another.
    """
    run = jax.custom_batching.custom_vmap(function)

    @run.def_vmap
    def batched(axis_size: int, in_batched: list[Any], *arguments: Any) -> tuple[Any, Any]:
        def led(leaf: jax.Array, is_batched: bool) -> jax.Array:
            return leaf if is_batched else jnp.broadcast_to(leaf, (axis_size, *jnp.shape(leaf)))

        out = run(*jax.tree.map(led, arguments, tuple(in_batched)))
        return out, jax.tree.map(lambda _: True, out)

    return run  # type: ignore[return-value]


@jax.custom_batching.custom_vmap
def max_over_batch(value: jax.Array) -> jax.Array:
    """Return ``value``, any shape; under ``jax.vmap`` its maximum over the lanes, equal in all of them.

    A loop bounded by it runs as often in all lanes, so nothing it carries is selected per lane.
    """
    return value


@max_over_batch.def_vmap
def _of_lanes(axis_size: int, in_batched: list[bool], value: jax.Array) -> tuple[jax.Array, bool]:
    return max_over_batch(jnp.max(value, axis=0) if in_batched[0] else value), False
