"""Make a fleet of one expert of a fitted profile, and append the expert to a fleet file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qos_jax import text_table
from qos_jax.errors import input_error
from qos_jax.files import Path, atomic_write
from qos_jax.serving import FleetProfile
from qos_jax.workload import Fleet, read_fleet, validate_fleet
from qos_jax.workload.fleet import ALLOWED


def fleet_of_one(expert: str, row: Mapping[str, Any]) -> Fleet:
    """Return the fleet of just this expert.

    Args:
      expert: its name.
      row: every other column of a fleet's file, by name.

    Raises:
      InputError: a value that no fleet takes, naming its column, which is also the flag's name.
    """
    leaves: dict[str, Any] = {}
    for name, allowed in ALLOWED.items():
        if row[name] not in allowed:
            raise input_error(f"{row[name]} is out of range", field=name, remedy=f"give {allowed}")
        leaves[name] = np.array([row[name]], np.int32 if allowed.whole else np.float32)
    fleet = Fleet((expert,), FleetProfile(**leaves))
    validate_fleet(fleet)
    return fleet


def check_new_expert(path: Path, expert: str) -> None:
    """Raise InputError unless ``path`` is a valid fleet's file without this expert."""
    if expert in read_fleet(path).names:
        raise input_error(
            f"{expert!r} is there already", file=path, field="expert", remedy="give --expert another name"
        )


def append_expert(path: Path, expert: str, row: Mapping[str, Any], comments: Sequence[str]) -> None:
    """Add a row, comments before it, to a fleet's file; the rest stays as it is, byte for byte.

    Raises:
      InputError: as :func:`check_new_expert`; then the file is left as it was.
    """
    check_new_expert(path, expert)
    columns = list(next(text_table.read_chunks(path)).columns)
    leaves = fleet_of_one(expert, row).profile
    cells = [expert if name == "expert" else str(getattr(leaves, name)[0]) for name in columns]
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    with open(path, encoding="utf-8", newline="") as stream:
        before = stream.read()
    with atomic_write(path) as stream:
        stream.write(before if before.endswith("\n") else f"{before}\n")
        stream.writelines(f"# {comment}\n" for comment in comments)
        stream.write(line.getvalue())
