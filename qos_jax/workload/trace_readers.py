"""Read traces of public formats: Azure LLM inference 2023/2024, Mooncake, BurstGPT, and a generic CSV.

Recorded traces hold failed requests. A row with no prompt token or no output token cannot be served: the
readers of the recorded formats leave it out, count it in ``Trace.skipped_rows`` and log the count; the
generic CSV, which people write by hand, refuses it. Recorded rows out of time order are sorted (stably); the
generic CSV refuses them too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging

from qos_jax import text_table
from qos_jax.errors import input_error
from qos_jax.files import Path, open_text, read_json_lines
from qos_jax.text_table import MAX_INT32, TOKENS, TOKENS_OR_ZERO, TextTable
from qos_jax.workload.trace import Trace

# Per format, the columns of the arrival, the prompt tokens and the output tokens.
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
GENERIC_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length")
_CSV_FORMATS = (AZURE_COLUMNS, BURSTGPT_COLUMNS, GENERIC_COLUMNS)
_OFFSET = re.compile(r"(?:Z|([+-])(\d\d):?(\d\d))$")

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]  # arrival in seconds, prompt tokens, output tokens


def read_trace(path: Path) -> Trace:
    """Read a trace in any known format, recognised by its header or by a first line that is a JSON object.

    - Azure LLM inference 2023 and 2024 (CSV): ``TIMESTAMP`` (ISO, the later one with an offset such as
      ``+00:00``), ``ContextTokens``, ``GeneratedTokens``.
    - BurstGPT (CSV): ``Timestamp`` in seconds, ``Request tokens``, ``Response tokens``, any other columns.
    - Mooncake (JSON Lines): ``timestamp`` in milliseconds, ``input_length``, ``output_length``; other fields,
      such as ``hash_ids``, are not read.
    - Generic (CSV): ``arrival_s`` (seconds, non-decreasing), ``prompt_tokens`` and ``output_tokens`` (>= 1).

    Returns:
      The trace, named by the file's name without its ending.

    Raises:
      InputError: no known header, or naming file, row, field and remedy of the first fault found.
    """
    with open_text(path) as stream:
        is_json = stream.readline(10_000).lstrip().startswith("{")
    if is_json:
        return _assemble(path, _mooncake_chunks(path))
    header = next(text_table.read_chunks(path)).columns
    for columns in _CSV_FORMATS:
        if all(column in header for column in columns):
            return _assemble(path, _csv_chunks(path, columns))
    raise input_error(
        f"the header {', '.join(header)} is of no known trace format",
        file=path,
        remedy=f"give {', '.join(GENERIC_COLUMNS)}, or an Azure ({', '.join(AZURE_COLUMNS)}), "
        f"BurstGPT ({', '.join(BURSTGPT_COLUMNS)}) or Mooncake JSONL file",
    )


def _csv_chunks(path: Path, columns: tuple[str, str, str]) -> Iterator[Chunk]:
    arrival, prompt, output = columns
    least = TOKENS if columns == GENERIC_COLUMNS else TOKENS_OR_ZERO
    last_s = -np.inf
    for table in text_table.read_chunks(path):
        text_table.check_columns(table, columns, tuple(table.columns) if columns == BURSTGPT_COLUMNS else ())
        if columns == AZURE_COLUMNS:
            arrival_s = _time_stamps(table, arrival)
        else:
            arrival_s = text_table.floats(table, arrival)
        if columns == GENERIC_COLUMNS:
            last_s = text_table.check_order(table, arrival_s, last_s)
        yield arrival_s, text_table.integers(table, prompt, least), text_table.integers(table, output, least)


def _mooncake_chunks(path: Path) -> Iterator[Chunk]:
    rows: list[list[float]] = []
    for line, record in read_json_lines(path):
        rows.append(_mooncake_row(path, line, record))
        if len(rows) == text_table.CHUNK_ROWS:
            yield _mooncake_chunk(rows)
            rows = []
    yield _mooncake_chunk(rows)


def _mooncake_chunk(rows: list[list[float]]) -> Chunk:
    values = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return values[:, 0] / 1e3, values[:, 1].astype(np.int32), values[:, 2].astype(np.int32)


def _mooncake_row(path: Path, line: int, record: dict[str, Any]) -> list[float]:
    for field in MOONCAKE_FIELDS:
        value = record.get(field)
        if field not in record:
            fault, remedy = "is missing", f"give {', '.join(MOONCAKE_FIELDS)}"
        elif isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            fault, remedy = f"{value!r} is not a finite number", "write a number"
        elif field != "timestamp" and not (value == int(value) and 0 <= value <= MAX_INT32):
            fault, remedy = f"{value!r} is no number of tokens", "write a whole number >= 0"
        else:
            continue
        raise input_error(fault, file=path, row=line, field=field, remedy=remedy)
    return [float(record[field]) for field in MOONCAKE_FIELDS]


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
    text_table.refuse(table, field, bad, "is no time stamp", "write e.g. 2023-11-16 18:15:46.6805900")
    return stamps.astype(np.int64) / 1e9 - offsets


def _is_stamp(cell: str) -> bool:
    try:
        return not np.isnat(np.datetime64(cell, "ns"))
    except ValueError:
        return False
