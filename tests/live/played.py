"""Play a load of requests against a server or the router, and write what came back as calibrate reads it."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from qos_jax.live.sse import EventStream
from tests.live.gguf_shape import VOCABULARY, WORDS_FROM

_LOG = ("arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "last_token_s", "success")


@dataclasses.dataclass(frozen=True, eq=False)
class Load:
    """T requests."""

    arrival_s: np.ndarray  # [T]
    prompt_tokens: np.ndarray  # [T]
    output_tokens: np.ndarray  # [T]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a request; times in seconds since the first one was due."""

    expert: str  # "" if the router does not say
    sent_s: float
    first_s: float | None
    last_s: float
    prompt_tokens: int
    output_tokens: int
    fault: str  # "" = whole


def draw_load(requests: int, rate_per_s: float, seed: int) -> Load:
    """Draw Poisson arrivals, prompts of 16 to 512 tokens and answers of 8 to 96, log-uniform."""
    draw = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> np.ndarray:
        return np.exp(draw.uniform(np.log(low), np.log(high), requests)).round().astype(int)

    gap_s = draw.exponential(1.0, requests) / rate_per_s
    return Load(np.cumsum(gap_s) - gap_s[0], tokens(16, 512), tokens(8, 96))


async def _ask(client: aiohttp.ClientSession, url: str, body: dict[str, Any], begin_s: float) -> Answer:
    events, expert, fault, first_s = EventStream(hide_usage=False), "", "", None
    sent_s = time.perf_counter() - begin_s
    try:
        async with client.post(f"{url}/v1/completions", json=body) as answer:
            expert = answer.headers.get("x-qos-expert", "")
            async for data in answer.content.iter_any():
                events.feed(data)
                if first_s is None and events.deltas:
                    first_s = time.perf_counter() - begin_s
            if answer.status != 200:
                fault = f"HTTP {answer.status}"
    except aiohttp.ClientError as error:
        fault = type(error).__name__
    last_s = time.perf_counter() - begin_s
    usage = events.usage
    prompt, output = (
        (usage.prompt_tokens, usage.output_tokens) if usage else (len(body["prompt"]), events.deltas)
    )
    if not fault and (not events.is_done or events.has_error):
        fault = "ended early"
    return Answer(expert, sent_s, first_s, last_s, prompt, output, fault)


async def _play(url: str, model: str, load: Load, seed: int) -> list[Answer]:
    draw = np.random.default_rng(seed)
    options = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=options) as client:
        asked, begin_s = [], time.perf_counter()
        for due_s, prompt, output in zip(load.arrival_s, load.prompt_tokens, load.output_tokens, strict=True):
            await asyncio.sleep(max(begin_s + due_s - time.perf_counter(), 0.0))
            body = {
                "model": model,
                "prompt": draw.integers(WORDS_FROM, VOCABULARY, prompt).tolist(),
                "max_tokens": int(output),
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            asked.append(asyncio.create_task(_ask(client, url, body, begin_s)))
        return await asyncio.gather(*asked)


def play(url: str, model: str, load: Load, seed: int = 0) -> list[Answer]:
    """Ask at the arrivals of a load, whatever comes back when."""
    return asyncio.run(_play(url, model, load, seed))


def play_together(urls: dict[str, str], loads: dict[str, Load], seed: int = 0) -> dict[str, list[Answer]]:
    """Ask several servers at once, each at the arrivals of its own load; return their answers by name."""

    async def run() -> list[list[Answer]]:
        return await asyncio.gather(*(_play(url, name, loads[name], seed) for name, url in urls.items()))

    return dict(zip(urls, asyncio.run(run()), strict=True))


def write_log(path: Path, answers: list[Answer]) -> None:
    """Write a log that ``launch.calibrate`` reads."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(_LOG)
        for one in sorted(answers, key=lambda one: one.sent_s):
            times = ("" if one.first_s is None else f"{one.first_s:.6f}", f"{one.last_s:.6f}")
            row = (f"{one.sent_s:.6f}", one.prompt_tokens, one.output_tokens, *times)
            writer.writerow((*row, "false" if one.fault else "true"))
