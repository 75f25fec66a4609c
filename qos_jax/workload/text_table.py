"""Read CSV files as columns of text with line numbers, and turn columns into checked numbers."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from qos_jax.errors import InputError, input_error, near_match

CHUNK_ROWS = 65_536  # rows held as text at once, so that a trace of any length reads in bounded memory
MAX_INT32 = 2**31 - 1

Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, eq=False)
class TextTable:
    """Some consecutive rows of a CSV file, as text.

    Attributes:
      file: path of the file, for errors.
      columns: per column name, its R stripped cells.
      line: [R] line numbers in the file, counted from 1, comments and the header included.
    """

    file: str
    columns: dict[str, list[str]]
    line: list[int]

    @property
    def num_rows(self) -> int:
        """Number of rows R."""
        return len(self.line)


def open_error(path: Path, error: OSError | UnicodeDecodeError | csv.Error) -> InputError:
    """Return the input error for a file that cannot be opened or is no UTF-8 text."""
    if isinstance(error, FileNotFoundError):
        return input_error("no such file", file=path, remedy="check the path")
    if isinstance(error, OSError):
        return input_error(
            f"cannot be read ({error.strerror})", file=path, remedy="give a readable file, not a folder"
        )
    return input_error(f"is not plain text ({error})", file=path, remedy="save it as UTF-8 CSV")


def read_chunks(path: Path) -> Iterator[TextTable]:
    """Yield a CSV file in chunks of at most ``CHUNK_ROWS`` rows; the first one always comes.

    Lines that start with ``#`` and blank lines are skipped but counted. The first chunk has no rows
    if the file has only a header.

    Args:
      path: UTF-8 CSV file (a byte-order mark is allowed) with a header line.

    Raises:
      InputError: missing or unreadable file, no header, a duplicate or empty column name, a row with
        more or fewer cells than the header.
    """
    file, at = str(path), 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:

            def data_lines() -> Iterator[str]:
                nonlocal at
                for number, text in enumerate(stream, start=1):
                    at = number
                    if text.strip() and not text.startswith("#"):
                        yield text

            rows = csv.reader(data_lines())
            header = next(rows, None)
            if header is None:
                raise input_error("is empty", file=path, remedy="give a CSV file with a header line")
            names = [name.strip() for name in header]
            check_header(names, file, at)
            cells: list[list[str]] = []
            line: list[int] = []
            yielded = False
            for row in rows:
                if len(row) != len(names):
                    raise input_error(
                        f"has {len(row)} cells where the header has {len(names)}",
                        file=path,
                        row=at,
                        remedy="give one cell per column",
                    )
                cells.append(row)
                line.append(at)
                if len(line) == CHUNK_ROWS:
                    yield _columns(file, names, cells, line)
                    cells, line, yielded = [], [], True
            if line or not yielded:
                yield _columns(file, names, cells, line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise open_error(path, error) from error


def _columns(file: str, names: Sequence[str], cells: list[list[str]], line: list[int]) -> TextTable:
    columns = list(zip(*cells, strict=True)) if cells else [()] * len(names)
    return TextTable(file, {n: [c.strip() for c in col] for n, col in zip(names, columns, strict=True)}, line)


def check_header(names: Sequence[str], file: str, line: int) -> None:
    """Raise InputError if a column of a header has no name, or one has the name of another."""
    for position, name in enumerate(names):
        if not name:
            raise input_error(
                f"column {position + 1} has no name", file=file, row=line, remedy="name every column"
            )
        if name in names[:position]:
            raise input_error(
                "column appears twice", file=file, row=line, field=name, remedy="keep one of the two"
            )


def check_columns(table: TextTable, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raise InputError if a required column is missing or a column is neither required nor optional."""
    for name in required:
        if name not in table.columns:
            raise input_error(
                "column is missing" + near_match(name, table.columns),
                file=table.file,
                field=name,
                remedy=f"give the columns {', '.join(required)}",
            )
    for name in table.columns:
        if name not in required and name not in optional:
            raise input_error(
                "column is unknown" + near_match(name, [*required, *optional]),
                file=table.file,
                field=name,
                remedy="rename or remove it",
            )


def floats(
    table: TextTable,
    field: str,
    *,
    minimum: float = -np.inf,
    maximum: float = np.inf,
    above: float = -np.inf,
) -> npt.NDArray[np.float64]:
    """Return column ``field`` as finite float64 [R] within [minimum, maximum] and greater than ``above``.

    Raises:
      InputError: naming the first row whose cell is no number, not finite or out of range.
    """
    cells = table.columns[field]
    try:
        values = np.array(cells, dtype=np.float64) if cells else np.zeros(0)
    except ValueError:
        row = next(k for k, cell in enumerate(cells) if not _is_number(cell))
        raise _cell_error(table, field, row, "is not a number", "write a plain number such as 0.5") from None
    bad = ~np.isfinite(values)
    if bad.any():
        raise _cell_error(table, field, int(np.argmax(bad)), "is not finite", "write a finite number")
    with_bounds = (values < minimum) | (values > maximum) | (values <= above)
    if with_bounds.any():
        limits = [f">= {minimum:g}"] * (minimum > -np.inf) + [f"> {above:g}"] * (above > -np.inf)
        limits += [f"<= {maximum:g}"] * (maximum < np.inf)
        remedy = f"give a value {' and '.join(limits)}"
        raise _cell_error(table, field, int(np.argmax(with_bounds)), "is out of range", remedy)
    return values


def integers(
    table: TextTable, field: str, *, minimum: int = 0, maximum: int = MAX_INT32
) -> npt.NDArray[np.int32]:
    """Return column ``field`` as int32 [R] within [minimum, maximum]; ``12.0`` counts as an integer.

    Raises:
      InputError: naming the first row whose cell is no integer or out of range.
    """
    values = floats(table, field, minimum=minimum, maximum=maximum)
    bad = values != np.round(values)
    if bad.any():
        raise _cell_error(table, field, int(np.argmax(bad)), "is not an integer", "write a whole number")
    return values.astype(np.int32)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _cell_error(table: TextTable, field: str, row: int, fault: str, remedy: str) -> InputError:
    cell = table.columns[field][row]
    value = f"{cell!r} {fault}" if cell else "is empty"
    return input_error(value, file=table.file, row=table.line[row], field=field, remedy=remedy)
