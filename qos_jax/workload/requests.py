"""The requests of one run as a CSV file: arrivals, the request table and an optional assignment."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from absl import logging

from qos_jax import text_table
from qos_jax.checks import COUNT_OR_ZERO, NON_NEGATIVE, SHARE, Interval
from qos_jax.errors import input_error, near_match
from qos_jax.files import Path, write_csv
from qos_jax.text_table import MAX_INT32, TOKENS, TextTable
from qos_jax.workload.fleet import DROP_NAME
from qos_jax.workload.prefix_column import PATH_COLUMN, as_levels, path_cells, read_paths
from qos_jax.workload.prefix_paths import with_paths
from qos_jax.workload.request_table import PREFIX_COLUMNS, RequestTable
from qos_jax.workload.trace import Trace

DROPPED = -1  # the value of ``Requests.expert`` for a request that is refused
TRUTH_OF = {"predicted_output_tokens": "output_tokens", "predicted_quality": "quality"}
REQUIRED_PER_EXPERT = tuple(TRUTH_OF.values())
MIN_PREDICTED_TOKENS = 1e-3  # a predicted median below it is a mistake, and 0 has no logarithm
_ALLOWED = {
    "output_tokens": TOKENS,
    "quality": SHARE,
    "predicted_output_tokens": Interval(MIN_PREDICTED_TOKENS, MAX_INT32),
    "predicted_quality": SHARE,
}


class Requests(NamedTuple):
    """The T requests of one run, in order of arrival."""

    arrival_s: npt.NDArray[np.float64]  # [T] float64, seconds, >= 0, non-decreasing
    table: RequestTable  # M = T rows, NumPy leaves
    expert: npt.NDArray[np.int32] | None  # [T] int32 index, -1 = drop; None: routed by a policy


def read_requests(path: Path, expert_names: Sequence[str]) -> Requests:
    """Read requests from CSV.

    Columns: ``arrival_s``, ``prompt_tokens``; ``output_tokens`` and ``quality``, each either once for all
    experts or as ``name.EXPERT`` for every expert; likewise, optionally, ``predicted_output_tokens``
    (medians) and ``predicted_quality``, which default to the truth with a logged warning; optionally
    ``expert``, the expert each request is assigned to by name, where an empty cell or ``drop`` refuses it;
    optionally ``prefix_group``, a whole number, and ``prefix_tokens``: a request shares its first
    ``prefix_tokens`` with every earlier one of its group, an empty group or 0 tokens with none; with both
    perhaps ``prefix_path``, the groups around that group, see ``prefix_column``.

    Args:
      path: the file; lines that start with ``#`` are comments.
      expert_names: the N names of the fleet, in its order.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    chunks = text_table.read_chunks(path)
    first = next(chunks)
    sources = _check_columns(first, expert_names)
    parts: list[dict[str, np.ndarray]] = []
    last_s = 0.0
    for table in itertools.chain([first], chunks):
        arrival_s = text_table.floats(table, "arrival_s", NON_NEGATIVE)
        last_s = text_table.check_order(table, arrival_s, last_s)
        read: dict[str, np.ndarray] = {
            "arrival_s": arrival_s,
            "prompt_tokens": text_table.integers(table, "prompt_tokens", TOKENS),
        }
        for field, columns in sources.items():
            by_column = {c: text_table.leaf(table, c, _ALLOWED[field]) for c in dict.fromkeys(columns)}
            read[field] = np.stack([by_column[c] for c in columns], axis=1)
        if "prefix_group" in table.columns:
            read |= _prefixes(table, read["prompt_tokens"])
        if PATH_COLUMN in table.columns:
            read[PATH_COLUMN] = read_paths(table, read["prefix_group"])
        if "expert" in table.columns:
            read["expert"] = _expert_indices(table, expert_names)
        parts.append(read)
    data = text_table.concatenated(parts, "request", path)
    for field, truth in TRUTH_OF.items():
        if field not in data:
            logging.warning("%s: no column %s, so the router is given the true %s", path, field, truth)
            data[field] = data[truth].astype(np.float32)
    arrival_s, expert = data.pop("arrival_s"), data.pop("expert", None)
    fields: dict[str, Any] = data
    if PATH_COLUMN in data:
        fields[PATH_COLUMN] = as_levels(data[PATH_COLUMN]) or None
    return Requests(arrival_s, RequestTable(**fields), expert)


def requests_of_trace(trace: Trace, num_experts: int) -> Requests:
    """Return the requests of a trace, which every expert answers with the recorded length.

    A trace says nothing of quality, so that every answer counts as 1, which a logged warning says.
    """
    logging.warning(
        "%s: a trace has no qualities, so every answer counts as 1; the router is given the true lengths",
        trace.name,
    )
    ones = np.ones((trace.num_requests, num_experts), np.float32)
    output_tokens = np.repeat(trace.output_tokens[:, None], num_experts, axis=1)
    table: Any = RequestTable(
        prompt_tokens=trace.prompt_tokens,  # type: ignore[arg-type]
        quality=ones,  # type: ignore[arg-type]
        output_tokens=output_tokens,  # type: ignore[arg-type]
        predicted_quality=ones,  # type: ignore[arg-type]
        predicted_output_tokens=output_tokens.astype(np.float32),  # type: ignore[arg-type]
    )
    if trace.prefixes is not None:
        table = with_paths(table, trace.prefixes)
    return Requests(trace.arrival_s, table, None)


