"""Checkpoints of training runs: saved whole, the last few and the best kept, and read back bit for bit.

The folder of a run holds ``checkpoints/step_000000120/``, each with

- ``checkpoint.json``: step, score, configuration, and the hash of every file below;
- ``state/``: the whole state of the learner, an Orbax checkpoint of numbered arrays;
- ``policy/``: the router's parameters alone, an Orbax checkpoint of nested dicts. Evaluation reads no more.
  A run of several seeds has none: its state is that of several routers.

An exported policy (:func:`save_policy`) is such a folder without ``state/``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.errors import InputError, input_error
from qos_jax.runs import array_store
from qos_jax.runs.checkpoint_record import (
    CHECKPOINTS,
    Checkpoint,
    best_of,
    damaged,
    find,
    read_summary,
    step_folders,
    write_summary,
)
from qos_jax.runs.config_json import config_dict, config_differences
from qos_jax.runs.whole_folder import fingerprints, first_fault, remove_folder, remove_leftovers, whole_folder

STATE, POLICY = "state", "policy"


def save(
    run: str | os.PathLike[str],
    step: int,
    state: Any,
    *,
    params: Any,
    config: Any,
    average_qos: float | None = None,
    metadata: dict[str, Any] | None = None,
    keep_last: int = 3,
) -> Checkpoint:
    """Save a checkpoint, then remove those that are neither among the last ones nor the best.

    When this returns the checkpoint is on disk; a process killed before that leaves the earlier ones as
    they were.

    Args:
      run: the folder of the run.
      step: how far the run is, in its own count; higher than that of any checkpoint there.
      state: a pytree of arrays, random keys included.
      params: the router's parameters, nested dicts of arrays; None if the state is of several routers.
      config: everything that determines the run: dataclasses and plain values, see ``config_dict``.
      average_qos: the score by which the best is kept; None or NaN if there is none.
      metadata: JSON to keep beside it.
      keep_last: how many to keep, the best apart.

    Raises:
      InputError: if the folder cannot be written, or holds a checkpoint of this or a later step.
      ValueError: if ``keep_last`` < 1, ``step`` < 0, or a leaf is no array.
    """
    if keep_last < 1 or step < 0:
        raise ValueError(f"keep_last must be at least 1 and step at least 0, got {keep_last} and {step}")
    root = Path(run) / CHECKPOINTS
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        present = step_folders(root)
        if present and max(present) >= step:
            fault = f"holds a checkpoint of step {max(present):,} already, and step {step:,} was to be saved"
            remedy = "resume the run from its latest checkpoint, or choose another folder"
            raise input_error(fault, file=root, remedy=remedy)
        target = root / f"step_{step:09d}"
        _write(target, step, (state,), params, config, average_qos, metadata)
        present[step] = target
        best = best_of(_readable(present.values()))
        for number in sorted(present)[:-keep_last]:
            if best is None or number != best.step:
                remove_folder(present[number])
    return read_summary(target)


def clear(run: str | os.PathLike[str]) -> None:
    """Remove all checkpoints of a run, and nothing else; the oldest first."""
    root = Path(run) / CHECKPOINTS
    with _writing(root):
        for _, folder in sorted(step_folders(root).items()):
            remove_folder(folder)
        if root.is_dir():
            remove_leftovers(root)
            with contextlib.suppress(OSError):  # it holds something else
                root.rmdir()


def restore(
    where: str | os.PathLike[str], like: Any, config: Any, *, best: bool = False
) -> tuple[Any, Checkpoint]:
    """Read the state of a run back, bit for bit.

    Args:
      where: as of :func:`find`.
      best: as of :func:`find`; to resume a run, the latest.
      like: a pytree of the structure, shapes and dtypes of the state, e.g.
        ``jax.eval_shape(learner.init, key, None)``.
      config: the configuration asked for, which must be the one the state was saved with.

    Returns:
      The state, on the default device unless ``like`` is spread over several, and its checkpoint.

    Raises:
      InputError: as of :func:`find`; if the configuration differs (it names the fields); if ``where`` is an
        exported policy; if a file of it is missing or was changed.
    """
    found = find(where, best=best)
    differences = config_differences(found.config, config_dict(config))
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        fault = f"the checkpoint is of another configuration ({'; '.join(differences[:5])}{more})"
        remedy = "resume with the settings of the checkpoint, or start a new run in another folder"
        raise input_error(fault, file=found.path, remedy=remedy)
    if "leaves" not in found.summary:
        fault = "is an exported policy, without the state that a run continues from"
        raise input_error(fault, file=found.path, remedy="give the folder of the run")
    layout = found.summary["leaves"]
    if (difference := array_store.layout_difference(like, layout)) is not None:
        fault = f"the checkpoint is of another version of the learner ({difference})"
        remedy = "use the version that wrote it, or start a new run in another folder"
        raise input_error(fault, file=found.path, remedy=remedy)
    with _reading(found, STATE):
        arrays = array_store.read_leaves(found.path / STATE, layout)
    return array_store.rebuild(like, layout, arrays), found


def save_policy(
    folder: str | os.PathLike[str],
    params: Any,
    config: Any,
    *,
    average_qos: float | None = None,
    metadata: dict[str, Any] | None = None,
) -> Checkpoint:
    """Export a policy: the router's parameters and the configuration to run it, no training state.

    Args:
      folder: a folder that does not exist yet or is empty.
      params: as of :func:`save`, and so are all others.
      config: the configuration.
      average_qos: its score.
      metadata: JSON to keep beside it.

    Raises:
      InputError: if the folder is in use or cannot be written.
    """
    target = Path(folder)
    with _writing(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise input_error("exists already", remedy="choose another folder", file=target)
        _write(target, 0, (), params, config, average_qos, metadata)
    return read_summary(target)


def load_policy(where: str | os.PathLike[str]) -> tuple[Any, Checkpoint]:
    """Read the router's parameters of a run, of one checkpoint or of an exported policy.

    Args:
      where: as of :func:`find`; of a run, its best checkpoint, or its latest if none was evaluated.

    Returns:
      Nested dicts of JAX arrays on the default device, and the checkpoint, with the configuration.

    Raises:
      InputError: as of :func:`find`; if it is of several routers; if a file of it is missing or was changed.
    """
    found = find(where, best=True)
    if not any(name.startswith(f"{POLICY}/") for name in found.summary["files"]):
        fault = "is of a run of several seeds, which has no router of its own"
        remedy = "give the folder of one of them, such as RUN/seeds/0, written when the run ends"
        raise input_error(fault, file=found.path, remedy=remedy)
    with _reading(found, POLICY):
        params = array_store.read_arrays(found.path / POLICY)
    return jax.tree.map(jnp.array, params), found


def _write(
    target: Path,
    step: int,
    states: tuple[Any, ...],
    params: Any,
    config: Any,
    average_qos: float | None,
    metadata: dict[str, Any] | None,
) -> None:
    """Write a checkpoint with the one state given, or with none."""
    summary: dict[str, Any] = {
        "step": int(step),
        "average_qos": None if average_qos is None or math.isnan(average_qos) else float(average_qos),
        "config": config_dict(config),
        "metadata": config_dict(metadata or {}),
        "orbax": importlib.metadata.version("orbax-checkpoint"),
    }
    with whole_folder(target) as folder:
        for state in states:
            summary["leaves"], arrays = array_store.host_leaves(state)
            array_store.write_leaves(folder / STATE, arrays)
        if params is not None:
            array_store.write_arrays(folder / POLICY, jax.tree.map(np.asarray, params))
        summary["files"] = fingerprints(folder)
        write_summary(folder, summary)


def _readable(folders: Iterable[Path]) -> Iterator[Checkpoint]:
    """Leave out those that are damaged: they must not stop the training that goes on beside them."""
    for folder in folders:
        with contextlib.suppress(InputError):
            yield read_summary(folder)


@contextlib.contextmanager
def _reading(found: Checkpoint, part: str) -> Iterator[None]:
    """Check the files of a part of a checkpoint, and say in one line why it cannot be read."""
    files = found.summary["files"]
    fault = first_fault(found.path, {name: of for name, of in files.items() if name.startswith(f"{part}/")})
    if fault is not None:
        raise damaged(found.path, fault)
    try:
        yield
    # The files are as they were written, so what Orbax raises, of whatever type, is about its versions.
    except Exception as error:
        here, there = importlib.metadata.version("orbax-checkpoint"), found.summary.get("orbax")
        reason = (str(error) or repr(error)).splitlines()[0]
        fault = f"orbax-checkpoint {here} cannot read it ({reason})"
        remedy = f"install orbax-checkpoint {there}, which wrote it"
        raise input_error(fault, file=found.path, remedy=remedy) from error


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fault = f"cannot be written ({error.strerror or error})"
        raise input_error(fault, remedy="choose another folder", file=folder) from error
