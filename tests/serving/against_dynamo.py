"""Compare prefix caching and speed with ai-dynamo's trace replay: ``python -m tests.serving.against_dynamo``.

One worker, one trace of Mooncake's form at many arrival rates. Both take the same constant times: a decode
iteration takes ``DECODE_S``, one that prefills ``PREFILL_S`` more; ours does so even where nothing decodes
beside the prefill. The trace is made up, its means near those of Mooncake's conversations (12,000 prompt and
343 output tokens); ``--trace=FILE`` takes another. ai-dynamo 1.6.1 is installed into a temporary environment,
or ``--dynamo=PYTHON`` names one that has it. Speed is in requests per second of processor time, both
alternating, best of three.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.policies import policy
from qos_jax.serving import FleetProfile
from qos_jax.simulation.simulate import Runs, repeated_limits, simulate
from qos_jax.workload import Fleet, read_trace
from qos_jax.workload.requests import requests_of_trace

PREFILL_S, DECODE_S = 0.05, 0.02
BLOCK_TOKENS, HASHED_TOKENS = 16, 512
RUNNING, WAITING, BATCHED_TOKENS = 64, 192, 8192
PACKAGES = ("pydantic==2.14.4", "typing_extensions==4.16.0")
WITHOUT_DEPENDENCIES = ("ai-dynamo==1.6.1", "ai-dynamo-runtime==1.6.1")

# Runs in the other environment: replays every trace, and says what it cost and what was cached.
REPLAY = """
import json, os, sys, time
from dynamo.replay import run_trace_replay
engine = json.loads(sys.argv[1])
found, cpu_s = [], 0.0
for trace in sys.argv[2:]:
    start = time.process_time()
    run_trace_replay(trace, trace_block_size=512, capture_per_request=True, report_jsonl_path=trace + ".out",
                     extra_engine_args={"engine": engine})
    cpu_s += time.process_time() - start
    with open(trace + ".out") as lines:
        rows = [json.loads(line) for line in lines]
    found.append([[row["arrival_time_ms"] / 1e3, row["ttft_ms"] / 1e3, row["e2e_latency_ms"] / 1e3,
                   row["reused_input_tokens"], row["terminal_status"] == "completed"] for row in rows])
print("FOUND" + json.dumps([cpu_s, found]))
"""


def made_up_requests(rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    """Return requests of conversations under eight system prompts, as Mooncake writes them."""
    fresh = iter(range(8, 10**9))
    open_ones: list[tuple[list[int], int]] = []
    found: list[dict[str, Any]] = []
    at_s = 0.0
    for _ in range(count):
        at_s += rng.exponential(1.0)
        if open_ones and rng.random() < 0.75:
            hashes, tokens = open_ones.pop(int(rng.integers(len(open_ones))))
        else:
            hashes, tokens = [int(rng.integers(8))], HASHED_TOKENS
        tokens += int(rng.integers(50, 10_000))
        hashes = [*hashes, *(next(fresh) for _ in range(-(-tokens // HASHED_TOKENS) - len(hashes)))]
        output = int(min(rng.exponential(343) + 1, 2000))
        found.append(
            {"timestamp": 1000 * at_s, "input_length": tokens, "output_length": output, "hash_ids": hashes}
        )
        if tokens < 30_000:  # the answer becomes part of the next prompt, its blocks new ones
            open_ones = [*open_ones[-40:], (hashes[: tokens // HASHED_TOKENS], tokens + output)]
    return found


def environment(folder: Path) -> str:
    """Return the interpreter of a new environment with ai-dynamo's replay."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin/python")
    for more in (PACKAGES, ("--no-deps", *WITHOUT_DEPENDENCIES)):
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", *more], check=True)
    return python


