"""AIPerf: ``profile_export.jsonl``, one request a line.

Source: files that version 0.13.0 wrote, and ai-dynamo/aiperf,
src/aiperf/common/models/record_export_models.py: ``metadata`` in epoch nanoseconds, ``metrics.NAME`` =
{value, unit}. ``inter_token_latency`` and ``output_sequence_length`` are by the client's tokenizer. Failed
requests end when they start; a cancelled one has code 499. With a concurrency limit the time a request was
due stands nowhere: it arrives when it is sent.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qos_jax.errors import input_error
from qos_jax.logs.layout import Layout
from qos_jax.logs.logged import Logged
from qos_jax.logs.refine import nested, with_notes, with_usage
from qos_jax.logs.source import Record, Source, field_of
from qos_jax.logs.units import UNITS

NAME = "aiperf profile export"
_FIELDS = {
    "arrival_s": "metadata.request_start_ns",
    "ttft_s": "metrics.time_to_first_token",
    "latency_s": "metrics.request_latency",
    "prompt_tokens": "metrics.usage_prompt_tokens",
    "output_tokens": "metrics.usage_completion_tokens",
}
_COUNTS = {
    "prompt_tokens": ("usage_prompt_tokens", "input_sequence_length"),
    "output_tokens": ("usage_completion_tokens", "output_sequence_length"),
}


def _read(source: Source) -> Logged:
    records = list(source.records())
    starts = [_start_ns(source.file, row, record) for row, record in records]
    origin = min(starts, default=0)  # taken off as whole numbers, as float64 rounds epoch ns to 256 ns
    rows: list[dict[str, Any]] = []
    for (row, record), start in zip(records, starts, strict=True):
        ttft_s = _seconds(record, "time_to_first_token")
        gaps_s = _seconds(record, "inter_chunk_latency")
        latency_s = _seconds(record, "request_latency") if gaps_s is None else (ttft_s or 0.0) + gaps_s
        arrival_s = (start - origin) / 1e9
        times = {"arrival_s": arrival_s, "ttft_s": ttft_s, "latency_s": latency_s}
        rows.append({"row": row, "cause": _cause(record), **times})
    logged = nested(NAME, source.file, rows, _FIELDS)
    for name, metrics in _COUNTS.items():
        counts = [[field_of(record, f"metrics.{m}.value") for m in metrics] for _, record in records]
        logged = with_usage(logged, name, counts)
    return with_notes(
        logged, "times: last tokens are TTFT plus the gaps between chunks (inter_chunk_latency)"
    )


def _start_ns(file: str, row: int, record: Record) -> int:
    start = field_of(record, "metadata.request_start_ns")
    if not isinstance(start, int):
        fault, remedy = f"{start!r} is no time in nanoseconds", "give the file as aiperf wrote it"
        raise input_error(fault, file=file, row=row, field="request_start_ns", remedy=remedy)
    return start


def _cause(record: Record) -> str:
    if field_of(record, "metadata.benchmark_phase") not in (None, "profiling"):
        return "warm-up"
    if field_of(record, "metadata.was_cancelled") or field_of(record, "error.code") == 499:
        return "cancelled"
    return "failed" if record.get("error") else ""


def _seconds(record: Record, name: str) -> float | None:
    """Return a metric in seconds, of a list the sum; None if it is missing."""
    value = field_of(record, f"metrics.{name}.value")
    if value is None:
        return None
    return float(np.sum(value)) / UNITS[field_of(record, f"metrics.{name}.unit") or "ms"]


AIPERF = Layout(NAME, ("metadata", "metrics"), read=_read)
