"""The folder of one run: its configuration, its metrics line by line, its tables and plots."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qos_jax.errors import input_error
from qos_jax.files import atomic_write

CONFIG, METRICS_LINES = "config.json", "metrics.jsonl"

_RESULTS = (METRICS_LINES, "records.csv", "summary.json", "comparison.*", "plots/*.png")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An open run folder; make one with :func:`open_run_folder`."""

    path: Path

    def file(self, name: str) -> Path:
        """Return the path of the file ``name`` of this run, e.g. ``"plots/latency_cdf.png"``."""
        return self.path / name

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``, on disk before this returns.

        Args:
          record: JSON values, NumPy scalars and arrays; what is not finite is written as null.
        """
        line = json.dumps(to_json(record), allow_nan=False) + "\n"
        with open(self.file(METRICS_LINES), "ab") as stream:
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def write_json(self, name: str, content: Any) -> None:
        """Write ``content`` as an indented JSON file, whole or not at all."""
        with atomic_write(self.file(name)) as stream:
            json.dump(to_json(content), stream, indent=2, allow_nan=False)
            stream.write("\n")


def open_run_folder(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> RunFolder:
    """Make or reopen the folder of a run and write its ``config.json``.

    A folder that holds results of the same configuration is used again: its results are removed first,
    or kept and appended to with ``resume``. Only files a run makes are ever removed, and only from a
    folder that a run made.

    Args:
      path: the folder; made with its parents if missing.
      config: everything that determines the results; JSON values, NumPy scalars and arrays.
      overwrite: replace the results of another configuration, or use a folder with other files in it.
      resume: keep the metrics of an interrupted run of the same configuration; a last line cut short
        is dropped.

    Raises:
      InputError: if the path is a file or cannot be written, or the folder is in use and ``overwrite``
        is not given.
    """
    folder = Path(path)
    wanted = to_json(config)
    previous = _check(folder, wanted, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run = RunFolder(folder)
        if previous is not None and resume and previous == wanted:
            _drop_partial_line(run.file(METRICS_LINES))
        elif previous is not None:
            for pattern in _RESULTS:
                for file in folder.glob(pattern):
                    file.unlink()
        run.write_json(CONFIG, wanted)
    except OSError as error:
        raise input_error(
            f"cannot be written ({error.strerror})", remedy="choose another folder with --out", file=folder
        ) from error
    return run


def to_json(value: Any) -> Any:
    """Return ``value`` in plain JSON types: arrays as lists, tuples as lists, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _check(folder: Path, wanted: Any, overwrite: bool) -> Any:
    """Return the configuration of the run already there, None if there is none; raise if it is in the way."""
    if folder.exists() and not folder.is_dir():
        raise input_error("is a file, not a folder", remedy="choose another folder with --out", file=folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    remedy = "choose another folder with --out, or give --overwrite"
    config = folder / CONFIG
    if not config.is_file():
        if overwrite:
            return None
        raise input_error("the folder holds files that are not of a run", remedy=remedy, file=folder)
    try:
        previous = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        previous = {}
    if previous != wanted and not overwrite:
        changed = _differences(previous, wanted)
        raise input_error(
            f"the folder holds the results of another run (it differs in {changed})",
            remedy=remedy,
            file=folder,
        )
    return previous


def _differences(previous: Any, wanted: Any) -> str:
    """Return the names of at most five settings in which two configurations differ."""
    if not isinstance(previous, dict):
        return "its format"
    missing = object()
    names = [
        name
        for name in sorted(previous.keys() | wanted.keys())
        if previous.get(name, missing) != wanted.get(name, missing)
    ]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _drop_partial_line(path: Path) -> None:
    """Cut a file after its last newline, so that the next line appended starts afresh."""
    if path.is_file():
        with open(path, "rb+") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)
