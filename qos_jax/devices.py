"""Device placement over one mesh of lanes, the devices of all processes: spread, gather, agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qos_jax.errors import input_error
from qos_jax.kernels import small_loops_joined, vmap_runs

LANES = "lanes"

_Result = TypeVar("_Result")
_Tree = TypeVar("_Tree")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lane_mesh(devices: int | None = None) -> Mesh:
    """Return a mesh of one axis, ``lanes``, of the first ``devices`` devices; of all processes by default."""
    return Mesh(np.array(jax.devices()[:devices]), (LANES,))


def spread(mesh: Mesh, tree: Any) -> Any:
    """Shard NumPy leaves [L, ...] over the devices, an equal part of L on each; L must divide evenly."""
    return _put(tree, NamedSharding(mesh, PartitionSpec(LANES)))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Replicate every leaf on every device."""
    return _put(tree, NamedSharding(mesh, PartitionSpec()))


def vary_alike(tree: _Tree, *inputs: Any) -> _Tree:
    """Mark every leaf as varying over all axes of a ``jax.shard_map`` that any leaf of these varies over.

    A loop's carry must enter it as it leaves a round, which makes all of it depend on all that is read.

    Args:
      tree: a pytree of arrays, such as the first carry of a loop.
      inputs: what else a round reads.
    """
    types = [jax.typeof(leaf).manual_axis_type for leaf in jax.tree.leaves((tree, inputs))]
    axes = frozenset[str]().union(*(kind.varying for kind in types))

    def marked(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - jax.typeof(leaf).manual_axis_type.varying))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(marked, tree) if axes else tree


def batched_like(tree: _Tree, like: jax.Array) -> _Tree:
    """Return the leaves of a loop's first carry as they are, batched under ``jax.vmap`` wherever ``like`` is.

    JAX traces a loop's body once more for a carry that only becomes batched in it, and so each loop within.

    Args:
      tree: a pytree of arrays, such as the zeros that a loop begins with.
      like: any array that the rest of the carry follows.
    """
    either = jnp.any(like != like)  # chooses between equals, which XLA leaves out
    return jax.tree.map(lambda leaf: jnp.where(either, leaf, leaf), tree)


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
    """Put arrays on devices by ``shardings``, whether each process holds them whole or they are global."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.jit(lambda leaves: leaves, out_shardings=shardings)(tree)


def own_copy(mesh: Mesh, tree: Any) -> Any:
    """Return arrays spread over ``mesh`` whole, for this process alone; every process must call it.

    In a run of one process, the tree itself.
    """
    if jax.process_count() == 1:
        return tree
    whole = place(tree, NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def writer_does(work: Callable[[], _Result]) -> _Result | None:
    """Call ``work`` in process 0 and return its result there, None elsewhere; every process must call it.

    Raises:
      InputError: in the other processes, if ``work`` raised.
      Exception: in process 0, what ``work`` raises.
    """
    if not is_writer():
        if not agree(np.zeros(1, bool))[0]:
            raise input_error("process 0 could not begin", remedy="follow the remedy that process 0 prints")
        return None
    done = False
    try:
        result = work()
        done = True
    finally:
        agree(np.array([done]))
    return result


def is_writer() -> bool:
    """Return whether this process writes files and prints, which process 0 alone does."""
    return jax.process_index() == 0


def vmap_lanes(
    function: Callable[..., Any], in_axes: Sequence[int | None] | None = None, *, is_small: bool = False
) -> Callable[..., Any]:
    """Return ``jax.vmap(function)``; under ``jax.set_mesh`` of lanes, each device maps its own part.

    A loop in the function then waits for the slowest lane of its device, not of all devices.

    Args:
      function: of arrays.
      in_axes: of each argument 0, or None where all lanes have the same; None = all 0.
      is_small: for one lane it neither sorts nor multiplies matrices, on a fleet that is small, so that on a
        CPU whose small loops are joined lanes are best taken in turn. It must then be given what it reads and
        an outer ``jax.vmap`` may batch, and not close over it; see :func:`~qos_jax.kernels.vmap_in_turn`.
    """
    in_turn = is_small and small_loops_joined()
    mapped = vmap_runs(function, 0 if in_axes is None else tuple(in_axes), in_turn=in_turn)
    if not _are_lanes_set():
        return mapped
    part = PartitionSpec(LANES)
    specs: Any = part
    if in_axes is not None:
        specs = tuple(PartitionSpec() if axis is None else part for axis in in_axes)
    # Unchecked, since loops may start from constants, which are the same on every device.
    return jax.shard_map(mapped, in_specs=specs, out_specs=part, check_vma=False)


def share_out(tree: Any) -> Any:
    """Return the leaves [L, ...] unchanged; under ``jax.set_mesh`` of lanes, sharded over the devices by L.

    A mean over L that follows, as of a gradient, is then one over devices. Where L does not divide evenly,
    every device keeps the whole.
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
