"""All devices of all processes as one row of lanes: spread arrays over them, gather results, agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LANES = "lanes"


def lane_mesh(devices: int | None = None) -> Mesh:
    """A mesh of one axis, ``lanes``, of the first ``devices`` devices; by default all of every process."""
    return Mesh(np.array(jax.devices()[:devices]), (LANES,))


def spread(mesh: Mesh, tree: Any) -> Any:
    """Put NumPy leaves [L, ...] on the devices, an equal part of L on each; L must divide evenly."""
    return _put(tree, NamedSharding(mesh, PartitionSpec(LANES)))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put a whole copy of every leaf on every device."""
    return _put(tree, NamedSharding(mesh, PartitionSpec()))


def gather(tree: Any) -> Any:
    """Return the leaves whole, as NumPy arrays, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)


def agree(value: np.ndarray) -> np.ndarray:
    """Return process 0's value in every process; all must call it with equal shapes and dtypes."""
    if jax.process_count() == 1:
        return value
    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def is_writer() -> bool:
    """Return whether this process writes files and talks to the user: process 0 does."""
    return jax.process_index() == 0


def vmap_lanes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``jax.vmap(function)``; under ``jax.set_mesh`` of lanes, each device maps its own part.

    A loop in the function then waits for the slowest lane of its device, not of all of them.
    """
    mapped = jax.vmap(function)
    if not _are_lanes_set():
        return mapped
    part = PartitionSpec(LANES)
    # Unchecked, since loops may start from constants, which are the same on every device.
    return jax.shard_map(mapped, in_specs=part, out_specs=part, check_vma=False)


def share_out(tree: Any) -> Any:
    """Return the leaves [L, ...] as they are; under ``jax.set_mesh`` of lanes, a part of L on each device.

    What is averaged over L afterwards, as a gradient is, is then averaged over the devices. Where L does not
    divide evenly, every device keeps the whole.
    """
    if not _are_lanes_set():
        return tree
    size = jax.sharding.get_abstract_mesh().shape[LANES]

    def share(leaf: jax.Array) -> jax.Array:
        spec = PartitionSpec(LANES) if leaf.shape[0] % size == 0 else PartitionSpec()
        return jax.lax.with_sharding_constraint(leaf, spec)

    return jax.tree.map(share, tree)


def _are_lanes_set() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return LANES in mesh.axis_names and mesh.shape[LANES] > 1


def _put(tree: Any, sharding: NamedSharding) -> Any:
    def put(leaf: Any) -> jax.Array:
        # Each process gives its own devices their parts; all hold the same host arrays.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree)
