"""Read a log of iterations: what each one worked on and how long it took."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qos_jax import text_table
from qos_jax.checks import POSITIVE, Interval
from qos_jax.errors import input_error
from qos_jax.files import Path
from qos_jax.logs.units import UNITS, our_names
from qos_jax.text_table import TextTable

COLUMNS = ("batch", "prefill_tokens", "prefill_tokens_sq", "prompt_tokens", "context_tokens", "duration_s")
ALIASES = {"seconds": "duration_s"}
MAX_TOKENS = 2**40  # of a sum of squares, still exact in float64


@dataclasses.dataclass(frozen=True, eq=False)
class IterationLog:
    """R iterations of one expert, decode, prefill or mixed (chunked prefill); arrays [R]."""

    batch: npt.NDArray[np.int64]  # requests that decode in it; 0 = a pure prefill iteration
    prefill_tokens: npt.NDArray[np.int64]  # prompt tokens processed in it; 0 = a decode iteration
    # Sum of c^2 over its prompts of c tokens; (done + chunk)^2 - done^2 for a chunk after ``done`` tokens:
    prefill_tokens_sq: npt.NDArray[np.float64]
    context_tokens: npt.NDArray[np.int64]  # sum of the contexts of the decoding requests
    duration_s: npt.NDArray[np.float64]  # seconds, > 0
    file: str  # its path, for errors

    @property
    def is_prefill(self) -> npt.NDArray[np.bool_]:
        """[R], whether prompt tokens were processed."""
        return self.prefill_tokens > 0


def read_iterations(path: Path, columns: Mapping[str, str] | None = None) -> IterationLog:
    """Read an iteration log from CSV, a row per iteration.

    Columns: ``batch``, ``context_tokens``, ``duration_s`` (or ``seconds``), and for prefill
    ``prefill_tokens`` with ``prefill_tokens_sq``, or in place of the two ``prompt_tokens``, the lengths of
    its prompts separated by spaces (whole prompts; empty in a decode iteration). A log without prefill
    iterations needs none of the three. Other columns are ignored.

    Args:
      path: the file; lines that start with ``#`` are comments.
      columns: the file's own name of a column, with or without ``:unit`` (s, ms, us, ns), by the name above.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    chunks = text_table.read_chunks(path)
    parts = [_read_part(_renamed(chunk, columns or {})) for chunk in chunks]
    return IterationLog(**text_table.concatenated(parts, "iteration", path), file=str(path))


def _renamed(table: TextTable, columns: Mapping[str, str]) -> TextTable:
    """Return a table of just our columns, under our names, times in seconds."""
    found = our_names(table.file, list(table.columns), columns, COLUMNS, ALIASES)
    cells = {ours: _in_seconds(table.columns[theirs], unit) for ours, (theirs, unit) in found.items()}
    return dataclasses.replace(table, columns=cells)


def _in_seconds(cells: list[str], unit: str) -> list[str]:
    return cells if unit == "s" else [_scaled(cell, UNITS[unit]) for cell in cells]


def _scaled(cell: str, per_s: float) -> str:
    try:
        return repr(float(cell) / per_s)
    except ValueError:
        return cell  # which the check of the column names


def _read_part(table: TextTable) -> dict[str, np.ndarray]:
    by_prompt = "prompt_tokens" in table.columns
    by_sum = "prefill_tokens" in table.columns or "prefill_tokens_sq" in table.columns
    if by_prompt and by_sum:
        fault = "is given beside 'prefill_tokens'"
        raise input_error(fault, file=table.file, field="prompt_tokens", remedy="keep one of the two")
    required = ["batch", "context_tokens", "duration_s"]
    required += ["prefill_tokens", "prefill_tokens_sq"] if by_sum else []
    text_table.check_columns(table, required, list(table.columns))
    read: dict[str, np.ndarray] = {
        "batch": text_table.integers(table, "batch").astype(np.int64),
        "context_tokens": text_table.integers(table, "context_tokens").astype(np.int64),
        "duration_s": text_table.floats(table, "duration_s", POSITIVE),
    }
    rows = table.num_rows
    if by_prompt:
        read |= _sums(table)
    elif by_sum:
        read["prefill_tokens"] = text_table.integers(table, "prefill_tokens").astype(np.int64)
        read["prefill_tokens_sq"] = text_table.floats(table, "prefill_tokens_sq", Interval(0, MAX_TOKENS))
    else:
        read |= {"prefill_tokens": np.zeros(rows, np.int64), "prefill_tokens_sq": np.zeros(rows)}
    _check_rows(table, read)
    return read


def _sums(table: TextTable) -> dict[str, np.ndarray]:
    """Return the sums of the prompt lengths and of their squares."""
    total, squares = np.zeros(table.num_rows, np.int64), np.zeros(table.num_rows)
    for row, cell in enumerate(table.columns["prompt_tokens"]):
        parts = cell.split()
        if not all(part.isdecimal() and len(part) < 8 and int(part) > 0 for part in parts):
            remedy = "write whole numbers >= 1 separated by spaces, or nothing"
            raise text_table.cell_error(table, "prompt_tokens", row, "is no list of token counts", remedy)
        tokens = [int(part) for part in parts]
        total[row], squares[row] = sum(tokens), sum(token**2 for token in tokens)
    return {"prefill_tokens": total, "prefill_tokens_sq": squares}


def _check_rows(table: TextTable, read: Mapping[str, np.ndarray]) -> None:
    """Refuse rows whose counts contradict each other."""
    batch, context, prefill = read["batch"], read["context_tokens"], read["prefill_tokens"]
    squares = read["prefill_tokens_sq"]
    rules = (
        ((batch == 0) & (prefill == 0), "batch", "neither decodes nor prefills", "remove the row"),
        (context < batch, "context_tokens", "is below one token per request", "give the sum of contexts"),
        ((batch == 0) & (context > 0), "batch", "is 0 where there is context", "count the decoding requests"),
    )
    for bad, field, fault, remedy in rules:
        text_table.refuse(table, field, bad, fault, remedy)
    bad = (squares < prefill) | ((prefill == 0) & (squares > 0))
    fault, remedy = (
        "cannot be the sum of squares of the prompts' tokens",
        "square each prompt's tokens, then add",
    )
    text_table.refuse(table, "prefill_tokens_sq", bad, fault, remedy)