def write_requests(
    path: Path, requests: Requests, expert_names: Sequence[str], comments: Sequence[str] = ()
) -> None:
    """Write requests so that :func:`read_requests` returns them again; whole or not at all.

    Args:
      path: the file.
      requests: T requests.
      expert_names: the N names of the fleet, in its order.
      comments: lines put first, each behind a ``#``.
    """
    table = requests.table
    fields = (*REQUIRED_PER_EXPERT, *TRUTH_OF)
    header = ["arrival_s", "prompt_tokens", *(f"{f}.{name}" for f in fields for name in expert_names)]
    columns: list[list[Any]] = [requests.arrival_s.tolist(), np.asarray(table.prompt_tokens).tolist()]
    for field in fields:
        values = np.asarray(getattr(table, field))
        columns += [[_text(value) for value in column] for column in values.T]
    if table.prefix_group is not None:
        header += PREFIX_COLUMNS
        group = [value if value >= 0 else "" for value in np.asarray(table.prefix_group).tolist()]
        columns += [group, np.asarray(table.prefix_tokens).tolist()]
    if table.prefix_path is not None:
        header.append(PATH_COLUMN)
        columns.append(path_cells(table.prefix_path))
    if requests.expert is not None:
        names = [*expert_names, DROP_NAME]  # -1 picks the last
        header.append("expert")
        columns.append([names[index] for index in requests.expert])
    write_csv(path, header, zip(*columns, strict=True), comments)


def _text(value: np.integer | np.floating) -> str:
    """Return the shortest decimal that reads back as the same number."""
    return np.format_float_positional(value, trim="-")


def _check_columns(table: TextTable, names: Sequence[str]) -> dict[str, list[str]]:
    """Return, per field given, the column of each expert; refuse unknown, missing and doubled columns."""
    per_expert = (*REQUIRED_PER_EXPERT, *TRUTH_OF)
    sources: dict[str, list[str]] = {}
    for column in table.columns:
        field, dot, expert = column.partition(".")
        if dot and field in per_expert and expert not in names:
            fault = f"no expert {expert!r} in the fleet{near_match(expert, names)}"
            raise input_error(fault, file=table.file, field=column, remedy=f"use one of {', '.join(names)}")
    for field in per_expert:
        own = [f"{field}.{name}" for name in names]
        given = [column for column in own if column in table.columns]
        if field in table.columns and given:
            fault = f"is given both for all experts and as {given[0]!r}"
            raise input_error(fault, file=table.file, field=field, remedy="keep one of the two")
        if given and len(given) < len(own):
            missing = next(column for column in own if column not in table.columns)
            raise input_error(
                "column is missing", file=table.file, field=missing, remedy="give one for every expert"
            )
        if given or field in table.columns:
            sources[field] = own if given else [field] * len(names)
    required = ["arrival_s", "prompt_tokens", *(f for f in REQUIRED_PER_EXPERT if f not in sources)]
    if any(field in table.columns for field in (*PREFIX_COLUMNS, PATH_COLUMN)):
        required += PREFIX_COLUMNS
    optional = ["expert", PATH_COLUMN, *per_expert, *(c for columns in sources.values() for c in columns)]
    text_table.check_columns(table, required, optional)
    return sources


def _prefixes(table: TextTable, prompt_tokens: npt.NDArray[np.int32]) -> dict[str, np.ndarray]:
    """Return the columns of prefixes; a request without a group has group -1 and shares nothing."""
    cells = table.columns["prefix_group"]
    filled = ["0" if cell == "" else cell for cell in cells]
    numbers = dataclasses.replace(table, columns={**table.columns, "prefix_group": filled})
    group = text_table.integers(numbers, "prefix_group", COUNT_OR_ZERO)
    tokens = text_table.integers(table, "prefix_tokens", COUNT_OR_ZERO)
    if np.any(tokens > prompt_tokens):
        row = int(np.argmax(tokens > prompt_tokens))
        fault = f"is above its prompt_tokens {prompt_tokens[row]}"
        raise text_table.cell_error(
            table, "prefix_tokens", row, fault, "give what the prompt shares of itself"
        )
    shares = np.array([cell != "" for cell in cells])
    return {
        "prefix_group": np.where(shares, group, -1).astype(np.int32),
        "prefix_tokens": np.where(shares, tokens, 0).astype(np.int32),
    }


def _expert_indices(table: TextTable, names: Sequence[str]) -> npt.NDArray[np.int32]:
    index = {name: i for i, name in enumerate(names)} | {"": DROPPED, DROP_NAME: DROPPED}
    cells = table.columns["expert"]
    try:
        return np.array([index[cell] for cell in cells], dtype=np.int32)
    except KeyError:
        row = next(k for k, cell in enumerate(cells) if cell not in index)
        fault = f"is no expert of the fleet{near_match(cells[row], names)}"
        remedy = f"use one of {', '.join(names)}, or {DROP_NAME}"
        raise text_table.cell_error(table, "expert", row, fault, remedy) from None
