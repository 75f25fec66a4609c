"""Map the columns of a log to our names: by the user's mapping, by name, or by well-known alias."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from qos_jax.errors import input_error, near_match
from qos_jax.text_table import TextTable


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
    for ours in columns:
        if ours not in known:
            fault = f"no column {ours!r} is read{near_match(ours, known)}"
            raise input_error(fault, field="column", remedy=f"map some of {', '.join(known)}")
    found = dict(columns)
    for ours, theirs in columns.items():
        if theirs not in given:
            fault = f"the file has no column {theirs!r}{near_match(theirs, given)}"
            raise input_error(fault, file=file, field=ours, remedy=f"map it to one of {', '.join(given)}")
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