def replayed(python: str, traces: list[str], kv_tokens: int) -> tuple[float, list[np.ndarray]]:
    """Return the CPU-seconds of ai-dynamo's replays, and rows of what it reports, see ``REPLAY``."""
    timing = {"type": "fixed", "prefill_ms": 1e3 * PREFILL_S, "decode_ms": 1e3 * DECODE_S}
    engine = {
        "num_gpu_blocks": kv_tokens // BLOCK_TOKENS,
        "block_size": BLOCK_TOKENS,
        "max_num_seqs": RUNNING,
        "max_num_batched_tokens": BATCHED_TOKENS,
        "timing_model": timing,
    }
    done = subprocess.run(
        [python, "-c", REPLAY, json.dumps(engine), *traces], check=True, text=True, capture_output=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    cpu_s, found = json.loads(line.removeprefix("FOUND"))
    return cpu_s, [np.array(sorted(rows)) for rows in found]


def main() -> None:
    """Make the traces, run both, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dynamo", help="interpreter of an environment with ai-dynamo 1.6.1")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=16, help="arrival rates")
    parser.add_argument("--rates", default="0.5,4", help="the lowest and the highest, requests/s")
    parser.add_argument("--kv_tokens", type=int, default=65536 * BLOCK_TOKENS)
    parser.add_argument("--entries", type=int, default=128, help="prefix_entries of ours")
    parser.add_argument("--trace", help="a file of Mooncake's form, of which the first requests are taken")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python = given.dynamo or environment(Path(folder) / "dynamo")
        lines = made_up_requests(np.random.default_rng(0), given.requests)
        if given.trace:
            with open(given.trace, encoding="utf-8") as stream:
                lines = [json.loads(line) for line in itertools.islice(stream, given.requests)]
        rates = np.linspace(*map(float, given.rates.split(",")), given.runs)
        # A request each 1,000 ms on average, faster by the rate.
        unit = 1000 * (len(lines) - 1) / (lines[-1]["timestamp"] - lines[0]["timestamp"])
        traces = []
        for rate in rates:
            traces.append(f"{folder}/{rate:.3f}.jsonl")
            stamped = (dict(line, timestamp=int(line["timestamp"] * unit / rate)) for line in lines)
            Path(traces[-1]).write_text("".join(json.dumps(line) + "\n" for line in stamped))
        compare(python, traces, rates, given.kv_tokens, given.entries)


def compare(python: str, traces: list[str], rates: np.ndarray, kv_tokens: int, entries: int) -> None:
    """Run both on every trace, three times, and print tokens, times and speed."""
    read = [read_trace(trace) for trace in traces]
    table = requests_of_trace(read[0], 1).table  # the same at every rate
    num_runs, num_requests = len(read), read[0].num_requests
    numbers = (PREFILL_S + DECODE_S, 0.0, 0.0, DECODE_S, 0.0, 0.0, 0.0, 1.0, 1.0)
    profile = FleetProfile(
        *(np.array([n], np.int32) for n in (RUNNING, WAITING, BATCHED_TOKENS, kv_tokens)),
        *(np.array([n], np.float32) for n in numbers),
    )
    runs = Runs(
        profile=profile,
        limits=repeated_limits(1.0, num_runs),
        length_log_std=np.zeros((num_runs, 1), np.float32),
        arrival_s=np.stack([trace.arrival_s for trace in read]),
        requests=jax.tree.map(lambda leaf: np.broadcast_to(leaf, (num_runs, *np.shape(leaf))), table),
        seed=np.zeros(num_runs, np.uint32),
    )
    config = Fleet(("worker",), profile).serving("chunked_prefill", entries)
    router = policy("assigned", assignment=jnp.zeros(num_requests, jnp.int32))
    prompts, outputs = (np.mean(values) for values in (read[0].prompt_tokens, read[0].output_tokens))
    print(f"means: {prompts:.0f} prompt and {outputs:.0f} output tokens; {len(read[0].prefixes.path)} levels")
    start = time.process_time()
    records = simulate(config, router, runs).records
    print(f"compiled and run once in {time.process_time() - start:.1f} CPU-seconds")
    ours_s, theirs_s = [], []
    for _ in range(3):
        start = time.process_time()
        records = simulate(config, router, runs).records
        ours_s.append(time.process_time() - start)
        cpu_s, found = replayed(python, traces, kv_tokens)
        theirs_s.append(cpu_s)
    print(f"{num_runs} runs of {num_requests} requests, {kv_tokens} KV tokens, {BLOCK_TOKENS} a block")
    print("requests/s  prompt cached  cached: ours over theirs  equal  TTFT   latency  not completed")
    for run, rows in enumerate(found):
        mine = records.at(run)
        both = (mine.latency_s > 0) & (rows[:, 4] > 0)
        cached = np.where(both, mine.cached_tokens, 0), np.where(both, rows[:, 3], 0)
        ratio = [float(np.mean(mine.ttft_s[both]) / np.mean(rows[both, 1]) - 1)]
        ratio.append(float(np.mean(mine.latency_s[both]) / np.mean(rows[both, 2]) - 1))
        print(
            f"{rates[run]:10.2f}  {cached[1].sum() / read[0].prompt_tokens.sum():13.1%}  "
            f"{cached[0].sum() / cached[1].sum() - 1:+24.2%}  {np.mean(cached[0] == cached[1]):5.1%}  "
            f"{ratio[0]:+.1%}  {ratio[1]:+.1%}  {np.sum(~both)}"
        )
    total = num_runs * num_requests
    ours, theirs = total / min(ours_s), total / min(theirs_s)
    print(f"requests per CPU-second: ours {ours:.0f}, theirs {theirs:.0f}, {ours / theirs:.1f} times")


if __name__ == "__main__":
    main()
