"""The columns of a log under our names: what a user calls them, and well-known aliases."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from qos_jax.errors import input_error, near_match
from qos_jax.workload.text_table import Path, TextTable


def check_column_names(columns: Mapping[str, str], known: Sequence[str]) -> None:
    """Raise InputError unless every key of a user's mapping is one of our column names."""
    for ours in columns:
        if ours not in known:
            raise input_error(
                f"no column {ours!r} is read{near_match(ours, known)}",
                field="column",
                remedy=f"map some of {', '.join(known)}",
            )


def our_names(
    file: str,
    given: Sequence[str],
    columns: Mapping[str, str],
    known: Sequence[str],
    aliases: Mapping[str, str],
) -> dict[str, str]:
    """Return the file's name of each of our columns that it has: mapped, else by our name, else by alias.

    Args:
      file: for errors.
      given: the names in the file.
      columns: the file's name by ours, as the user maps them.
      known: our names.
      aliases: our name by the file's; of several present, the first counts.

    Raises:
      InputError: a mapping to a column that the file does not have, or of a name that is none of ours.
    """
    check_column_names(columns, known)
    found = dict(columns)
    for ours, theirs in columns.items():
        if theirs not in given:
            raise input_error(
                f"the file has no column {theirs!r}{near_match(theirs, given)}",
                file=file,
                field=ours,
                remedy=f"map it to one of {', '.join(given)}",
            )
    for name in given:
        if name in known:
            found.setdefault(name, name)
    for theirs, ours in aliases.items():
        if theirs in given:
            found.setdefault(ours, theirs)
    return found


def renamed(
    table: TextTable, columns: Mapping[str, str], known: Sequence[str], aliases: Mapping[str, str]
) -> TextTable:
    """Return a table of just our columns, under our names."""
    found = our_names(table.file, list(table.columns), columns, known, aliases)
    return dataclasses.replace(table, columns={ours: table.columns[theirs] for ours, theirs in found.items()})


def concatenated(parts: Sequence[Mapping[str, np.ndarray]], row: str, path: Path) -> dict[str, np.ndarray]:
    """Return the columns of all parts of a file, one after the other; InputError if there is no row."""
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not len(next(iter(columns.values()))):
        raise input_error(f"holds no {row}", file=path, remedy="give at least one row")
    return columns
