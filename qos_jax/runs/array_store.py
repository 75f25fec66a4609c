"""Pytrees of arrays on disk, by Orbax: every bit of every leaf, whatever devices wrote and read it."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Layout = list[dict[str, Any]]  # of each leaf: its name, its dtype and shape as text, what a key is for


def host_leaves(tree: Any) -> tuple[Layout, list[np.ndarray]]:
    """Take a pytree apart into NumPy arrays on the host and what is needed to check and rebuild it.

    Args:
      tree: JAX arrays, random keys (``jax.random.key``) and NumPy arrays, in any registered containers.

    Raises:
      ValueError: if a leaf is no array, or a key of an implementation that JAX does not name.
    """
    layout: Layout = []
    arrays: list[np.ndarray] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        described = _describe(name, leaf)
        if _is_key(leaf):
            described["key"] = jax.random.key_impl(leaf)
            if not isinstance(described["key"], str):
                raise ValueError(f"leaf {name} is a random key of an implementation without a name")
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        described["stored"] = [str(array.dtype), list(array.shape)]
        layout.append(described)
        arrays.append(array)
    if len({leaf["name"] for leaf in layout}) < len(layout):
        raise ValueError("two leaves have the same name: the names of a container's fields must differ")
    return layout, arrays


def rebuild(like: Any, layout: Layout, arrays: list[np.ndarray]) -> Any:
    """Put back together what :func:`host_leaves` took apart.

    Args:
      like: a pytree of the same structure, shapes and dtypes (see :func:`layout_difference`);
        ``jax.eval_shape`` makes one for nothing. A leaf that is a NumPy array comes back as one, one spread
        over devices is spread likewise, all others come to the default device.
      layout: of the leaves.
      arrays: the leaves.
    """
    stored = {leaf["name"]: (leaf.get("key"), array) for leaf, array in zip(layout, arrays, strict=True)}
    # By name, not by number: a field that moved within its dataclass is the same field.
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _place(leaf, *stored[jax.tree_util.keystr(path)]), like
    )


def layout_difference(like: Any, layout: Layout) -> str | None:
    """Return the first leaf in which a pytree differs from a stored layout; None if it fits."""
    wanted = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    for leaf in layout:
        name = leaf["name"]
        if name not in wanted:
            return f"{name} is in the checkpoint only"
        described = _describe(name, wanted.pop(name))
        for what in ("dtype", "shape"):
            if leaf[what] != described[what]:
                return f"{name}: {what} {leaf[what]} in the checkpoint, {described[what]} here"
    return f"{next(iter(wanted))} is not in the checkpoint" if wanted else None


def write_arrays(folder: Path, tree: Any) -> None:
    """Write nested dicts of non-empty NumPy arrays as an Orbax checkpoint, synchronously."""
    import orbax.checkpoint as ocp  # here, because it takes long to import

    with _undisturbed(), _checkpointer() as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.StandardSave(tree))


def read_arrays(folder: Path) -> Any:
    """Read what :func:`write_arrays` wrote, as NumPy arrays."""
    import orbax.checkpoint as ocp

    with _undisturbed(), _checkpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), args=ocp.args.StandardRestore())


def write_leaves(folder: Path, arrays: list[np.ndarray]) -> None:
    """Write arrays as an Orbax checkpoint, each under its number; Orbax refuses empty ones: left out."""
    numbered = {str(number): array for number, array in enumerate(arrays) if array.size}
    if numbered:
        write_arrays(folder, numbered)


def read_leaves(folder: Path, layout: Layout) -> list[np.ndarray]:
    """Read what :func:`write_leaves` wrote."""
    stored = [leaf["stored"] for leaf in layout]
    empty = [0 in shape for _, shape in stored]
    found = {} if all(empty) else read_arrays(folder)
    return [
        np.zeros(shape, jnp.dtype(dtype)) if empty[number] else found[str(number)]
        for number, (dtype, shape) in enumerate(stored)
    ]


def _checkpointer() -> Any:
    """Return Orbax's reader and writer for this process alone, else it would wait for the others of a run."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Orbax finish what it began, quietly; a Ctrl-C takes effect when it has.

    Interrupted in its event loop it would leave threads behind that write, fail and print tracebacks. The
    dozen lines that it logs about each save would be shown on stderr by absl's launchers.
    """

    def wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or "orbax" not in Path(record.pathname).parts

    held: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        if threading.current_thread() is threading.main_thread():  # no other is ever interrupted
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    handlers[number] = handler
                    signal.signal(number, lambda number, _: held.append(number))
        yield
    finally:
        logger.removeFilter(wanted)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for held_back in held:
            signal.raise_signal(held_back)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(name: str, leaf: Any) -> dict[str, Any]:
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape") or np.dtype(object) == leaf.dtype:
        raise ValueError(f"leaf {name} is no array but a {type(leaf).__name__}: {leaf!r}")
    return {"name": name, "dtype": str(leaf.dtype), "shape": list(leaf.shape)}


def _place(like: Any, key: str | None, array: np.ndarray) -> Any:
    if isinstance(like, np.generic):
        return array[()]
    if isinstance(like, np.ndarray):
        return array
    # A copy: an array that shares memory with NumPy's cannot be donated to the first update.
    placed = jnp.array(array)
    if key is not None:
        placed = jax.random.wrap_key_data(placed, impl=key)
    sharding = getattr(like, "sharding", None)
    return jax.device_put(placed, sharding) if sharding and len(sharding.device_set) > 1 else placed
