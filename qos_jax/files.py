"""Find the shipped data, write files whole or not at all, read arrays from files of unknown content."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import os
import pathlib
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np

from qos_jax.errors import input_error

Path = str | os.PathLike[str]

# What reading a file that is no .npz, a damaged or an encrypted one raises; TypeError: a single array (.npy).
_BROKEN = (
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    MemoryError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path`` and rename it to ``path`` if the body succeeds.

    Args:
      path: the file to write; missing parent folders are made.
      mode: ``"w"`` (UTF-8 text, newlines untranslated) or ``"wb"``.

    Yields:
      The open temporary file. If the body raises, it is removed and ``path`` is left as it was.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    text = "b" not in mode
    try:
        with open(handle, mode, encoding="utf-8" if text else None, newline="" if text else None) as stream:
            yield stream
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def data_folder() -> pathlib.Path:
    """Return the folder of shipped fleets, rates, lengths and calibration, of an installed wheel or a clone.

    A wheel carries it as ``qos_jax/data``; in a clone it lies beside the package.

    Raises:
      InputError: there is neither.
    """
    package = pathlib.Path(str(importlib.resources.files("qos_jax")))
    folders = [package / "data", package.parent / "data"]
    for folder in folders:
        if (folder / "fleets").is_dir():
            return folder
    raise input_error("no such folder", file=folders[0], remedy="run: pip install . (in a clone of qos_jax)")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which tells whether it was changed between two runs."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_npz(path: Path, *, remedy: str) -> dict[str, np.ndarray]:
    """Read every array of an ``.npz`` file; objects in it are refused, nothing is run.

    Args:
      path: the file.
      remedy: what to do about a file that is none.

    Raises:
      InputError: no such file, one that cannot be read, or one that is no whole ``.npz`` of plain arrays.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as content:
            return {name: np.asarray(content[name]) for name in content.files}
    except FileNotFoundError:
        raise input_error("no such file", file=path, remedy="check the path") from None
    except OSError as error:
        raise input_error(
            f"cannot be read ({error.strerror})", file=path, remedy="give a readable file, not a folder"
        ) from None
    except _BROKEN:
        raise input_error("is not a readable .npz file of plain arrays", file=path, remedy=remedy) from None
