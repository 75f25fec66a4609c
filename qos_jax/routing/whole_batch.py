"""Let a loop see its whole batch under ``jax.vmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Function = TypeVar("Function", bound=Callable[..., Any])


def whole_batch(function: Function) -> Function:
    """Return ``function`` with a rule of its own for ``jax.vmap``: it is called with one more leading axis.

    A loop whose first or last round depends on the data has, under ``jax.vmap``, a bound per lane: its
    counter becomes an array, each slice by it a gather, and all that is carried is selected anew per lane in
    every round. A function that is written for any leading axes takes the bound of the whole batch instead:
    right wherever a round more changes nothing.

    Args:
      function: pytrees of arrays to a pytree of arrays, each with the same leading axes [...], also none. No
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
def greatest_of_batch(value: jax.Array) -> jax.Array:
    """Return ``value``, any shape; under ``jax.vmap`` its maximum over the lanes, one and the same for all.

    A loop that it decides on runs as often for all. By a number per lane, all that is carried would be
    selected anew in every round.
    """
    return value


@greatest_of_batch.def_vmap
def _of_lanes(axis_size: int, in_batched: list[bool], value: jax.Array) -> tuple[jax.Array, bool]:
    return greatest_of_batch(jnp.max(value, axis=0) if in_batched[0] else value), False
