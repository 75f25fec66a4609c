"""Read CSV files as columns of text with line numbers, and turn columns into checked numbers."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qos_jax.checks import Interval
from qos_jax.errors import InputError, input_error, near_match
from qos_jax.files import Path, open_text, unreadable

CHUNK_ROWS = 65_536  # rows held as text at once, so that a trace of any length reads in bounded memory
MAX_INT32 = 2**31 - 1

FINITE = Interval()
TOKENS = Interval(1, MAX_INT32, whole=True)
TOKENS_OR_ZERO = Interval(0, MAX_INT32, whole=True)


@dataclasses.dataclass(frozen=True, eq=False)
class TextTable:
    """Some consecutive rows of a CSV file, as text."""

    file: str  # path of the file, for errors
    columns: dict[str, list[str]]  # per column name, its R stripped cells
    line: list[int]  # [R] line numbers in the file, counted from 1, comments and the header included

    @property
    def num_rows(self) -> int:
        """Number of rows R."""
        return len(self.line)


def read_chunks(path: Path, *, unnamed: bool = False) -> Iterator[TextTable]:
    """Yield a CSV file in chunks of at most ``CHUNK_ROWS`` rows; the first one always comes.

    Lines that start with ``#`` and blank lines are skipped but counted. The first chunk has no rows
    if the file has only a header.

    Args:
      path: UTF-8 CSV file (a byte-order mark is allowed) with a header line, gzipped if it ends in ``.gz``.
      unnamed: whether a column may lack a name, as the index that pandas writes; it becomes ``column N``.

    Raises:
      InputError: missing or unreadable file, no header, a duplicate or empty column name, a row with
        more or fewer cells than the header.
    """
    file, at = str(path), 0
    with open_text(path, newline="") as stream:

        def data_lines() -> Iterator[str]:
            nonlocal at
            for number, text in enumerate(stream, start=1):
                at = number
                if text.strip() and not text.startswith("#"):
                    yield text

        rows = csv.reader(data_lines())
        try:
            header = next(rows, None)
            if unnamed and header:
                header = [name if name.strip() else f"column {k}" for k, name in enumerate(header, start=1)]
            names = checked_header(header, file, at)
            cells: list[list[str]] = []
            line: list[int] = []
            yielded = False
            for row in rows:
                check_width(row, names, file, at)
                cells.append(row)
                line.append(at)
                if len(line) == CHUNK_ROWS:
                    yield _columns(file, names, cells, line)
                    cells, line, yielded = [], [], True
            if line or not yielded:
                yield _columns(file, names, cells, line)
        except csv.Error as error:
            raise unreadable(path, error) from error


def read_small(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> TextTable:
    """Return a CSV file of at most ``CHUNK_ROWS`` rows: these columns, in any order, and optional ones.

    Raises:
      InputError: as :func:`read_chunks` and :func:`check_columns`, or more rows.
    """
    chunks = read_chunks(path)
    table = next(chunks)
    check_columns(table, columns, optional)
    if next(chunks, None) is not None:
        raise input_error(f"has more than {CHUNK_ROWS} rows", file=path, remedy="give fewer rows")
    return table


def _columns(file: str, names: Sequence[str], cells: list[list[str]], line: list[int]) -> TextTable:
    columns = list(zip(*cells, strict=True)) if cells else [()] * len(names)
    return TextTable(file, {n: [c.strip() for c in col] for n, col in zip(names, columns, strict=True)}, line)


def checked_header(cells: Sequence[str] | None, file: str, line: int) -> list[str]:
    """Return the column names of a header.

    Args:
      cells: of the header's row; None or none at all: the file has no header.
      file: path, for errors.
      line: of the header, for errors.

    Raises:
      InputError: no header, a column without a name, or two of one name.
    """
    if not cells:
        raise input_error("is empty", file=file, remedy="give a CSV file with a header line")
    names = [name.strip() for name in cells]
    for index, name in enumerate(names):
        if not name:
            raise input_error(
                f"column {index + 1} has no name", file=file, row=line, remedy="name every column"
            )
        if name in names[:index]:
            raise input_error(
                "column appears twice", file=file, row=line, field=name, remedy="keep one of the two"
            )
    return names


def check_width(cells: Sequence[str], names: Sequence[str], file: str, line: int) -> None:
    """Raise InputError unless a row has a cell for each column."""
    if len(cells) != len(names):
        fault = f"has {len(cells)} cells where the header has {len(names)}"
        remedy = "give one cell per column, quoted where it holds a comma or a line break"
        raise input_error(fault, file=file, row=line, remedy=remedy)


def check_columns(table: TextTable, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raise InputError if a required column is missing or a column is neither required nor optional."""
    for name in required:
        if name not in table.columns:
            fault = "column is missing" + near_match(name, table.columns)
            remedy = f"give the columns {', '.join(required)}"
            raise input_error(fault, file=table.file, field=name, remedy=remedy)
    for name in table.columns:
        if name not in required and name not in optional:
            fault = "column is unknown" + near_match(name, [*required, *optional])
            raise input_error(fault, file=table.file, field=name, remedy="rename or remove it")


