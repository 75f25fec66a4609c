"""Read a request log of one server: when each request arrived and got its first and its last token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qos_jax import text_table
from qos_jax.checks import POSITIVE, Interval
from qos_jax.errors import input_error, near_match
from qos_jax.files import Path, read_json_lines
from qos_jax.profiling.log_table import our_names
from qos_jax.text_table import FINITE, TextTable
from qos_jax.text_table import TOKENS as AT_LEAST_ONE

STAMPS = ("arrival_s", "scheduled_s", "first_token_s", "last_token_s")
SPANS = ("ttft_s", "latency_s")  # in place of first_token_s and last_token_s
TOKENS = ("prompt_tokens", "output_tokens")
COLUMNS = (*STAMPS, *SPANS, *TOKENS)
# Names in the logs of vLLM benchmarks; of several stamps of the arrival the engine's own clock comes first.
ALIASES = {
    "queued_ts": "arrival_s",
    "queued_s": "arrival_s",
    "arrival_time": "arrival_s",
    "scheduled_ts": "scheduled_s",
    "first_token_ts": "first_token_s",
    "last_token_ts": "last_token_s",
    "input_toks": "prompt_tokens",
    "input_tokens": "prompt_tokens",
    "output_toks": "output_tokens",
}


@dataclasses.dataclass(frozen=True, eq=False)
class RequestLog:
    """T answered requests of one server in order of arrival; arrays [T], times in seconds."""

    arrival_s: npt.NDArray[np.float64]  # since the first arrival
    start_s: npt.NDArray[np.float64]  # first scheduling, where the log says; else the arrival
    first_token_s: npt.NDArray[np.float64]  # on the same clock
    last_token_s: npt.NDArray[np.float64]  # likewise
    prompt_tokens: npt.NDArray[np.int64]  # >= 1
    output_tokens: npt.NDArray[np.int64]  # >= 1
    file: str  # its path, for errors

    @property
    def num_requests(self) -> int:
        """Number of requests T."""
        return len(self.arrival_s)

    @property
    def ttft_s(self) -> npt.NDArray[np.float64]:
        """[T] seconds from arrival to first token."""
        return self.first_token_s - self.arrival_s

    @property
    def latency_s(self) -> npt.NDArray[np.float64]:
        """[T] seconds from arrival to last token, at the server."""
        return self.last_token_s - self.arrival_s


def read_request_log(path: Path, columns: Mapping[str, str] | None = None) -> RequestLog:
    """Read a request log from JSON lines (a name that ends in ``.jsonl``) or CSV.

    Columns: ``arrival_s``, ``prompt_tokens``, ``output_tokens`` and either the stamps ``first_token_s`` and
    ``last_token_s`` on the clock of ``arrival_s`` or the spans ``ttft_s`` and ``latency_s`` since it;
    optionally ``scheduled_s``. The names of vLLM's benchmark logs are known (``ALIASES``). Other columns are
    ignored; rows may be in any order. Every request that loaded the server must be there, answered: one that
    is left out is load that the fit does not see.

    Args:
      path: the file.
      columns: the file's own name of a column, by the name above.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    if str(path).endswith((".jsonl", ".json")):
        tables = [_read_json_lines(path)]
    else:
        tables = list(text_table.read_chunks(path))
    found = our_names(str(path), list(tables[0].columns), columns or {}, COLUMNS, ALIASES)
    parts = [_read_part(table, found) for table in tables]
    data = text_table.concatenated(parts, "request", path)
    order = np.argsort(data["arrival_s"], kind="stable")
    data = {name: values[order] for name, values in data.items()}
    first_s = data["arrival_s"][0]
    return RequestLog(
        **{name: values - first_s if name.endswith("_s") else values for name, values in data.items()},
        file=str(path),
    )


def _read_json_lines(path: Path) -> TextTable:
    """Return a file of one JSON object a line as a table of text; the fields are those of the first."""
    records = dict(read_json_lines(path))  # by line
    rows = list(records.values())
    names = list(rows[0]) if rows else []
    if not names:
        raise input_error("holds no request", file=path, remedy="give one JSON object a line")
    cells = ([row.get(name) for row in rows] for name in names)  # null and what is missing are empty
    columns = {
        n: ["" if v is None else str(v) for v in values] for n, values in zip(names, cells, strict=True)
    }
    return TextTable(str(path), columns, list(records))


def _read_part(table: TextTable, found: Mapping[str, str]) -> dict[str, np.ndarray]:
    spans = all(name in found for name in SPANS) and not all(name in found for name in STAMPS[2:])
    required = ("arrival_s", *(SPANS if spans else STAMPS[2:]), *TOKENS)
    for name in required:
        if name not in found:
            fault = "column is missing" + near_match(name, table.columns)
            remedy = f"give {', '.join(required)}, or map your own with --column={name}=YOURS"
            raise input_error(fault, file=table.file, field=name, remedy=remedy)

    def numbers(name: str, allowed: Interval = FINITE) -> np.ndarray:
        return text_table.floats(table, found[name], allowed)

    arrival_s = numbers("arrival_s")
    data = {
        "arrival_s": arrival_s,
        "start_s": numbers("scheduled_s") if "scheduled_s" in found else arrival_s,
        **{name: text_table.integers(table, found[name], AT_LEAST_ONE).astype(np.int64) for name in TOKENS},
    }
    if spans:
        data["first_token_s"] = arrival_s + numbers("ttft_s", POSITIVE)
        data["last_token_s"] = arrival_s + numbers("latency_s", POSITIVE)
    else:
        data |= {name: numbers(name) for name in STAMPS[2:]}
    _check_order(table, found, data)
    return data


def _check_order(table: TextTable, found: Mapping[str, str], data: Mapping[str, np.ndarray]) -> None:
    """Refuse stamps that run backwards, which no one clock gives."""
    begin, start, first, last = (
        data[name] for name in ("arrival_s", "start_s", "first_token_s", "last_token_s")
    )
    one_clock = "measure all on one clock, or map the right column with --column"
    rules = (
        (start < begin, "scheduled_s", "is before the arrival", one_clock),
        (first <= begin, "first_token_s", "is not after the arrival", one_clock),
        (first <= start, "first_token_s", "is not after the scheduling", one_clock),
        (last < first, "last_token_s", "is before the first token", one_clock),
        (
            (data["output_tokens"] > 1) & (last == first),
            "last_token_s",
            "is the first token's, yet there are more tokens",
            "give the time of the last one",
        ),
    )
    spans = {"first_token_s": "ttft_s", "last_token_s": "latency_s"}
    for bad, name, fault, remedy in rules:
        text_table.refuse(table, found.get(name) or found.get(spans.get(name, ""), name), bad, fault, remedy)
