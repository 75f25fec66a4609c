"""Find checkpoints in a run's folder, and read their settings without their arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from qos_jax.errors import InputError, input_error
from qos_jax.runs.config_json import config_from_dict

CHECKPOINTS, SUMMARY = "checkpoints", "checkpoint.json"
FORMAT = 1  # of a checkpoint's folder; a reader refuses a higher one

_Config = TypeVar("_Config")
_STEP = re.compile(r"step_(\d+)")
_GIVE = "give the folder of a training run, one of its checkpoints, or an exported policy"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before its arrays are read."""

    path: Path  # its folder
    step: int  # how far the run was, in its own count; 0 for an exported policy
    average_qos: float | None  # its score on evaluation, QoS per request; None if it was not evaluated
    config: dict[str, Any]  # the run's configuration, as by ``config_dict``
    metadata: dict[str, Any]  # whatever else the run wished to keep, JSON
    summary: dict[str, Any] = dataclasses.field(repr=False)  # checkpoint.json itself

    def read_config(self, kind: type[_Config], *fields: str) -> _Config:
        """Rebuild a part of the configuration, e.g. ``read_config(NetworkConfig, "network")``.

        Args:
          kind: the dataclass.
          fields: names on the way to it from the top of the configuration.

        Raises:
          InputError: if it is not there or does not fit the dataclass as it is today.
        """
        stored: Any = self.config
        for field in fields:
            stored = stored.get(field) if isinstance(stored, dict) else None
        try:
            return config_from_dict(kind, stored)
        except ValueError as error:
            fault = f"the checkpoint's configuration does not fit this version of qos_jax ({error})"
            remedy = "use the version that trained it, or train anew"
            raise input_error(fault, file=self.path, field=".".join(fields) or None, remedy=remedy) from error


def checkpoints(run: str | os.PathLike[str]) -> list[Checkpoint]:
    """Return the checkpoints of a run by step; none if there are none.

    Raises:
      InputError: if one of them is damaged.
    """
    return [read_summary(folder) for _, folder in sorted(step_folders(Path(run) / CHECKPOINTS).items())]


def find(where: str | os.PathLike[str], *, best: bool = False) -> Checkpoint:
    """Find a checkpoint.

    Args:
      where: the folder of a run, its ``checkpoints`` folder, a checkpoint in that, or an exported policy.
      best: of a run, take the one of the highest average QoS (on a tie the later), or the latest if none
        was evaluated; else the latest.

    Raises:
      InputError: if there is none, it is damaged, or a newer version wrote it.
    """
    path = Path(where)
    if not path.is_dir():
        fault = "is a file, not a folder" if path.exists() else "there is no such folder"
        raise input_error(fault, remedy=_GIVE, file=path)
    if (path / SUMMARY).exists() or _STEP.fullmatch(path.name):
        return read_summary(path)
    folders = step_folders(path / CHECKPOINTS) or step_folders(path)
    if not folders:
        inside = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
        if inside != path or path.name == CHECKPOINTS:
            fault = "the run holds no whole checkpoint: it stopped before its first was saved"
        else:
            fault = "holds no checkpoint" if any(path.iterdir()) else "the folder is empty"
        raise input_error(fault, remedy=_GIVE, file=path)
    top = best_of(map(read_summary, folders.values())) if best else None
    return top or read_summary(folders[max(folders)])


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write ``checkpoint.json`` of a checkpoint, with its own hash."""
    summary = summary | {"format": FORMAT}
    text = json.dumps(summary | {"hash": _hash(summary)}, indent=1)
    (folder / SUMMARY).write_text(text, encoding="utf-8")


def read_summary(folder: Path) -> Checkpoint:
    """Read ``checkpoint.json`` of a checkpoint.

    Raises:
      InputError: if it is damaged, or a newer version wrote it.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        expected, version = summary.pop("hash"), summary["format"]
        newer = isinstance(version, int) and version > FORMAT
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise damaged(folder, f"{SUMMARY} {reason}") from error
    if newer:
        fault = f"was written by a newer qos_jax (checkpoint format {version}, this one reads {FORMAT})"
        raise input_error(fault, file=folder, remedy="update qos_jax")
    if expected != _hash(summary):
        raise damaged(folder, f"{SUMMARY} was changed")
    known = {name: summary[name] for name in ("step", "average_qos", "config", "metadata")}
    return Checkpoint(path=folder, **known, summary=summary)


def best_of(found: Iterable[Checkpoint]) -> Checkpoint | None:
    """Return the one of the highest average QoS, the later on a tie; None if none was evaluated."""
    scored = [(each.average_qos, each.step, each) for each in found if each.average_qos is not None]
    return max(scored, key=lambda entry: entry[:2])[2] if scored else None


def damaged(folder: Path, fault: str) -> InputError:
    """Return the error of a checkpoint that is not as it was written."""
    remedy = "delete this folder to use the run's other checkpoints, or restore it from a copy"
    return input_error(f"the checkpoint is damaged ({fault})", file=folder, remedy=remedy)


def step_folders(root: Path) -> dict[int, Path]:
    """Return the folders of checkpoints in ``root``, by step, in no order."""
    if not root.is_dir():
        return {}
    matches = ((_STEP.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}


def _hash(summary: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()
