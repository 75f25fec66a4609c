"""ai-dynamo: per-request reports of a replay (``report_jsonl_path``), one request a line.

Source: a file that ``run_trace_replay(..., capture_per_request=True)`` of version 1.6.1 wrote: milliseconds
from the smallest arrival. ``terminal_status`` other than "completed" is a request that was not answered;
``reused_input_tokens`` are prompt tokens found in a prefix cache.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qos_jax.logs.layout import Layout, Texts
from qos_jax.logs.logged import Logged
from qos_jax.logs.refine import drop_aborted, reused_note, servers_note, with_notes


def _refine(logged: Logged, texts: Texts) -> Logged:
    status = texts.get("terminal_status", [""] * len(logged.row))
    cause = ["" if state in ("", "completed") else state for state in status]
    logged = _prompts_alone(dataclasses.replace(logged, cause=np.array(cause, object)), texts)
    reused = [float(text or 0) for text in texts.get("reused_input_tokens", ())]
    kept = logged.is_answered
    note = reused_note(logged.values["prompt_tokens"][kept], np.array(reused)[kept]) if reused else ""
    servers = servers_note(texts.get("decode_worker_idx", ()), "decode workers")
    return with_notes(drop_aborted(logged, texts), note, servers)


def _prompts_alone(logged: Logged, texts: Texts) -> Logged:
    """Keep completed requests of no output, which load the server with their prompt, as ones of one token."""
    values = dict(logged.values)
    done_s = np.array([float(text or "nan") for text in texts.get("terminal_time_ms", ())]) / 1e3
    if not len(done_s) or "first_token_s" not in values or "last_token_s" not in values:
        return logged
    alone = logged.is_answered & (values["output_tokens"] == 0) & ~np.isnan(done_s)
    values["output_tokens"] = np.where(alone, 1, values["output_tokens"])
    for name in ("first_token_s", "last_token_s"):
        values[name] = np.where(alone, done_s, values[name])
    note = f"{np.sum(alone)} requests of no output are kept as ones of one token" if alone.any() else ""
    return with_notes(dataclasses.replace(logged, values=values), note)


DYNAMO = Layout(
    "ai-dynamo replay report",
    ("arrival_time_ms", "first_token_ms", "input_length", "output_length"),
    {
        "arrival_time_ms:ms": "arrival_s",
        "first_admit_ms:ms": "scheduled_s",
        "first_token_ms:ms": "first_token_s",
        "last_token_ms:ms": "last_token_s",
        "ttft_ms:ms": "ttft_s",
        "e2e_latency_ms:ms": "latency_s",
        "input_length": "prompt_tokens",
        "output_length": "output_tokens",
    },
    ("terminal_status", "terminal_time_ms", "reused_input_tokens", "decode_worker_idx"),
    _refine,
)
