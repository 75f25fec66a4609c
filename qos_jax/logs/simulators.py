"""Per-request results of simulators: LLMServingSim's in nanoseconds, Vidur's in seconds.

Source of each stands above its layout.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qos_jax.logs.layout import Layout, Texts
from qos_jax.logs.logged import Logged
from qos_jax.logs.refine import servers_note, with_cause, with_notes


def _llmservingsim(logged: Logged, texts: Texts) -> Logged:
    """Take the prompt off ``output`` where it counts it, by the mean time per token (TPOT)."""
    values = dict(logged.values)
    tpot_s = np.array([float(text or "nan") for text in texts["TPOT"]]) / 1e9
    generated = 1 + np.round((values["latency_s"] - values["ttft_s"]) / np.where(tpot_s > 0, tpot_s, np.nan))
    note = ""
    with_prompt = generated == values["output_tokens"] - values["prompt_tokens"]
    if np.mean(with_prompt[~np.isnan(generated)]) > 0.5:
        values["output_tokens"] = values["output_tokens"] - values["prompt_tokens"]
        note = "output tokens: by TPOT, as the column output counts the prompt too"
    servers = servers_note(texts.get("instance id", ()), "instances")
    return with_notes(dataclasses.replace(logged, values=values), note, servers)


# casys-kaist/LLMServingSim, output/example_cxl_run.csv (commit 9e3f0ec), whose "output" counts the prompt,
# and bench/examples/*/outputs/sim.csv (0d3de68), whose does not: nanoseconds.
LLMSERVINGSIM = Layout(
    "LLMServingSim result",
    ("input", "output", "arrival", "end_time", "latency", "TTFT", "TPOT"),
    {
        "arrival:ns": "arrival_s",
        "TTFT:ns": "ttft_s",
        "latency:ns": "latency_s",
        "end_time:ns": "last_token_s",
        "input": "prompt_tokens",
        "output": "output_tokens",
    },
    ("TPOT", "instance id"),
    _llmservingsim,
)


def _vidur(logged: Logged, texts: Texts) -> Logged:
    """Add up the gaps between arrivals, in the order of the requests' numbers."""
    order = np.argsort(np.array(texts["Request Id"], np.float64), kind="stable")
    gaps_s = np.nan_to_num(logged.values["arrival_s"])  # the first request has none
    arrival_s = np.empty_like(gaps_s)
    arrival_s[order] = np.cumsum(gaps_s[order])
    values = {**logged.values, "arrival_s": arrival_s}
    delay_s = values.pop("scheduled_s", None)
    if delay_s is not None:
        values["scheduled_s"] = arrival_s + delay_s
    unfinished = np.isnan(values["latency_s"])
    return with_cause(dataclasses.replace(logged, values=values), unfinished, "unfinished")


# microsoft/vidur at commit 158eee6, vidur/metrics/constants.py: request_metrics.csv in seconds;
# prefill_e2e_time ends with the first token; the arrival is the sum of the gaps up to a request.
VIDUR_METRICS = Layout(
    "Vidur request metrics",
    ("Request Id", "request_inter_arrival_delay", "prefill_e2e_time", "request_e2e_time"),
    {
        "request_inter_arrival_delay": "arrival_s",
        "request_scheduling_delay": "scheduled_s",
        "prefill_e2e_time": "ttft_s",
        "request_e2e_time": "latency_s",
        "request_num_prefill_tokens": "prompt_tokens",
        "request_num_decode_tokens": "output_tokens",
    },
    ("Request Id",),
    _vidur,
)
