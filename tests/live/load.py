"""Load a running router as clients do, outside CI: latency added, streams, servers that die, misuse.

``python -m tests.live.load`` starts fake servers and the router as processes, and prints figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from qos_jax.workload.fleet import ALLOWED

_ROW = "64,512,4096,400000,0.002,1e-5,0,0.004,1e-5,1e-8,0,0,0"
_BODY = {"model": "auto", "messages": [{"role": "user", "content": "one two three " * 30}], "stream": True}


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a program, and yield it with the first line that it prints."""
    started = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    try:
        yield started, started.stdout.readline().strip()
    finally:
        started.terminate()
        started.wait(60)


def fake(scale: float, port: int = 0) -> Any:
    """Start a fake server."""
    return process("-m", "tests.live.fake_server", f"--scale={scale}", f"--port={port}")


@contextlib.contextmanager
def router(folder: Path, ports: list[int], *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the router in front of fake servers; yield it with its URL."""
    names = [f"server{number}" for number in range(len(ports))]
    rows = [",".join(("expert", *ALLOWED)), *(f"{name},{_ROW}" for name in names)]
    (folder / "fleet.csv").write_text("\n".join(rows) + "\n")
    rows = [f"{name},http://127.0.0.1:{port},0.5,50" for name, port in zip(names, ports, strict=True)]
    (folder / "upstreams.csv").write_text("\n".join(["expert,url,quality,output_tokens", *rows]) + "\n")
    given = [
        f"--fleet={folder}/fleet.csv",
        f"--upstreams={folder}/upstreams.csv",
        "--policy=load_aware_greedy",
    ]
    given += ["--noallow_drop", "--latency_limit_s=1", "--port=0", f"--out={folder}/run", "--overwrite"]
    with process("-m", "launch.serve", *given, *flags) as (started, line):
        yield started, line.rpartition(" at ")[2].removesuffix("/v1")


async def ask(client: aiohttp.ClientSession, url: str, tokens: int) -> tuple[str, float, float]:
    """Return what became of a request, and seconds to its first and last byte."""
    start_s, first_s, parts = time.perf_counter(), 0.0, []
    try:
        async with client.post(f"{url}/v1/chat/completions", json={**_BODY, "max_tokens": tokens}) as answer:
            async for data in answer.content.iter_any():
                first_s = first_s or time.perf_counter() - start_s
                parts.append(data)
    except aiohttp.ClientError as error:
        return f"lost ({type(error).__name__})", first_s, time.perf_counter() - start_s
    body, took_s = b"".join(parts), time.perf_counter() - start_s
    if answer.status != 200:
        reason = json.loads(body)["error"]["message"] if body.startswith(b"{") else ""
        return f"{answer.status} {reason}".strip(), first_s, took_s
    events = [event for event in body.split(b"\n\n") if event]
    if b'"error"' in events[-1]:
        return "error event", first_s, took_s
    said = [json.loads(event[6:])["choices"][0]["delta"].get("content") for event in events[:-1]]
    expected = [f"w{count} " for count in range(1, tokens + 1)]
    return "whole" if [one for one in said if one] == expected else "WRONG TOKENS", first_s, took_s


async def load(url: str, rate_per_s: float, seconds: float, tokens: int) -> list[tuple[str, float, float]]:
    """Ask at Poisson arrivals, open loop."""
    draw, asked = random.Random(0), []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as client:
        begin_s = due_s = time.perf_counter()
        while due_s < begin_s + seconds:
            await asyncio.sleep(max(due_s - time.perf_counter(), 0.0))
            asked.append(asyncio.create_task(ask(client, url, tokens)))
            due_s += draw.expovariate(rate_per_s)
        return await asyncio.gather(*asked)


def report(name: str, found: list[tuple[str, float, float]]) -> None:
    """Print how many requests ended how, and when."""
    ends: dict[str, int] = {}
    for end, *_ in found:
        ends[end] = ends.get(end, 0) + 1
    first, last = (np.array([one[at] for one in found]) * 1e3 for at in (1, 2))
    cuts = [float(np.percentile(times, share)) for times in (first, last) for share in (50, 99)]
    print(
        f"{name}: {len(found)} requests, {ends}; ms to the first byte "
        f"p50 {cuts[0]:.2f} p99 {cuts[1]:.2f}, to the last p50 {cuts[2]:.2f} p99 {cuts[3]:.2f}",
        flush=True,
    )


def print_cpu(pid: int, before_s: float, found: list[Any]) -> None:
    """Print the CPU time that a process took for each request."""
    print(f"  router: {(cpu_s(pid) - before_s) / len(found) * 1e3:.2f} ms of CPU a request", flush=True)


def totals(url: str) -> dict[str, float]:
    """Return what the router counts, labels added up."""
    import urllib.request

    found: dict[str, float] = {}
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("qos_requests"):
                name = line.partition("{")[0].partition(" ")[0].removeprefix("qos_requests_")
                found[name] = found.get(name, 0.0) + float(line.split()[-1])
    return found


def added_latency(folder: Path, options: argparse.Namespace) -> None:
    """Compare the same load directly and through the router."""
    with fake(0.1) as (_, port), router(folder, [int(port)]) as (started, url):
        for _ in range(2):
            report("direct", asyncio.run(load(f"http://127.0.0.1:{port}", options.rate, options.seconds, 1)))
            before = cpu_s(started.pid)
            report("through", found := asyncio.run(load(url, options.rate, options.seconds, 1)))
            print_cpu(started.pid, before, found)


def throughput(folder: Path, options: argparse.Namespace) -> None:
    """Stream 50 tokens a request at rising rates."""
    with fake(0.1) as (_, one), fake(0.1) as (_, two), router(folder, [int(one), int(two)]) as (started, url):
        for rate in options.rates:
            before = cpu_s(started.pid)
            found = asyncio.run(load(url, rate, options.seconds, 50))
            report(f"50 tokens at {rate} / s", found)
            print_cpu(started.pid, before, found)


def outages(folder: Path, options: argparse.Namespace) -> None:
    """Kill one of three servers ten times while a thousand requests come, and start it again."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(fake(1.0)) for _ in range(3)]
        ports = [int(line) for _, line in servers]
        programs = [program for program, _ in servers]
        _, url = stack.enter_context(router(folder, ports, "--health_period_s=0.5", "--max_backoff_s=1"))

        async def run() -> list[tuple[str, float, float]]:
            asked = asyncio.create_task(load(url, 1000 / 30, 30.0, 20))
            for number in range(10):
                await asyncio.sleep(2.0)
                at = number % 3
                programs[at].send_signal(signal.SIGKILL)
                await asyncio.to_thread(programs[at].wait)
                await asyncio.sleep(0.7)
                program, _ = stack.enter_context(fake(1.0, ports[at]))
                programs[at] = program
            return await asked

        found = asyncio.run(run())
        report("ten outages", found)
        print(f"  router counts: {totals(url)}", flush=True)


def misuse(folder: Path, options: argparse.Namespace) -> None:
    """Open idle connections, and send long bodies; print the router's memory before and after."""

    async def run(url: str, pid: int) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        print(f"memory {memory_mb(pid):.0f} MB", flush=True)
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(2000)]
        print(f"with 2,000 idle connections {memory_mb(pid):.0f} MB", flush=True)
        async with aiohttp.ClientSession() as client:
            statuses: dict[Any, int] = {}
            for _ in range(50):
                try:
                    async with client.post(f"{url}/v1/chat/completions", data=b"x" * 20_000_000) as answer:
                        status: Any = answer.status
                except aiohttp.ClientError as error:
                    status = type(error).__name__
                statuses[status] = statuses.get(status, 0) + 1
            print(f"50 bodies of 20 MB: {statuses}, {memory_mb(pid):.0f} MB", flush=True)
            end = await ask(client, url, 5)
            print(f"a good request meanwhile: {end[0]}", flush=True)
        for _, writer in idle:
            writer.close()

    with fake(0.1) as (_, one), router(folder, [int(one)]) as (started, url):
        asyncio.run(run(url, started.pid))


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


CHECKS = {"latency": added_latency, "throughput": throughput, "outages": outages, "misuse": misuse}


def main() -> None:
    """Run the checks that the flags name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", default=",".join(CHECKS), help=f"some of {', '.join(CHECKS)}")
    parser.add_argument("--rate", type=float, default=100.0, help="requests / s, of latency")
    parser.add_argument("--rates", type=float, nargs="+", default=[50, 100, 200, 400], help="of throughput")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended, too
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    for name in options.what.split(","):
        with tempfile.TemporaryDirectory() as folder:
            CHECKS[name](Path(folder), options)


if __name__ == "__main__":
    main()
