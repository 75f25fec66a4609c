"""Public traces: Azure LLM inference, BurstGPT, Mooncake, Splitwise, Vidur and LLMServingSim workloads.

Source and unit of each stand above its layout; failed requests have no prompt or no output token.
"""

from __future__ import annotations

import dataclasses
import json

from qos_jax.logs.layout import Layout, Texts
from qos_jax.logs.logged import Logged
from qos_jax.logs.refine import drop_failed, with_notes


def _azure(logged: Logged, texts: Texts) -> Logged:
    with_images = sum(text not in ("", "0") for text in texts.get("NumImages", ()))
    share = f"{100 * with_images / max(len(logged.row), 1):.3g}%"
    note = f"images (NumImages) are not simulated: {share} of the requests have some" if with_images else ""
    return with_notes(drop_failed(logged, texts), note)


def _mooncake(logged: Logged, texts: Texts) -> Logged:
    logged = drop_failed(logged, texts)
    if "hash_ids" not in texts:
        return logged
    return dataclasses.replace(logged, hash_ids=tuple(_hashes(text) for text in texts["hash_ids"]))


def _hashes(text: str) -> tuple[int, ...]:
    """Return a JSON list of whole numbers; of an empty cell none."""
    hashes = json.loads(text) if text else []
    if not isinstance(hashes, list) or not all(isinstance(block, int) for block in hashes):
        raise ValueError(f"hash_ids {text} are no list of whole numbers")
    return tuple(hashes)


# Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and 2024.md and AzureLMMInferenceDataset2025.md:
# TIMESTAMP is an ISO time, from 2024 with an offset such as +00:00; 2025 adds NumImages.
AZURE = Layout(
    "Azure LLM inference trace",
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    {"TIMESTAMP:iso": "arrival_s", "ContextTokens": "prompt_tokens", "GeneratedTokens": "output_tokens"},
    ("NumImages",),
    _azure,
)

# HPMLL/BurstGPT, data/BurstGPT_1.csv and the header of BurstGPT_3.csv: Timestamp in seconds; failed requests
# have 0 response tokens; the third file adds Session ID and Elapsed time.
BURSTGPT = Layout(
    "BurstGPT trace",
    ("Timestamp", "Request tokens", "Response tokens"),
    {"Timestamp": "arrival_s", "Request tokens": "prompt_tokens", "Response tokens": "output_tokens"},
    (),
    drop_failed,
)

# kvcache-ai/Mooncake, FAST25-release/traces: timestamp in milliseconds; hash_ids name the blocks of a prompt,
# each with all before it, so equal ids are equal prefixes.
MOONCAKE = Layout(
    "Mooncake trace",
    ("timestamp", "input_length", "output_length"),
    {"timestamp:ms": "arrival_s", "input_length": "prompt_tokens", "output_length": "output_tokens"},
    ("hash_ids",),
    _mooncake,
)

# Mutinifni/splitwise-sim at commit 3780880, traces/test_trace.csv: arrival_timestamp in seconds.
SPLITWISE = Layout(
    "Splitwise trace",
    ("arrival_timestamp", "prompt_size", "token_size"),
    {"arrival_timestamp": "arrival_s", "prompt_size": "prompt_tokens", "token_size": "output_tokens"},
    (),
    drop_failed,
)

# microsoft/vidur at commit 8e54dd5, data/processed_traces/splitwise_conv.csv: arrived_at in seconds.
VIDUR_TRACE = Layout(
    "Vidur processed trace",
    ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    {
        "arrived_at": "arrival_s",
        "num_prefill_tokens": "prompt_tokens",
        "num_decode_tokens": "output_tokens",
    },
    (),
    drop_failed,
)

# casys-kaist/LLMServingSim, the JSON lines that its router loads: arrival_time_ns in nanoseconds.
LLMSERVINGSIM_WORKLOAD = Layout(
    "LLMServingSim workload",
    ("arrival_time_ns", "input_toks", "output_toks"),
    {"arrival_time_ns:ns": "arrival_s", "input_toks": "prompt_tokens", "output_toks": "output_tokens"},
    (),
    drop_failed,
)
