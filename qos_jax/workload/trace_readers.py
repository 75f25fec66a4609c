"""Readers of public trace formats: Azure LLM inference 2023/2024, Mooncake, BurstGPT and a generic CSV.

Recorded traces hold failed requests. A row with no prompt token or no output token cannot be served: the
readers of the recorded formats leave it out, count it in ``Trace.skipped_rows`` and log the count; the
generic CSV, which people write by hand, refuses it. Recorded rows out of time order are sorted (stably); the
generic CSV refuses them too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from absl import logging

from qos_jax.errors import InputError, input_error
from qos_jax.workload import text_table
from qos_jax.workload.text_table import MAX_INT32, Path, TextTable
from qos_jax.workload.trace import Trace

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
GENERIC_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length")
_OFFSET = re.compile(r"(?:Z|([+-])(\d\d):?(\d\d))$")

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]  # arrival in seconds, prompt tokens, output tokens


def read_trace(path: Path) -> Trace:
    """Read a trace, its format told by its header (CSV) or by a first line that is a JSON object.

    Raises:
      InputError: no known header, or any fault of the format's reader.
    """
    if _first_line(path).lstrip().startswith("{"):
        return read_mooncake(path)
    header = next(text_table.read_chunks(path)).columns
    for columns, reader in (
        (AZURE_COLUMNS, read_azure),
        (BURSTGPT_COLUMNS, read_burstgpt),
        (GENERIC_COLUMNS, read_generic),
    ):
        if all(column in header for column in columns):
            return reader(path)
    raise input_error(
        f"the header {', '.join(header)} is of no known trace format",
        file=path,
        remedy=f"give {', '.join(GENERIC_COLUMNS)}, or an Azure ({', '.join(AZURE_COLUMNS)}), "
        f"BurstGPT ({', '.join(BURSTGPT_COLUMNS)}) or Mooncake JSONL file",
    )


def read_azure(path: Path) -> Trace:
    """Read an Azure LLM inference trace, 2023 or 2024 (whose time stamps carry an offset, ``+00:00``)."""

    def parse(table: TextTable) -> Chunk:
        return (
            _time_stamps(table, "TIMESTAMP"),
            text_table.integers(table, "ContextTokens"),
            text_table.integers(table, "GeneratedTokens"),
        )

    return _read_csv(path, AZURE_COLUMNS, parse, allow_others=False)


def read_burstgpt(path: Path) -> Trace:
    """Read a BurstGPT trace: ``Timestamp`` in seconds; 0 response tokens mark a failed request."""

    def parse(table: TextTable) -> Chunk:
        return (
            text_table.floats(table, "Timestamp"),
            text_table.integers(table, "Request tokens"),
            text_table.integers(table, "Response tokens"),
        )

    return _read_csv(path, BURSTGPT_COLUMNS, parse, allow_others=True)


def read_generic(path: Path) -> Trace:
    """Read the columns arrival_s (non-decreasing), prompt_tokens and output_tokens (>= 1); no others."""
    last_s = -np.inf

    def parse(table: TextTable) -> Chunk:
        nonlocal last_s
        arrival_s = text_table.floats(table, "arrival_s")
        check_order(table, arrival_s, last_s)
        last_s = arrival_s[-1] if len(arrival_s) else last_s
        prompt = text_table.integers(table, "prompt_tokens", minimum=1)
        return arrival_s, prompt, text_table.integers(table, "output_tokens", minimum=1)

    return _read_csv(path, GENERIC_COLUMNS, parse, allow_others=False)


def read_mooncake(path: Path) -> Trace:
    """Read a Mooncake JSONL trace: timestamp in ms, input_length, output_length; hash_ids are not used."""
    return _assemble(path, _mooncake_chunks(path))


def check_order(table: TextTable, arrival_s: np.ndarray, after_s: float) -> None:
    """Raise InputError naming the first arrival before the one above it (``after_s`` above the first)."""
    early = np.diff(arrival_s, prepend=after_s) < 0
    if early.any():
        row = int(np.argmax(early))
        raise input_error(
            f"{arrival_s[row]:g} is before the arrival above it",
            file=table.file,
            row=table.line[row],
            field="arrival_s",
            remedy="sort the rows by arrival",
        )


def _read_csv(
    path: Path, columns: tuple[str, ...], parse: Callable[[TextTable], Chunk], *, allow_others: bool
) -> Trace:
    def chunks() -> Iterator[Chunk]:
        for table in text_table.read_chunks(path):
            text_table.check_columns(table, columns, tuple(table.columns) if allow_others else ())
            yield parse(table)

    return _assemble(path, chunks())


def _mooncake_chunks(path: Path) -> Iterator[Chunk]:
    rows: list[list[float]] = []
    try:
        with open(path, encoding="utf-8-sig") as stream:
            for number, text in enumerate(stream, start=1):
                if text.strip():
                    rows.append(_mooncake_row(path, number, text))
                if len(rows) == text_table.CHUNK_ROWS:
                    yield _mooncake_chunk(rows)
                    rows = []
    except (OSError, UnicodeDecodeError) as error:
        raise text_table.open_error(path, error) from error
    yield _mooncake_chunk(rows)


def _mooncake_chunk(rows: list[list[float]]) -> Chunk:
    values = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return values[:, 0] / 1e3, values[:, 1].astype(np.int32), values[:, 2].astype(np.int32)


def _mooncake_row(path: Path, number: int, text: str) -> list[float]:
    def error(fault: str, remedy: str, field: str | None = None) -> InputError:
        return input_error(fault, file=path, row=number, field=field, remedy=remedy)

    try:
        row = json.loads(text)
    except ValueError as fault:
        raise error(f"is no JSON ({fault})", "give one JSON object per line") from None
    if not isinstance(row, dict):
        raise error("is no JSON object", "give one JSON object per line")
    for field in MOONCAKE_FIELDS:
        if field not in row:
            raise error("is missing", f"give {', '.join(MOONCAKE_FIELDS)}", field)
        value = row[field]
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise error(f"{value!r} is not a finite number", "write a number", field)
        if field != "timestamp" and not (value == int(value) and 0 <= value <= MAX_INT32):
            raise error(f"{value!r} is no number of tokens", "write a whole number >= 0", field)
    return [float(row[field]) for field in MOONCAKE_FIELDS]


def _assemble(path: Path, chunks: Iterable[Chunk]) -> Trace:
    """Join chunks, leave out unservable rows (counted), sort by time, start the clock at 0."""
    arrival, prompt, output = (np.concatenate(c) for c in zip(*chunks, strict=True))
    served = (prompt >= 1) & (output >= 1)
    skipped = int(np.sum(~served))
    if skipped:
        logging.warning(
            "%s: left out %d of %d rows without prompt or output tokens", path, skipped, len(served)
        )
    if not served.any():
        raise input_error("holds no request that can be served", file=path, remedy="give at least one row")
    order = np.argsort(arrival[served], kind="stable")
    arrival = arrival[served][order]
    return Trace(
        arrival_s=arrival - arrival[0],
        prompt_tokens=prompt[served][order],
        output_tokens=output[served][order],
        name=os.path.splitext(os.path.basename(path))[0],
        skipped_rows=skipped,
    )


def _time_stamps(table: TextTable, field: str) -> np.ndarray:
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
    if bad.any():
        row = int(np.argmax(bad))
        raise input_error(
            f"{table.columns[field][row]!r} is no time stamp",
            file=table.file,
            row=table.line[row],
            field=field,
            remedy="write e.g. 2023-11-16 18:15:46.6805900",
        )
    return stamps.astype(np.int64) / 1e9 - offsets


def _is_stamp(cell: str) -> bool:
    try:
        return not np.isnat(np.datetime64(cell, "ns"))
    except ValueError:
        return False


def _first_line(path: Path) -> str:
    try:
        with open(path, encoding="utf-8-sig") as stream:
            return stream.readline(10_000)
    except (OSError, UnicodeDecodeError) as error:
        raise text_table.open_error(path, error) from error
