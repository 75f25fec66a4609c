"""Read files of records, one numbered mapping each: JSON Lines, a JSON list, CSV, gzipped or not, Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any, NoReturn

from qos_jax.errors import input_error
from qos_jax.files import Path, is_json, unreadable
from qos_jax.text_table import check_width, checked_header

CSV, JSON, PARQUET = "csv", "json", "parquet"
Record = Mapping[str, Any]

_KINDS = {".csv": CSV, ".json": JSON, ".jsonl": JSON, ".ndjson": JSON, ".parquet": PARQUET}


def record_kind(path: Path) -> str:
    """Return ``CSV``, ``JSON`` or ``PARQUET`` by a file's name, ``.gz`` aside.

    Raises:
      InputError: another ending.
    """
    suffixes = pathlib.Path(path).suffixes
    suffix = (suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes)[-1:]
    kind = _KINDS.get("".join(suffix).lower())
    if suffix == [".pkl"]:
        remedy = (
            "run: python -c \"import pandas; pandas.read_pickle('FILE').to_csv('FILE.csv', index=False)\""
        )
        raise input_error("is a pickle, which may run code when it is read", file=path, remedy=remedy)
    if kind is None or (kind == PARQUET and suffixes[-1] == ".gz"):
        remedy = f"give a file ending in {', '.join(_KINDS)}, or these but the last with .gz"
        raise input_error("is of an unknown kind, by its name", file=path, remedy=remedy)
    return kind


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield every record of a file with its number: its line, or its index in a list or table, from 1.

    A row of a CSV file is the line that it ends on, since cells may hold line breaks; its empty cells are
    None. A first column without a name, as pandas writes its index, is left out.

    Raises:
      InputError: naming the file, the row and the remedy, when it is reached.
    """
    kind = record_kind(path)
    if kind == PARQUET:
        yield from _read_parquet(path)
        return
    read = _read_csv if kind == CSV else _read_json
    try:
        with _open_text(path) as stream:
            yield from read(path, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise input_error("is a damaged gzip file", file=path, remedy="fetch or write it anew") from None
    except csv.Error as error:
        remedy = "quote cells as CSV does, or write the log as JSON Lines"
        raise input_error(f"is no CSV file ({error})", file=path, remedy=remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None


def _open_text(path: Path) -> IO[str]:
    if pathlib.Path(path).suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _read_json(path: Path, stream: IO[str]) -> Iterator[tuple[int, Record]]:
    """Read a list if the first sign is ``[``, one object written over many lines, else an object a line."""
    first = stream.readline()
    while first and not first.strip():
        first = stream.readline()
    if first.lstrip().startswith("["):
        records = _parse(path, 1, first + stream.read(), "a list of JSON objects")
        for number, record in enumerate(records, start=1):
            yield number, _object(path, number, record)
        return
    if first and not is_json(first):
        document = first + stream.read()
        if is_json(document):
            yield 1, _object(path, 1, _parse(path, 1, document, "one JSON object"))
            return
    stream.seek(0)
    for number, text in enumerate(stream, start=1):
        if text.strip():
            yield number, _object(path, number, _parse(path, number, text, "one JSON object per line"))


class _RefusedError(ValueError):
    """What is JSON to Python, and not to be read: no finite number, or a name given twice."""


def _parse(path: Path, row: int, text: str, wanted: str) -> Any:
    def refuse(name: str) -> NoReturn:
        raise _RefusedError(f"{name} is not a finite number; use null for what is missing")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for k, name in enumerate(names) if name in names[:k])
            raise _RefusedError(f"{twice!r} is given twice in one object")
        return found

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except _RefusedError as error:
        raise input_error(str(error), file=path, row=row, remedy=f"give {wanted}") from None
    except (ValueError, RecursionError) as error:
        raise input_error(
            f"is no JSON ({' '.join(str(error).split())})", file=path, row=row, remedy=f"give {wanted}"
        ) from None


def _object(path: Path, row: int, record: Any) -> Record:
    if not isinstance(record, dict):
        raise input_error("is no JSON object", file=path, row=row, remedy="give an object of named fields")
    return record


def _read_csv(path: Path, stream: IO[str]) -> Iterator[tuple[int, Record]]:
    rows = csv.reader(stream, strict=True)
    header = next(rows, None)
    index = int(bool(header) and len(header or ()) > 1 and not (header or ("",))[0].strip())
    names = checked_header((header or [])[index:], str(path), rows.line_num)
    for cells in rows:
        if not cells:
            continue
        check_width(cells[index:], names, str(path), rows.line_num)
        yield rows.line_num, {n: cell or None for n, cell in zip(names, cells[index:], strict=True)}


def _read_parquet(path: Path) -> Iterator[tuple[int, Record]]:
    try:
        import pyarrow.parquet
    except ImportError:
        fault = "reading Parquet needs pyarrow, which is not installed"
        remedy = "run: pip install pyarrow, or convert the file to JSON Lines"
        raise input_error(fault, file=path, remedy=remedy) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as content:
            number = 0
            for batch in content.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except OSError as error:
        raise unreadable(path, error) from None
    except pyarrow.ArrowException as error:
        text = " ".join(str(error).split())[:80]
        raise input_error(f"is no Parquet file ({text})", file=path, remedy="fetch it anew") from None
