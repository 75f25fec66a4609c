"""Write files whole or not at all, and tell one content from another."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path`` and rename it to ``path`` if the body succeeds.

    Args:
      path: the file to write; missing parent folders are made.
      mode: ``"w"`` (UTF-8 text, newlines untranslated) or ``"wb"``.

    Yields:
      The open temporary file. If the body raises, it is removed and ``path`` is left as it was.
    """
    target = Path(path)
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


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, which tells whether it was changed between two runs."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