def floats(table: TextTable, field: str, interval: Interval = FINITE) -> npt.NDArray[np.float64]:
    """Return column ``field`` as float64 [R], finite and within an interval.

    Raises:
      InputError: naming the first row whose cell is no number, not finite or out of range.
    """
    cells = table.columns[field]
    try:
        values = np.array(cells, dtype=np.float64) if cells else np.zeros(0)
    except ValueError:
        row = next(k for k, cell in enumerate(cells) if not _is_number(cell))
        raise cell_error(table, field, row, "is not a number", "write a plain number such as 0.5") from None
    refuse(table, field, ~np.isfinite(values), "is not finite", "write a finite number")
    too_low = values <= interval.low if interval.above else values < interval.low
    too_high = values >= interval.high if interval.below else values > interval.high
    refuse(table, field, too_low | too_high, "is out of range", f"give {interval}")
    return values


def integers(table: TextTable, field: str, interval: Interval = TOKENS_OR_ZERO) -> npt.NDArray[np.int32]:
    """Return column ``field`` as int32 [R] within an interval; ``12.0`` counts as an integer.

    Raises:
      InputError: naming the first row whose cell is no integer or out of range.
    """
    values = floats(table, field, interval)
    refuse(table, field, values != np.round(values), "is not an integer", "write a whole number")
    return values.astype(np.int32)


def leaf(table: TextTable, field: str, interval: Interval) -> np.ndarray:
    """Return column ``field`` [R] within an interval, as int32 if it is of whole numbers, else float32."""
    if interval.whole:
        return integers(table, field, interval)
    return floats(table, field, interval).astype(np.float32)


def refuse(table: TextTable, field: str, bad: npt.NDArray[np.bool_], fault: str, remedy: str) -> None:
    """Raise InputError naming the first row where ``bad`` [R] holds, if it holds anywhere."""
    if bad.any():
        raise cell_error(table, field, int(np.argmax(bad)), fault, remedy)


def cell_error(table: TextTable, field: str, row: int, fault: str, remedy: str) -> InputError:
    """Return the error for the cell of a column in row ``row`` of the table, from 0."""
    cell = table.columns[field][row]
    value = f"{cell!r} {fault}" if cell else "is empty"
    return input_error(value, file=table.file, row=table.line[row], field=field, remedy=remedy)


def check_order(table: TextTable, arrival_s: np.ndarray, after_s: float) -> float:
    """Check that arrivals do not decrease.

    Args:
      table: where they are read from, with a column ``arrival_s``.
      arrival_s: [R] seconds.
      after_s: the arrival above the first, seconds.

    Returns:
      The last arrival, or ``after_s`` if there is none.

    Raises:
      InputError: naming the first arrival before the one above it.
    """
    early = np.diff(arrival_s, prepend=after_s) < 0
    refuse(table, "arrival_s", early, "is before the arrival above it", "sort the rows by arrival")
    return float(arrival_s[-1]) if len(arrival_s) else after_s


def concatenated(parts: Sequence[Mapping[str, np.ndarray]], row: str, path: Path) -> dict[str, np.ndarray]:
    """Return the columns of all parts of a file, one after the other.

    Args:
      parts: arrays by name, the same names in each, at least one part.
      row: what a row is, for the error.
      path: of the file, for the error.

    Raises:
      InputError: there is no row.
    """
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not len(next(iter(columns.values()))):
        raise input_error(f"holds no {row}", file=path, remedy="give at least one row")
    return columns


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
