"""Every layout's file of the same four requests, and what reading it gives beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from tests.logs.tool_files import (
    ARRIVAL_S,
    EPOCH_S,
    REQUESTS,
    aiperf,
    azure,
    dynamo,
    guidellm,
    inference_perf,
    lines,
    llmservingsim,
    ns,
    run_of_lists,
    table,
    trace,
    vidur_metrics,
    vllm_appended,
    vllm_bench,
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A file of one layout, and what reading it gives beside the four requests."""

    layout: str
    text: str
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()  # parts of its notes
    has_times: bool = True


STAMPED = [(353_399 + a, 353_399 + a, 353_399 + a + t, 353_399 + a + e, p, n) for a, p, n, t, e in REQUESTS]
VLLM_STAMPS = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts", "input_toks", "output_toks")
ABORTED = dict(zip(VLLM_STAMPS, (353_400.0, 353_400.0, 0.0, 0.0, 50, 0), strict=True))
GENERIC_FIELDS = ("arrival_us", "prompt_tokens", "output_tokens", "ttft_s", "latency_ns", "success")
FAILED = {"failed": 1}
SHAPES = {
    "vllm_bench": Shape(
        "vLLM bench serve result",
        vllm_bench(),
        FAILED,
        ("chunks (itls)", "held requests back", "max_running=8"),
    ),
    "vllm_appended": Shape("vLLM bench serve result", vllm_appended(), {}, ("2 runs",)),
    "vllm_requests": Shape(
        "vLLM per-request log",
        lines(
            dict(zip(VLLM_STAMPS, row, strict=True)) | {"request_id": "bench-0", "arrival_time": 1.7e9}
            for row in STAMPED
        )
        + lines([ABORTED]),
        {"aborted": 1},
        ("not known", "columns not read: request_id, arrival_time"),
    ),
    "sglang": Shape(
        "SGLang bench_serving result",
        lines(
            [
                run_of_lists(
                    backend="sglang",
                    request_rate="trace",
                    max_concurrency=None,
                    total_output_tokens_retokenized=18,
                    start_times=[5.0 + a for a in (*ARRIVAL_S, 3.0)],
                )
            ]
        ),
        FAILED,
    ),
    "aiperf": Shape(
        "aiperf profile export",
        aiperf(),
        {"cancelled": 1, "failed": 1, "warm-up": 1},
        ("prompt_tokens: the server's usage", "counts 18 where the server says 4.5", "inter_chunk_latency"),
    ),
    "guidellm": Shape(
        "guidellm benchmarks",
        guidellm(),
        {"cut off without a token": 1, "failed": 1},
        ("server's usage", "1 requests cut off at the end are kept", "20% of the prompt tokens"),
    ),
    "inference_perf": Shape(
        "inference-perf per-request report",
        inference_perf(),
        FAILED,
        ("counts 25 where the server says 5",),
    ),
    "dynamo": Shape(
        "ai-dynamo replay report",
        dynamo(),
        {"rejected": 1},
        ("are 50% of the prompt tokens", "2 decode workers", "1 requests of no output"),
    ),
    "llmservingsim": Shape("LLMServingSim result", llmservingsim(False)),
    "llmservingsim_with_prompt": Shape("LLMServingSim result", llmservingsim(True), {}, ("the prompt too",)),
    "vidur_metrics": Shape("Vidur request metrics", vidur_metrics(), {"unfinished": 1}),
    "llama_cpp": Shape(
        "llama.cpp client log",
        table(
            "arrival_s,first_token_s,last_token_s,prompt_tokens,output_tokens,server_prompt_ms,slot,cached_tokens",
            [(a, a + t, a + e, p, n, 9.5, 1, p // 10) for a, p, n, t, e in REQUESTS],
        ),
        {},
        ("they are 10% of the prompt tokens", "the client's", "columns not read: server_prompt_ms, slot"),
    ),
    "multi_round_qa": Shape(
        "LMCache multi-round QA summary",
        table(
            "prompt_tokens,generation_tokens,ttft,generation_time,user_id,question_id,launch_time,finish_time",
            [(p, n, t, e - t, 0, 1, EPOCH_S + a, EPOCH_S + a + e) for a, p, n, t, e in REQUESTS],
        ),
        {},
        ("generation_time, user_id, question_id",),
    ),
    "azure_2023": Shape(
        "Azure LLM inference trace", azure(lambda a: f"2023-11-16 18:15:{46 + a:010.7f}"), FAILED, (), False
    ),
    "azure_2024": Shape(
        "Azure LLM inference trace",
        azure(lambda a: f"2024-05-10 02:00:{a:09.6f}+02:00"),
        FAILED,
        (),
        False,
    ),
    "azure_2025": Shape(
        "Azure LLM inference trace",
        azure(lambda a: f"2024-10-15 12:00:{a:09.6f}", images=True),
        FAILED,
        ("images (NumImages) are not simulated: 100%",),
        False,
    ),
    "burstgpt": Shape(
        "BurstGPT trace",
        trace(
            "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type",
            lambda a, p, n: (5 + a, "s", 1, "GPT-4", p, n, p + n, "API log"),
            (9, "s", 1, "GPT-4", 7, 0, 7, "API log"),
        ),
        FAILED,
        ("Session ID, Elapsed time, Model",),
        False,
    ),
    "mooncake": Shape(
        "Mooncake trace",
        lines(
            {"timestamp": 1e3 * a, "input_length": p, "output_length": n, "hash_ids": ids}
            for (a, p, n, _, _), ids in zip(REQUESTS, ([1, 2], [1, 3], [1, 2, 4], [6]), strict=True)
        ),
        {},
        (),
        False,
    ),
    "splitwise": Shape(
        "Splitwise trace",
        trace(
            "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size",
            lambda a, p, n: (0, 2, 0, a, 1, p, n),
        ),
        {},
        ("request_id",),
        False,
    ),
    "vidur_trace": Shape(
        "Vidur processed trace",
        trace("arrived_at,num_prefill_tokens,num_decode_tokens", lambda a, p, n: (a, p, n)),
        has_times=False,
    ),
    "llmservingsim_workload": Shape(
        "LLMServingSim workload",
        lines(
            {"input_toks": p, "output_toks": n, "arrival_time_ns": ns(a), "input_tok_ids": [1]}
            for a, p, n, _, _ in REQUESTS
        ),
        {},
        ("input_tok_ids",),
        False,
    ),
    "generic_csv": Shape(
        "generic",
        table(
            ",arrival_s,prompt_tokens,output_tokens,ttft_ms,last_token_s,error,session",
            [
                *((k, a, p, n, 1e3 * t, a + e, "", "s") for k, (a, p, n, t, e) in enumerate(REQUESTS)),
                (4, 1.0, 5, "", "", "", "timeout", "s"),
                (5, 1.0, 5, 0, "", "", "", "s"),
            ],
        ),
        {"aborted": 1, "failed": 1},
        ("columns not read: column 1, session",),
    ),
    "generic_jsonl": Shape(
        "generic",
        lines(
            dict(zip(GENERIC_FIELDS, (1e6 * a, p, n, t, 1e9 * e, True), strict=True))
            for a, p, n, t, e in REQUESTS
        ),
    ),
    "generic_list": Shape(
        "generic",
        json.dumps(
            [
                {"arrival_s": a, "prompt_tokens": p, "output_tokens": n, "ttft_s": t, "latency_s": e}
                for a, p, n, t, e in REQUESTS
            ],
            indent=2,
        ),
    ),
}
