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
from qos_jax.serving import DecodeKnot, FleetProfile
from qos_jax.workload import Fleet, read_fleet, validate_fleet
from qos_jax.workload.decode_knots import KNOT_COLUMNS
from qos_jax.workload.fleet import ALLOWED, OPTIONAL, optional_cells


def knot_lists(knots: Sequence[tuple[float, float, float]]) -> dict[str, list[float]]:
    """Return a row's columns of decode times by batch size, lists; none without knots."""
    return {name: list(values) for name, values in zip(KNOT_COLUMNS, zip(*knots, strict=True), strict=False)}


def fleet_of_one(expert: str, row: Mapping[str, Any]) -> Fleet:
    """Return the fleet of just this expert.

    Args:
      expert: its name.
      row: every other column of a fleet's file, by name; those of ``KNOT_COLUMNS``, if any, as lists, and
        those of ``OPTIONAL``, if any.

    Raises:
      InputError: a value that no fleet takes, naming its column, which is also the flag's name.
    """
    leaves: dict[str, Any] = {}
    present = {name: allowed for name, allowed in OPTIONAL.items() if name in row}
    for name, allowed in (ALLOWED | present).items():
        if row[name] not in allowed:
            raise input_error(f"{row[name]} is out of range", field=name, remedy=f"give {allowed}")
        leaves[name] = np.array([row[name]], np.int32 if allowed.whole else np.float32)
    lists = np.array([row[name] for name in KNOT_COLUMNS if name in row], np.float32)
    knots = tuple(DecodeKnot(*column[:, None]) for column in lists.T)
    fleet = Fleet((expert,), FleetProfile(**leaves, decode_knots=knots))
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

    But for optional columns that the row has and the file does not: the file gets these, empty.

    Raises:
      InputError: as :func:`check_new_expert`; then the file is left as it was.
    """
    check_new_expert(path, expert)
    columns = list(next(text_table.read_chunks(path)).columns)
    fleet = fleet_of_one(expert, row)
    optional = optional_cells(fleet.profile)
    added = [name for name in optional if name not in columns]
    cells = {"expert": expert} | {name: str(getattr(fleet.profile, name)[0]) for name in ALLOWED}
    cells |= {name: column[0] for name, column in optional.items()}
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([cells.get(name, "") for name in (*columns, *added)])
    with open(path, encoding="utf-8", newline="") as stream:
        before = "".join(_widened(stream.read().splitlines(keepends=True), added))
    with atomic_write(path) as stream:
        stream.write(before if before.endswith("\n") else f"{before}\n")
        stream.writelines(f"# {comment}\n" for comment in comments)
        stream.write(line.getvalue())


def _widened(lines: Sequence[str], added: Sequence[str]) -> list[str]:
    """Return the lines of a fleet's file with further columns at the right, empty but for their names."""
    widened, cells = [], added
    for line in lines:
        bare = line.rstrip("\r\n")
        if added and bare.strip() and not bare.lstrip().startswith("#"):
            line = ",".join((bare, *cells)) + line[len(bare) :]
            cells = [""] * len(added)
        widened.append(line)
    return widened
