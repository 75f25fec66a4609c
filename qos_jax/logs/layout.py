"""A layout: the fields that recognise it and how to read it; and the reader of plain columns."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from qos_jax import text_table
from qos_jax.logs.logged import ANSWERED, Logged
from qos_jax.logs.source import Source
from qos_jax.logs.units import ISO, KNOWN, TOKENS, UNITS, our_names, split_unit
from qos_jax.text_table import TextTable

_OFFSET = re.compile(r"(?:Z|([+-])(\d\d):?(\d\d))$")

Texts = Mapping[str, list[str]]  # cells of further columns, by the file's name


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """How one tool writes requests down: a table of columns, or with ``read`` anything else."""

    name: str  # of the tool and its file, for the user
    needs: tuple[str, ...]  # the fields that recognise it
    # Columns in seconds, or in the unit after ":", -> our name; of several present the first counts.
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    texts: tuple[str, ...] = ()  # further columns that ``refine`` is given as text
    refine: Callable[[Logged, Texts], Logged] | None = None  # sets causes and notes
    read: Callable[[Source], Logged] | None = None

    def missing(self, source: Source) -> list[str]:
        """Return the fields that a file lacks to be of this layout."""
        return [name for name in self.needs if name not in source.fields]


def read_columns(layout: Layout, source: Source, columns: Mapping[str, str]) -> Logged:
    """Read a file whose requests are rows of a table, or flat JSON objects.

    Args:
      layout: of the file.
      source: the file.
      columns: the file's name of a column, with or without ``:unit``, by ours, as the user maps them.

    Raises:
      InputError: a mapping to nothing, or naming the row and the field of a cell that is no number.
    """
    nested = (split_unit(theirs)[0] for theirs in columns.values())
    given = (*source.fields, *(name for name in nested if name.partition(".")[0] in source.fields))
    fields = our_names(source.file, given, columns, KNOWN, layout.columns)
    texts = tuple(name for name in layout.texts if name in source.fields)
    values: dict[str, list[np.ndarray]] = {name: [] for name in fields}
    kept: dict[str, list[str]] = {name: [] for name in texts}
    rows: list[int] = []
    read = {theirs for theirs, _ in fields.values()}
    for table in source.tables((*read, *texts)):
        rows.extend(table.line)
        for name, (theirs, unit) in fields.items():
            values[name].append(_numbers(table, name, theirs, unit))
        for name in texts:
            kept[name].extend(table.columns[name])
    logged = Logged(
        file=source.file,
        layout=layout.name,
        row=np.array(rows, np.int64),
        values={name: np.concatenate(parts) for name, parts in values.items()},
        cause=np.full(len(rows), ANSWERED, object),
        fields=fields,
        unread=tuple(name for name in source.fields if name not in read and name not in texts),
    )
    return layout.refine(logged, kept) if layout.refine else logged


def _numbers(table: TextTable, name: str, field: str, unit: str) -> npt.NDArray[np.float64]:
    """Return a column in seconds or tokens, NaN where a cell is empty."""
    cells = table.columns[field]
    empty = np.array([not cell for cell in cells], bool)
    if empty.any():
        fill = "1970-01-01 00:00" if unit == ISO else "0"
        columns = {field: [cell or fill for cell in cells]}
        table = dataclasses.replace(table, columns=columns)
    if name in TOKENS:
        values = text_table.integers(table, field).astype(np.float64)
    elif unit == ISO:
        values = _time_stamps(table, field)
    else:
        values = text_table.floats(table, field) / UNITS[unit]
    return np.where(empty, np.nan, values)


def _time_stamps(table: TextTable, field: str) -> npt.NDArray[np.float64]:
    """Return ISO time stamps (optional offset, up to 9 fractional digits) as seconds since 1970 UTC."""
    offsets = np.zeros(table.num_rows)
    bare: list[str] = []
    for k, cell in enumerate(table.columns[field]):
        match = _OFFSET.search(cell, 10)
        if match:
            cell = cell[: match.start()]
            if match[1]:
                offsets[k] = (60 * int(match[2]) + int(match[3])) * (60 if match[1] == "+" else -60)
        bare.append(cell)
    try:
        stamps = np.array(bare, dtype="datetime64[ns]") if bare else np.zeros(0, "datetime64[ns]")
        bad = np.isnat(stamps)
    except ValueError:
        bad = np.array([not _is_stamp(cell) for cell in bare])
    text_table.refuse(table, field, bad, "is no time stamp", "write e.g. 2023-11-16 18:15:46.6805900")
    return stamps.astype(np.int64) / 1e9 - offsets


def _is_stamp(cell: str) -> bool:
    try:
        return not np.isnat(np.datetime64(cell, "ns"))
    except ValueError:
        return False
