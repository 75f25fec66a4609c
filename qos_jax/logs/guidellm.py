"""GuideLLM: ``benchmarks.json``, one document of several benchmarks.

Source: a file that version 0.8.1 wrote, and vllm-project/guidellm,
src/guidellm/schemas/base/request_stats.py: epoch seconds, but fields in ``_ms``.
``time_per_output_token_ms`` holds the first token's wait, and ``inter_token_latency_ms`` is what others call
TPOT; ``targeted_start`` may be years off; token counts are the server's for a request that succeeded, where
it gives them, and the client's for others; ``cached_tokens`` were found in a prefix cache. A request that
the benchmark's end cut off (``incomplete``) is kept with the tokens that it got.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qos_jax.errors import input_error
from qos_jax.logs.layout import Layout
from qos_jax.logs.logged import Logged
from qos_jax.logs.refine import nested, reused_note, with_notes
from qos_jax.logs.source import Record, Source, field_of

NAME = "guidellm benchmarks"
_FIELDS = {
    "arrival_s": "request_start_time",
    "first_token_s": "info.timings.first_token_iteration",
    "last_token_s": "info.timings.last_token_iteration",
    "prompt_tokens": "prompt_tokens",
    "output_tokens": "output_tokens",
}
_CAUSES = {"successful": "", "incomplete": "cut off without a token", "errored": "failed"}


def _read(source: Source) -> Logged:
    _, document = next(source.records())
    benchmarks = document["benchmarks"]
    rows: list[dict[str, Any]] = []
    kept = 0
    for benchmark in benchmarks if isinstance(benchmarks, list) else []:
        for state, cause in _CAUSES.items():
            for request in field_of(benchmark, f"requests.{state}") or []:
                row = _row(request, len(rows) + 1)
                partial = state == "incomplete" and (row["output_tokens"] or 0) > 0 and row["last_token_s"]
                kept += bool(partial)
                rows.append(row | {"cause": "" if partial else cause})
    if not rows:
        remedy = "write benchmarks.json with its requests, not a sample of them"
        raise input_error("holds no request", file=source.file, field="benchmarks", remedy=remedy)
    cached = [row.pop("cached_tokens") or 0 for row in rows]
    several = f"holds {len(benchmarks)} benchmarks, read as one log" if len(benchmarks) > 1 else ""
    cut = f"{kept} requests cut off at the end are kept with the tokens they got" if kept else ""
    tokens = "tokens: the server's usage, as guidellm takes it for requests that succeed"
    stamps = "times: stamps of the first and last chunks (info.timings)"
    logged = nested(NAME, source.file, rows, _FIELDS)
    answered = logged.is_answered
    shared = reused_note(logged.values["prompt_tokens"][answered], np.array(cached, np.float64)[answered])
    return with_notes(logged, tokens, stamps, several, cut, shared)


def _row(request: Record, number: int) -> dict[str, Any]:
    start = request.get("request_start_time")
    first, last = (field_of(request, f"info.timings.{name}_token_iteration") for name in ("first", "last"))
    ttft_ms, latency = request.get("time_to_first_token_ms"), request.get("request_latency")
    if start is not None:
        first = start + ttft_ms / 1e3 if first is None and ttft_ms is not None else first
        last = start + latency if last is None and latency is not None else last
    tokens = request.get("output_tokens")
    return {
        "row": number,
        "arrival_s": start,
        "first_token_s": first,
        "last_token_s": last,
        "prompt_tokens": request.get("prompt_tokens"),
        "cached_tokens": request.get("cached_tokens"),
        "output_tokens": field_of(request, "info.timings.token_iterations") if tokens is None else tokens,
    }


GUIDELLM = Layout(NAME, ("benchmarks",), read=_read)
