"""Files of four requests, and of others that were not answered, as each tool writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

ARRIVAL_S = (0.0, 0.5, 1.25, 2.0)
PROMPT_TOKENS = (30, 20, 40, 10)
OUTPUT_TOKENS = (5, 1, 9, 3)
TTFT_S = (0.125, 0.0625, 0.25, 0.125)
LATENCY_S = (0.5, 0.0625, 1.0, 0.25)
REQUESTS = tuple(zip(ARRIVAL_S, PROMPT_TOKENS, OUTPUT_TOKENS, TTFT_S, LATENCY_S, strict=True))
EPOCH_S = 1_759_813_207


def lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def table(header: str, rows: Iterable[Iterable[Any]]) -> str:
    return header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)


def gaps(output: int, ttft: float, latency: float) -> list[float]:
    """Return the gaps between chunks, seconds."""
    return [(latency - ttft) / (output - 1)] * (output - 1) if output > 1 else []


def run_of_lists(**fields: Any) -> dict[str, Any]:
    """The four requests and one that failed, as vLLM's and SGLang's benchmarks keep them."""
    return {
        "input_lens": [*PROMPT_TOKENS, 25],
        "output_lens": [*OUTPUT_TOKENS, 0],
        "ttfts": [*TTFT_S, 0.0],
        "itls": [*(gaps(n, t, e) for _, _, n, t, e in REQUESTS), []],
        "generated_texts": ["x"] * 4 + [""],
        "errors": [""] * 4 + ["Connection reset"],
        "completed": 4,
        "duration": 2.25,
        "mean_ttft_ms": 140.6,
    } | fields


VLLM = {"backend": "vllm", "request_throughput": 1.8, "max_concurrency": 8}
QUEUED = {
    "start_times": [353_400 + a + 0.5 for a in (*ARRIVAL_S, 3.0)],
    "queue_times": [0.5, 0.5, 0.5, 0.5, 0.0],
}


def vllm_bench() -> str:
    """Indented, as --save-result does; its client held each request back by half a second."""
    run = run_of_lists(**VLLM, **QUEUED)
    run["ttfts"] = [t - 0.5 for t in TTFT_S] + [0.0]
    return json.dumps(run | {"latencies": [e - 0.5 for e in LATENCY_S] + [0.0]}, indent=1)


def vllm_appended() -> str:
    """Two runs of two requests, a line each, by a clock that started anew."""
    whole = run_of_lists(**VLLM)
    runs = []
    for low in (0, 2):
        part = {k: v[low : low + 2] if isinstance(v, list) else v for k, v in whole.items()}
        runs.append(part | {"start_times": [7.0 + a - ARRIVAL_S[low] for a in ARRIVAL_S[low : low + 2]]})
    return lines(runs)


def aiperf_record(number: int, start_s: float, metrics: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    start_ns = int(EPOCH_S * 10**9 + start_s * 10**9)
    metadata = {
        "session_num": number,
        "request_start_ns": start_ns,
        "request_end_ns": start_ns + 10**8,
        "benchmark_phase": "profiling",
        "was_cancelled": False,
    }
    metadata |= {name: value for name, value in fields.items() if name in metadata}
    rest = {name: value for name, value in fields.items() if name not in metadata}
    return {"metadata": metadata, "metrics": dict(metrics)} | rest


def aiperf() -> str:
    """Its client's tokenizer counts four times the tokens."""
    records = [aiperf_record(0, -5.0, {}, benchmark_phase="warmup")]
    for k, (a, p, n, t, e) in enumerate(REQUESTS):
        values = {
            "time_to_first_token": (t * 1e3, "ms"),
            "request_latency": (e * 1e3 + 3.0, "ms"),  # with the usage's own chunk
            "inter_chunk_latency": ([gap * 1e3 for gap in gaps(n, t, e)], "ms"),
            "usage_prompt_tokens": (p, "tokens"),
            "usage_completion_tokens": (n, "tokens"),
            "input_sequence_length": (p, "tokens"),
            "output_sequence_length": (4 * n, "tokens"),
        }
        if n == 1:
            del values["inter_chunk_latency"]
            values["request_latency"] = (e * 1e3, "ms")
        metrics = {name: {"value": value, "unit": unit} for name, (value, unit) in values.items()}
        records.append(aiperf_record(k, a, metrics))
    cancelled = {"code": 499, "type": "RequestCancellationError", "message": "x"}
    records.append(aiperf_record(8, 2.5, {}, was_cancelled=True, error=cancelled))
    failed = {"code": 500, "type": "Internal Server Error", "message": "x"}
    records.append(aiperf_record(9, 2.6, {"error_isl": {"value": 9, "unit": "tokens"}}, error=failed))
    return lines(records)


