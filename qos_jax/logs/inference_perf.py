"""inference-perf: ``per_request_lifecycle_metrics.json``, a JSON list of requests.

Source: a file that version 0.7.0 wrote, and kubernetes-sigs/inference-perf,
inference_perf/reportgen/base.py: seconds of a monotonic clock. ``output_token_times`` repeats a chunk's time
for each of the client tokenizer's tokens, ``chunk_times`` has one a chunk; the server's usage is
``info.response_metrics.server_usage``; a failed request has an ``error`` and 0 input tokens. Older versions
keep the response's fields in ``info`` itself.
"""

from __future__ import annotations

from typing import Any

from qos_jax.logs.layout import Layout
from qos_jax.logs.logged import Logged
from qos_jax.logs.refine import nested, with_notes, with_usage
from qos_jax.logs.source import Source, field_of

NAME = "inference-perf per-request report"
_FIELDS = {
    "arrival_s": "start_time",
    "first_token_s": "info.response_metrics.chunk_times",
    "last_token_s": "info.response_metrics.chunk_times",
    "prompt_tokens": "info.input_tokens",
    "output_tokens": "info.response_metrics.server_usage.completion_tokens",
}


def _read(source: Source) -> Logged:
    rows: list[dict[str, Any]] = []
    counts: list[list[Any]] = []
    for number, record in source.records():
        metrics = field_of(record, "info.response_metrics") or record["info"]
        times = metrics.get("chunk_times") or metrics.get("output_token_times") or [None]
        prompt = field_of(metrics, "server_usage.prompt_tokens")
        rows.append(
            {
                "row": number,
                "cause": "failed" if record.get("error") else "",
                "arrival_s": record.get("start_time"),
                "first_token_s": times[0],
                "last_token_s": times[-1],
                "prompt_tokens": field_of(record, "info.input_tokens") if prompt is None else prompt,
            }
        )
        counts.append([field_of(metrics, "server_usage.completion_tokens"), metrics.get("output_tokens")])
    logged = with_usage(nested(NAME, source.file, rows, _FIELDS), "output_tokens", counts)
    return with_notes(logged, "times: stamps of the first and last chunks (chunk_times)")


INFERENCE_PERF = Layout(NAME, ("start_time", "end_time", "info"), read=_read)
