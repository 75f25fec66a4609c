"""All devices of all processes as one row of lanes: spread arrays over them, gather results, agree."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LANES = "lanes"


def lane_mesh(devices: int | None = None) -> Mesh:
    """Return the mesh of the first ``devices`` devices (default: all, of every process), one axis ``lanes``."""
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


def _put(tree: Any, sharding: NamedSharding) -> Any:
    # Each process gives its own devices their parts; all hold the same host arrays.
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(
            np.shape(leaf), sharding, lambda index, leaf=leaf: np.asarray(leaf)[index]
        ),
        tree,
    )