def guidellm_request(a: float, p: int, n: int | None = None, *times: float) -> dict[str, Any]:
    first, last = times or (None, None)
    timings = {
        "targeted_start": 12.0,
        "first_token_iteration": first,
        "last_token_iteration": last,
        "token_iterations": n or 0,
    }
    return {
        "info": {"timings": timings},
        "request_start_time": EPOCH_S + a,
        "request_latency": None,
        "prompt_tokens": p,
        "cached_tokens": p // 5 if times else None,
        "output_tokens": n,
        "time_per_output_token_ms": 9999.0,
    }


def guidellm() -> str:
    """The last of the four was cut off by the end of the benchmark after three tokens."""
    done = [guidellm_request(a, p, n, EPOCH_S + a + t, EPOCH_S + a + e) for a, p, n, t, e in REQUESTS]
    cut = [done.pop(), guidellm_request(2.1, 9)]
    requests = {
        "successful": done,
        "errored": [guidellm_request(1.0, 9)],
        "incomplete": cut,
    }
    return json.dumps({"metadata": {}, "benchmarks": [{"requests": requests | {"total": None}}]})


def inference_perf() -> str:
    records = []
    for a, p, n, t, e in REQUESTS:
        times = [9761.25 + a + t + k * gap for k, gap in enumerate([0.0, *gaps(n, t, e)])]
        metrics = {
            "output_tokens": 5 * n,
            "server_usage": {"prompt_tokens": p, "completion_tokens": n},
            "chunk_times": times,
            "output_token_times": [time for time in times for _ in range(5)],
        }
        info = {"input_tokens": p, "response_metrics": metrics}
        if a == ARRIVAL_S[-1]:  # as older versions wrote it
            info = {"input_tokens": p, "output_tokens": n, "output_token_times": times}
        records.append(
            {
                "start_time": 9761.25 + a,
                "end_time": 9761.25 + a + e + 0.01,
                "request": "{}",
                "info": info,
                "error": None,
            }
        )
    info = {"input_tokens": 0, "response_metrics": None}
    failed = {
        "start_time": 9761.0,
        "end_time": 9761.1,
        "info": info,
        "error": {"error_type": "HTTP Error 500"},
    }
    return json.dumps([failed, *records])


def dynamo() -> str:
    records = [
        {
            "session_id": None,
            "arrival_time_ms": 1e3 * a,
            "first_admit_ms": 1e3 * a + 1.0,
            "terminal_time_ms": 1e3 * (a + e),
            "first_token_ms": 1e3 * (a + t),
            "last_token_ms": 1e3 * (a + e),
            "ttft_ms": 1e3 * t,
            "e2e_latency_ms": 1e3 * e,
            "input_length": p,
            "output_length": n,
            "reused_input_tokens": p // 2,
            "decode_worker_idx": k % 2,
            "terminal_status": "completed",
        }
        for k, (a, p, n, t, e) in enumerate(REQUESTS)
    ]
    none = dict.fromkeys(("first_token_ms", "last_token_ms", "ttft_ms", "e2e_latency_ms"))
    records[1] |= none | {"output_length": 0}  # a prompt alone
    return lines([*records, records[0] | none | {"output_length": 0, "terminal_status": "rejected"}])


def ns(seconds: float) -> int:
    return round(seconds * 10**9)


def llmservingsim(with_prompt: bool) -> str:
    rows = []
    for k, (a, p, n, t, e) in enumerate(REQUESTS):
        tpot = ns((e - t) / (n - 1)) if n > 1 else 0
        itl = '"[{}]"'.format(", ".join(str(ns(gap)) for gap in gaps(n, t, e)))
        output = n + p if with_prompt else n
        rows.append((0, k, "m", p, output, ns(a), ns(a + e), ns(e), 0, ns(t), tpot, itl))
    header = "instance id,request id,model,input,output,arrival,end_time,latency,queuing_delay,TTFT,TPOT,ITL"
    return table(header, rows)


def vidur_metrics() -> str:
    order = (0, 2, 1, 3)  # of completion
    before = dict(zip(range(1, 5), ARRIVAL_S, strict=True))
    rows = []
    for k in order:
        a, p, n, t, e = REQUESTS[k]
        rows.append((k, e, 0.01, t, "" if k == 0 else a - before[k], p + n, p, n, 0))
    rows.append((4, "", "", "", 0.25, 60, 50, 10, 0))
    header = (
        "Request Id,request_e2e_time,request_scheduling_delay,prefill_e2e_time,request_inter_arrival_delay,"
    )
    header += "request_num_tokens,request_num_prefill_tokens,"
    header += "request_num_decode_tokens,request_num_restarts"
    return table(header, rows)


def azure(stamps: Callable[[float], str], images: bool = False) -> str:
    extra = (3,) if images else ()
    rows = [(stamps(a), *extra, p, n) for a, p, n, _, _ in REQUESTS]
    rows.append((stamps(3.0), *extra, 99, 0))
    return table(f"TIMESTAMP,{'NumImages,' if images else ''}ContextTokens,GeneratedTokens", rows)


def trace(header: str, row: Callable[[float, int, int], Iterable[Any]], *others: Iterable[Any]) -> str:
    return table(header, [*(row(a, p, n) for a, p, n, _, _ in REQUESTS), *others])
