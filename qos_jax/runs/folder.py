"""Open the folder of a run: its settings, its metrics line by line, its tables and plots."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qos_jax.errors import input_error
from qos_jax.files import atomic_write, sha256

CONFIG, METRICS_LINES = "config.json", "metrics.jsonl"

_File = str | os.PathLike[str] | None

_TABLES = ("records.csv", "predictor_report_*.csv", "cost_frontier_*.csv", "requests.csv", "sweep.csv")
_OTHERS = ("records/*.npz", "table.npz", "predictor.*", "profile.*", "plots/*.png", "tensorboard/events.*")
_RESULTS = (METRICS_LINES, "summary.*", "comparison.*", "evaluations.csv", *_TABLES, *_OTHERS)
# What a process killed while it wrote a file leaves beside it.
_LEFTOVERS = tuple(str(Path(name).parent / f".{Path(name).name}.????????") for name in (CONFIG, *_RESULTS))


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An open run folder; make one with :func:`open_run_folder`."""

    path: Path

    def file(self, name: str) -> Path:
        """Return the path of the file ``name`` of this run, e.g. ``"plots/latency_cdf.png"``."""
        return self.path / name

    def append_metrics(self, *records: Mapping[str, Any]) -> None:
        """Append a line per record to ``metrics.jsonl``, all on disk before this returns.

        Args:
          records: JSON values, NumPy scalars and arrays; what is not finite is written as null.
        """
        with open(self.file(METRICS_LINES), "ab") as stream:
            stream.write("".join(map(_line, records)).encode())
            stream.flush()
            os.fsync(stream.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records of ``metrics.jsonl``; lines that are no JSON objects are left out."""
        path = self.file(METRICS_LINES)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        records = []
        for line in lines:
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return [record for record in records if isinstance(record, dict)]

    def replace_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write ``metrics.jsonl`` anew, whole or not at all."""
        with atomic_write(self.file(METRICS_LINES)) as stream:
            stream.writelines(map(_line, records))

    def write_json(self, name: str, content: Any) -> None:
        """Write ``content`` as an indented JSON file, whole or not at all."""
        with atomic_write(self.file(name)) as stream:
            json.dump(to_json(content), stream, indent=2, allow_nan=False)
            stream.write("\n")


def settings_of(
    launcher: str,
    config: Any,
    *,
    files: Mapping[str, _File | Sequence[_File]] | None = None,
    flat: Sequence[str] = (),
    **resolved: Any,
) -> dict[str, Any]:
    """Return all that determines the results of a run, the content of its ``config.json``.

    Args:
      launcher: name of the command that made it.
      config: dataclass of what was given, or a mapping of the same.
      files: input files by what they are, several as a sequence; the SHA-256 of each is recorded as
        ``NAME_sha256``, None where there is none, so that a changed file is another run.
      flat: fields of ``config`` that are dataclasses whose own fields stand in their place.
      resolved: what given settings came to, such as the limit of a shipped fleet; replaces fields.
    """
    given = dict(config) if isinstance(config, Mapping) else dataclasses.asdict(config)
    for group in flat:
        given |= given.pop(group)
    for name, file in (files or {}).items():
        if isinstance(file, str | os.PathLike) or file is None:
            given[f"{name}_sha256"] = sha256(file) if file else None
        else:
            given[f"{name}_sha256"] = [sha256(each) for each in file if each]
    return {"launcher": launcher, **given, **resolved}


def open_run_folder(
    path: str | os.PathLike[str], config: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False
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
    previous = check_run_folder(path, config, overwrite=overwrite)
    run = RunFolder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if previous is not None and resume and previous == wanted:
            _drop_partial_line(run.file(METRICS_LINES))
            _remove(folder, _LEFTOVERS)
        elif previous is not None:
            _remove(folder, (*_RESULTS, *_LEFTOVERS))
        run.write_json(CONFIG, wanted)
    except OSError as error:
        fault = f"cannot be written ({error.strerror})"
        raise input_error(fault, remedy="choose another folder with --out", file=folder) from error
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


def check_run_folder(
    path: str | os.PathLike[str], config: Mapping[str, Any], *, overwrite: bool = False
) -> Any:
    """Check that :func:`open_run_folder` may use a folder; nothing is written.

    A run stopped before it had any result left its ``config.json`` alone: any run with the same settings,
    whatever their values, may take its place.

    Returns:
      The configuration of the run already there; None if there is none.

    Raises:
      InputError: if the path is a file, or the folder is in use and ``overwrite`` is not given.
    """
    folder, wanted = Path(path), to_json(config)
    if folder.exists() and not folder.is_dir():
        raise input_error("is a file, not a folder", remedy="choose another folder with --out", file=folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    remedy = "choose another folder with --out, or give --overwrite"
    file = folder / CONFIG
    if not file.is_file() and overwrite:
        return None
    if not file.is_file():
        raise input_error("the folder holds files that are not of a run", remedy=remedy, file=folder)
    try:
        previous = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        previous = {}
    if previous != wanted and not overwrite and not _is_unused(folder, previous, wanted):
        changed = _differences(previous, wanted)
        fault = f"the folder holds the results of another run (it differs in {changed})"
        raise input_error(fault, remedy=remedy, file=folder)
    return previous


def _is_unused(folder: Path, previous: Any, wanted: Any) -> bool:
    """Return whether a folder holds nothing but the configuration of a run of the same kind."""
    files = {file for file in folder.rglob("*") if not file.is_dir()}
    leftovers = {file for pattern in _LEFTOVERS for file in folder.glob(pattern)}
    same_kind = isinstance(previous, dict) and previous.keys() == wanted.keys()
    return same_kind and files - leftovers == {folder / CONFIG}


def _remove(folder: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(to_json(record), allow_nan=False) + "\n"


def _differences(previous: Any, wanted: Any) -> str:
    """Return the names of at most five settings in which two configurations differ."""
    if not isinstance(previous, dict):
        return "its format"
    missing, known = object(), sorted(previous.keys() | wanted.keys())
    names = [name for name in known if previous.get(name, missing) != wanted.get(name, missing)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _drop_partial_line(path: Path) -> None:
    """Cut a file after its last newline, so that the next line appended starts afresh."""
    if path.is_file():
        with open(path, "rb+") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)
