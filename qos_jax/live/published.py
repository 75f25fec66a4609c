"""Read what a server publishes of its load at /metrics: vLLM's and llama.cpp's names."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re

RUNNING = ("vllm:num_requests_running", "llamacpp:requests_processing")
WAITING = ("vllm:num_requests_waiting", "llamacpp:requests_deferred")
KV_SHARE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
KV_TOKENS = ("llamacpp:kv_cache_tokens",)
_SAMPLE = re.compile(r"^(?P<name>[\w:]+)(?:\{.*\})?[ \t]+(?P<value>[^\s#]+)", re.MULTILINE)
_KNOWN = {*RUNNING, *WAITING, *KV_SHARE, *KV_TOKENS}


@dataclasses.dataclass(frozen=True)
class Published:
    """A server's load."""

    running: int  # requests in the batch
    waiting: int  # requests queued
    kv_share: float | None  # of the KV cache in use, in [0, 1]
    kv_tokens: int | None  # in the KV cache

    def kv_in_use(self, capacity_tokens: int) -> int:
        """Return the tokens in a KV cache of this size, -1 where nothing is published."""
        if self.kv_tokens is not None:
            return self.kv_tokens
        return -1 if self.kv_share is None else round(self.kv_share * capacity_tokens)


def read_published(text: str) -> Published | None:
    """Return the load in a text of Prometheus metrics; None if it does not say how many requests run.

    Counts of several engines behind one server are added up; the share of the KV cache is their mean.
    """
    found: dict[str, list[float]] = {}
    for match in _SAMPLE.finditer(text):
        if match["name"] in _KNOWN:
            with contextlib.suppress(ValueError):
                found.setdefault(match["name"], []).append(float(match["value"]))

    def first(names: tuple[str, ...]) -> list[float] | None:
        return next((found[name] for name in names if name in found), None)

    running = first(RUNNING)
    if running is None or not all(map(math.isfinite, running)):
        return None
    share, tokens = first(KV_SHARE), first(KV_TOKENS)
    return Published(
        running=int(sum(running)),
        waiting=int(sum(first(WAITING) or (0.0,))),
        kv_share=None if share is None else min(max(sum(share) / len(share), 0.0), 1.0),
        kv_tokens=None if tokens is None else int(sum(tokens)),
    )
