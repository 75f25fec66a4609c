"""All devices of all processes as one row of lanes: spread arrays over them, gather results, agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qos_jax.errors import input_error

LANES = "lanes"

_Result = TypeVar("_Result")


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
    """Return process 0's value, bit for bit, in every process; all must give equal shapes and dtypes."""
    if jax.process_count() == 1:
        return value
    # As bytes: the others' zeros are added, which would make 0.0 of -0.0.
    sent = np.frombuffer(value.tobytes(), np.uint8)
    got = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return np.frombuffer(got.tobytes(), value.dtype).reshape(value.shape)


def place(tree: Any, shardings: Any) -> Any:
    """Put arrays where ``shardings`` says, be they of this process, equal in all of them, or of all."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.jit(lambda leaves: leaves, out_shardings=shardings)(tree)


def own_copy(mesh: Mesh, tree: Any) -> Any:
    """Return arrays spread over ``mesh`` whole, for this process to use by itself; all must call it.

    The tree itself in a run of one process.
    """
    if jax.process_count() == 1:
        return tree
    whole = place(tree, NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def writer_does(work: Callable[[], _Result]) -> _Result | None:
    """Let process 0 do something, and return what came of it there, None in the others; all must call it.

    Raises:
      InputError: in the others, if it failed.
      Exception: in process 0, what ``work`` raises.
    """
    if not is_writer():
        if not agree(np.zeros(1, bool))[0]:
            raise input_error("process 0 could not begin", remedy="mend what its message says")
        return None
    done = False
    try:
        result = work()
        done = True
    finally:
        agree(np.array([done]))
    return result


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
