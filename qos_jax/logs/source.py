"""Open a file of requests: CSV, JSON lines, a JSON list or one JSON document, gzipped or not."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from qos_jax import text_table
from qos_jax.errors import input_error
from qos_jax.files import Path, open_text, read_json_lines
from qos_jax.text_table import CHUNK_ROWS, TextTable

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A file whose kind is known; its content is read by ``tables`` or ``records``."""

    file: str  # its path
    fields: tuple[str, ...]  # of the header, or of the first object
    is_csv: bool
    parsed: list[Any] | None = None  # the objects of a JSON list, or the one of a document, if it is either

    @property
    def is_document(self) -> bool:
        """Whether it is one JSON object, over one line or many."""
        return self.parsed is not None and len(self.parsed) == 1

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield the objects of a JSON file with their line, or their index in the list, from 1.

        Raises:
          InputError: a line or an element that is no JSON object.
        """
        if self.parsed is None:
            yield from read_json_lines(self.file)
            return
        for number, record in enumerate(self.parsed, start=1):
            yield number, _checked(self.file, number, record)

    def tables(self, wanted: tuple[str, ...]) -> Iterator[TextTable]:
        """Yield the requests as tables of text, of a JSON file just the columns wanted that it has.

        Args:
          wanted: names of columns; ``a.b`` is field b of the object a.
        """
        if self.is_csv:
            yield from text_table.read_chunks(self.file, unnamed=True)
            return
        records = self.records()
        while batch := list(itertools.islice(records, CHUNK_ROWS)):
            columns = {name: [_text(field_of(record, name)) for _, record in batch] for name in wanted}
            yield TextTable(self.file, columns, [line for line, _ in batch])


def open_source(path: Path) -> Source:
    """Return a file of requests as a source, its kind recognised by its content.

    Raises:
      InputError: it cannot be read, holds no request, or is neither CSV nor JSON.
    """
    file = str(path)
    with open_text(path) as stream:
        lines = ((number, text) for number, text in enumerate(stream, start=1) if text.strip())
        number, line = next(lines, (1, ""))
        if not line:
            raise input_error(
                "is empty: it holds no request", file=file, remedy="give CSV with a header, or JSON"
            )
        if not line.lstrip().startswith(("{", "[")):
            return Source(file, tuple(next(text_table.read_chunks(path, unnamed=True)).columns), True)
        try:
            first = json.loads(line)
        except ValueError as error:
            try:
                first, rest = json.loads("".join([line, *stream])), None
            except (ValueError, RecursionError):
                remedy = "give CSV with a header, one JSON object a line, or one JSON document"
                raise input_error(f"is no JSON ({error})", file=file, row=number, remedy=remedy) from None
        else:
            rest = next(lines, None)
    if isinstance(first, list):
        if not first:
            raise input_error("holds no request", file=file, remedy="give a list of requests")
        return Source(file, tuple(_checked(file, 1, first[0])), False, first)
    record = _checked(file, number, first)
    return Source(file, tuple(record), False, [record] if rest is None else None)


def field_of(record: Record, name: str) -> Any:
    """Return a field of an object, ``a.b`` for field b of the object in a; None if it is missing."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _checked(file: str, row: int, record: Any) -> Record:
    if not isinstance(record, dict):
        raise input_error("is no JSON object", file=file, row=row, remedy="give one JSON object per request")
    return record
