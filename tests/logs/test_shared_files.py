"""Files that tools wrote, and shapes of public reports, read as they are; skipped where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from qos_jax.profiling import read_request_log
from qos_jax.workload import read_trace

# File -> requests kept, left out, mean TTFT and median TPOT in seconds.
LOGS = {
    "cases/own_simulator_log.csv": (80, {}, 0.08650, 0.01801),
    "cases/dynamo_report.jsonl": (80, {}, 0.08650, 0.01801),
    "cases/multi_round_qa.csv": (80, {}, 0.08650, 0.01801),
    "cases/aiperf_profile_export.jsonl": (79, {"cancelled": 1}, 0.08727, 0.018),
    "cases/vllm_bench_detailed.json": (79, {"failed": 1}, 0.08727, 0.018),
    "cases/vllm_requests_aborted.jsonl": (79, {"aborted": 1}, 0.08727, 0.018),
    "cases/real/aiperf_0.13.0_profile_export.jsonl": (36, {"failed": 4, "warm-up": 3}, 0.0515, 0.0105),
    "cases/real/aiperf_0.13.0_sessions.jsonl": (6, {}, 0.5034, 0.0103),
    "cases/real/guidellm_0.8.1_benchmarks.json": (36, {"failed": 4}, 0.0525, 0.0107),
    "cases/real/inference_perf_0.7.0_per_request.json": (36, {"failed": 4}, 0.3026, 0.0105),
    "cases/real/dynamo_replay_1.6.1_report.jsonl": (24, {"rejected": 1}, 0.0278, 0.0070),
    "data/llamacpp_cpu/m28_np8_prefix256_cache_on.csv": (150, {}, 0.7514, 0.0415),
    "data/vllm_rtx4090/requests.jsonl": (300, {}, 65.4566, 0.0308),
}
TRACES = {
    "cases/azure_lmm_2025.csv": (40, "images"),
    "cases/vidur_processed.csv": (50, ""),
    "cases/generic_with_index.csv": (40, "not read: column 1"),
    "cases/generic_with_session.csv": (40, "not read: session_id"),
}


@pytest.mark.parametrize("name", LOGS)
def test_request_logs(shared, name):
    if not (shared / name).exists():
        pytest.skip(f"needs {name}")
    requests, left_out, ttft_s, tpot_s = LOGS[name]
    log = read_request_log(shared / name)
    assert (log.num_requests, log.left_out) == (requests, left_out)
    many = log.output_tokens > 1
    span_s = (log.last_token_s - log.first_token_s)[many] / (log.output_tokens[many] - 1)
    np.testing.assert_allclose([np.mean(log.ttft_s), np.median(span_s)], [ttft_s, tpot_s], rtol=0.02)


@pytest.mark.parametrize("name", TRACES)
def test_traces(shared, name):
    if not (shared / name).exists():
        pytest.skip(f"needs {name}")
    requests, note = TRACES[name]
    trace = read_trace(shared / name)
    assert trace.num_requests == requests
    assert note in " ".join(trace.notes)
