"""Write folders whole or not at all, and detect damage by size and hash of each file."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qos_jax.files import sha256

_PARTIAL, _REMOVED = ".partial-", ".removed-"

Fingerprints = dict[str, list[Any]]  # by file, relative to the folder: [size in bytes, SHA-256]


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Fill a new folder beside ``target``, which takes its place if the body succeeds.

    All of it is on the disk before it gets its name, so that neither a killed process nor a power failure
    leaves a part of it under that name.

    Args:
      target: the folder to be, which must not exist or be empty; missing parents are made.

    Yields:
      The new folder, empty. If the body raises, it is removed and ``target`` is left as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(_PARTIAL + target.name)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        yield partial
        for root, _, files in os.walk(partial):
            for name in files:
                _to_disk(os.path.join(root, name))
            _to_disk(root)
        os.rename(partial, target)
        _to_disk(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it never stands half empty under its name."""
    removed = folder.with_name(_REMOVED + folder.name)
    if removed.exists():
        shutil.rmtree(removed)
    os.rename(folder, removed)
    shutil.rmtree(removed)


def remove_leftovers(parent: Path) -> None:
    """Remove what processes killed in :func:`whole_folder` or :func:`remove_folder` left in ``parent``."""
    for prefix in (_PARTIAL, _REMOVED):
        for leftover in parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)


def fingerprints(folder: Path) -> Fingerprints:
    """Return the size and the hash of every file in a folder."""
    found: Fingerprints = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = [path.stat().st_size, sha256(path)]
    return found


def first_fault(folder: Path, expected: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the first file that is not as :func:`fingerprints` found it; None if all are.

    Args:
      folder: the folder.
      expected: what :func:`fingerprints` returned of it, or a part of that.
    """
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, not {size:,}"
        if sha256(path) != digest:
            return f"{name} was changed"
    return None


def _to_disk(path: str | os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
