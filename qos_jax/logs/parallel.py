"""Benchmark results of parallel lists, one element a request, one object a run: vLLM's and SGLang's.

All lists are in seconds: ``ttfts``, ``itls`` (gaps between chunks), ``start_times`` (a monotonic clock);
``input_lens`` and ``output_lens`` in tokens; ``errors`` holds a text, empty for a request that was answered.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from qos_jax.errors import input_error
from qos_jax.logs.logged import Logged
from qos_jax.logs.refine import with_notes
from qos_jax.logs.source import Record, Source

_FIELDS = {
    "arrival_s": "start_times",
    "first_token_s": "ttfts",
    "last_token_s": "itls",
    "prompt_tokens": "input_lens",
    "output_tokens": "output_lens",
}
_PAUSE_S = 1.0  # between two runs whose clocks overlap


def read_runs(source: Source, layout: str, flag: str) -> Logged:
    """Read the runs of a file, one JSON object each, as one log: a run after the other on one clock.

    The arrival is the time a request was due: its start less the time that the client held it back.

    Args:
      source: the file.
      layout: name of the layout.
      flag: of the benchmark, without which it writes no lists.

    Raises:
      InputError: a run without lists, lists of different lengths or without times, a list of no numbers.
    """
    parts: list[dict[str, np.ndarray]] = []
    notes: dict[str, None] = {}
    end_s = -np.inf
    for row, run in source.records():
        part = _read_run(source.file, row, run, flag, notes)
        if not len(part["arrival_s"]):
            continue
        if parts and not np.min(part["arrival_s"]) >= end_s:
            shift_s = end_s + _PAUSE_S - np.min(part["arrival_s"])
            for name in ("arrival_s", "first_token_s", "last_token_s"):
                part[name] = part[name] + shift_s
        end_s = max(end_s, np.nanmax([part["arrival_s"], part["last_token_s"]]))
        parts.append(part)
    if not parts:
        raise input_error("holds no request", file=source.file, remedy=f"run the benchmark with {flag}")
    if len(parts) > 1:
        notes[f"holds {len(parts)} runs, read as one log, one after the other"] = None
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    cause = joined.pop("cause")
    rows = np.arange(1, len(cause) + 1)
    logged = Logged(
        source.file, layout, rows, joined, cause, fields={k: (v, "s") for k, v in _FIELDS.items()}
    )
    return with_notes(logged, *notes)


def _read_run(file: str, row: int, run: Record, flag: str, notes: dict[str, None]) -> dict[str, np.ndarray]:
    if any(name not in run for name in ("input_lens", "output_lens", "ttfts")):
        fault = f"holds summaries alone, as it was written without {flag}"
        raise input_error(fault, file=file, row=row, remedy=f"run the benchmark again with {flag}")
    count = len(run["input_lens"])

    def numbers(name: str) -> npt.NDArray[np.float64]:
        values = run[name]
        if not isinstance(values, list) or len(values) != count:
            raise input_error(f"is no list of {count}", file=file, row=row, field=name, remedy=_REMEDY)
        try:
            return np.array([np.nan if v is None else v for v in values], np.float64)
        except (TypeError, ValueError):
            raise input_error(
                "is no list of numbers", file=file, row=row, field=name, remedy=_REMEDY
            ) from None

    ttft_s = numbers("ttfts")
    if run.get("itls"):
        totals = {"itls": [sum(gaps) if isinstance(gaps, list) else gaps for gaps in run["itls"]]}
        run = {**run, **totals}
        span_s = ttft_s + numbers("itls")
        notes["times: last tokens are TTFT plus the gaps between chunks (itls)"] = None
    else:
        span_s = numbers("latencies") if "latencies" in run else ttft_s
    errors: list[Any] = run.get("errors") or [""] * count
    output_tokens = numbers("output_lens")
    cause = np.array(["failed" if error else "" for error in errors], object)
    cause[(cause == "") & ~(output_tokens > 0)] = "without an output token"
    start_s = _start_s(file, row, run, span_s, notes) if "start_times" not in run else numbers("start_times")
    queue_s = numbers("queue_times") if run.get("queue_times") else np.zeros(count)
    limit = run.get("max_concurrency")
    if np.nanmax(queue_s, initial=0.0) > 1e-3:
        held = f"the client held requests back for up to {np.nanmax(queue_s):.3g} s, which counts as waiting"
        notes[held + (f": a server of --max_running={limit} waits as long" if limit else "")] = None
    return {
        "arrival_s": start_s - np.nan_to_num(queue_s),
        "first_token_s": start_s + ttft_s,
        "last_token_s": start_s + span_s,
        "prompt_tokens": numbers("input_lens"),
        "output_tokens": output_tokens,
        "cause": cause,
    }


_REMEDY = "give the file as the benchmark wrote it"


def _start_s(
    file: str, row: int, run: Record, span_s: npt.NDArray[np.float64], notes: dict[str, None]
) -> npt.NDArray[np.float64]:
    """Return starts of a run whose file has none: at a rate of infinity, as the limit lets them start.

    Raises:
      InputError: at another rate the gaps were drawn at random, and stand nowhere.
    """
    rate = run.get("request_rate")
    if rate not in ("inf", np.inf):
        fault = f"holds no time of arrival, and gaps at request_rate {rate} are random"
        remedy = (
            "run it with --request-rate inf and --max-concurrency, or a benchmark that writes start_times"
        )
        raise input_error(fault, file=file, row=row, field="start_times", remedy=remedy)
    limit = int(run.get("max_concurrency") or len(span_s))
    notes[f"start times are not in the file: rebuilt for {limit} requests at once (max_concurrency)"] = None
    free_s = [0.0] * limit
    starts: list[float] = []
    for span in np.nan_to_num(span_s).tolist():
        starts.append(heapq.heappop(free_s))
        heapq.heappush(free_s, starts[-1] + span)
    return np.array(starts)
