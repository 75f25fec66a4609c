"""vLLM: results of ``vllm bench serve``, and per-request stamps of its engine.

Source: vllm-project/vllm at commit 009e6d4, vllm/benchmarks/serve.py (older ones lack ``latencies``,
``queue_times`` or ``start_times``): ``start_times`` is time.perf_counter after the --max-concurrency
semaphore, ``queue_times`` the wait for it; all lists in seconds, summaries in ms; --append-result writes an
object a line. Per-request stamps: a file of version 0.19.0 that LLMServingSim's bench/ publishes (queued_ts,
scheduled_ts, first_token_ts, last_token_ts in seconds of one monotonic clock; arrival_time is wall-clock
time).
"""

from __future__ import annotations

from qos_jax.logs.layout import Layout
from qos_jax.logs.parallel import read_runs
from qos_jax.logs.refine import drop_aborted

VLLM_REQUESTS = Layout(
    "vLLM per-request log",
    ("queued_ts", "first_token_ts", "last_token_ts"),
    {
        "queued_ts": "arrival_s",
        "scheduled_ts": "scheduled_s",
        "first_token_ts": "first_token_s",
        "last_token_ts": "last_token_s",
        "input_toks": "prompt_tokens",
        "input_tokens": "prompt_tokens",
        "output_toks": "output_tokens",
    },
    (),
    drop_aborted,
)
VLLM_BENCH = Layout(
    "vLLM bench serve result",
    ("request_throughput", "completed"),
    read=lambda source: read_runs(source, "vLLM bench serve result", "--save-detailed"),
)
