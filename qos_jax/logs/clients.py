"""Logs of clients in plain columns: llama.cpp's timings beside the client's, LMCache's multi-round QA."""

from __future__ import annotations

from qos_jax.logs.generic import GENERIC
from qos_jax.logs.layout import Layout, Texts
from qos_jax.logs.logged import Logged
from qos_jax.logs.refine import CACHED, drop_aborted, with_notes, with_reuse


def _llama_cpp(logged: Logged, texts: Texts) -> Logged:
    logged = drop_aborted(logged, texts)
    logged = with_notes(logged, "times: the client's, as the server's leave out the time queued")
    return with_reuse(logged, texts)


# llama-server of 2026: the timings prompt_ms and predicted_ms of a completion, in milliseconds,
# and the prompt tokens that it found in its cache, which a client writes beside its own times, in seconds.
LLAMA_CPP = Layout(
    "llama.cpp client log",
    ("arrival_s", "first_token_s", "last_token_s", "server_prompt_ms"),
    GENERIC.columns,
    (CACHED,),
    _llama_cpp,
)

# LMCache/LMCache at commit 2cdc3a8, benchmarks/multi_round_qa/multi-round-qa.py: launch_time and finish_time
# in epoch seconds, ttft and generation_time (first to last token) in seconds; token counts are the server's
# usage.
MULTI_ROUND_QA = Layout(
    "LMCache multi-round QA summary",
    ("prompt_tokens", "generation_tokens", "ttft", "launch_time", "finish_time"),
    {
        "launch_time": "arrival_s",
        "ttft": "ttft_s",
        "finish_time": "last_token_s",
        "generation_tokens": "output_tokens",
    },
    (),
    drop_aborted,
)
