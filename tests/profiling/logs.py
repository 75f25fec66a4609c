"""Logs with known coefficients, made by the serving model itself, for tests of the profiling floor."""

from __future__ import annotations

import numpy as np

from qos_jax.profiling import IterationLog, RequestLog, ServerLimits
from qos_jax.profiling.iteration_fit import iteration_design
from qos_jax.profiling.replay import replay_requests

TRUE = np.array([0.015, 9e-5, 4e-8, 0.017, 6e-4, 2e-6])  # in the order of COEFFICIENTS
LIMITS = ServerLimits("chunked_prefill", max_running=16, max_batched_tokens=512, kv_capacity_tokens=6000)


def iterations(rows=200, noise=0.02, seed=0, mixed=False, value=TRUE, **columns) -> IterationLog:
    """Half decode and half prefill iterations; ``columns`` replace drawn ones."""
    rng = np.random.default_rng(seed)
    prefill = np.arange(rows) % 2 == 0
    batch = np.where(prefill & (not mixed), 0, rng.integers(1, 65, rows))
    prompt = np.where(prefill, rng.integers(16, 2049, rows), 0)
    second = np.where(prefill, rng.integers(0, 1025, rows), 0)
    drawn = {
        "batch": batch,
        "prefill_tokens": prompt + second,
        "prefill_tokens_sq": (prompt**2 + second**2).astype(np.float64),
        "context_tokens": batch * rng.integers(1, 3000, rows),
    } | columns
    log = IterationLog(**drawn, duration_s=np.ones(rows), file="mine.csv")
    exact_s = iteration_design(log) @ value
    return IterationLog(**drawn, duration_s=exact_s * np.exp(noise * rng.normal(size=rows)), file="mine.csv")


def requests(count=80, rate_per_s=2.5, noise=0.0, seed=0, value=TRUE, limits=LIMITS, **columns) -> RequestLog:
    """What the reference makes of Poisson arrivals, its times with log-normal noise."""
    rng = np.random.default_rng(seed)
    drawn = {
        "prompt_tokens": rng.integers(20, 900, count),
        "output_tokens": rng.integers(1, 120, count),
        "arrival_s": np.cumsum(rng.exponential(1 / rate_per_s, count)),
    } | columns
    drawn["arrival_s"] = drawn["arrival_s"] - drawn["arrival_s"][0]
    blank = RequestLog(
        **drawn, start_s=drawn["arrival_s"], first_token_s=None, last_token_s=None, file="mine.jsonl"
    )
    replay = replay_requests(blank, limits, value)
    ttft_s, latency_s = replay.ttft_s, replay.latency_s
    stretch_s = np.exp(noise * rng.normal(size=(2, count)))
    first_s = drawn["arrival_s"] + ttft_s * stretch_s[0]
    return RequestLog(
        **drawn,
        start_s=drawn["arrival_s"],
        first_token_s=first_s,
        last_token_s=first_s + (latency_s - ttft_s) * stretch_s[1],
        file="mine.jsonl",
    )
