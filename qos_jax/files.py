"""Find the shipped data; write files whole or not at all; read text, JSON Lines and arrays; hash contents."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import importlib.resources
import json
import os
import pathlib
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from qos_jax.errors import InputError, input_error

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


def write_csv(
    path: Path, header: Iterable[str], rows: Iterable[Sequence[Any]], comments: Iterable[str] = ()
) -> None:
    """Write a CSV file, whole or not at all.

    Args:
      path: the file.
      header: names of the columns.
      rows: a cell per column each, as ``csv`` writes them: floats in full, None empty.
      comments: lines to put first, each behind ``# ``.
    """
    with atomic_write(path) as stream:
        stream.writelines(f"# {comment}\n" for comment in comments)
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def unreadable(path: Path, error: OSError | UnicodeDecodeError | csv.Error) -> InputError:
    """Return the error for a file that cannot be opened or is not UTF-8 text."""
    if isinstance(error, FileNotFoundError):
        return input_error("no such file", file=path, remedy="check the path")
    if isinstance(error, OSError):
        return input_error(
            f"cannot be read ({error.strerror})", file=path, remedy="give a readable file, not a folder"
        )
    return input_error(f"is not plain text ({error})", file=path, remedy="save it as UTF-8 text")


@contextlib.contextmanager
def open_text(path: Path, *, newline: str | None = None) -> Iterator[IO[str]]:
    """Open a file of UTF-8 text, with or without a byte-order mark, gzipped where its name ends in ``.gz``.

    Raises:
      InputError: there is no such file, it cannot be read, it is not UTF-8 text, or no whole gzip file.
    """
    opener: Any = gzip.open if os.fspath(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=newline) as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise input_error("is a damaged gzip file", file=path, remedy="fetch or write it anew") from None
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON Lines file with their line numbers, from 1; blank lines are skipped.

    Raises:
      InputError: an unreadable file, a line that is not one JSON object, or one document over many lines.
    """
    remedy = "give one JSON object per line"
    with open_text(path) as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except ValueError as error:
                if is_json("".join([text, *stream])):
                    fault = "is one JSON document where one JSON object a line is meant"
                    raise input_error(fault, file=path, remedy="write it by: jq -c '.[]' FILE") from None
                raise input_error(f"is no JSON ({error})", file=path, row=line, remedy=remedy) from None
            if not isinstance(record, dict):
                raise input_error("is no JSON object", file=path, row=line, remedy=remedy)
            yield line, record


def is_json(text: str) -> bool:
    """Return whether a text is one JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


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
    except OSError as error:
        raise unreadable(path, error) from None
    except _BROKEN:
        raise input_error("is not a readable .npz file of plain arrays", file=path, remedy=remedy) from None
