"""A running proxy in front of two fake servers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp

from qos_jax.live.config import RouterConfig, ServeConfig
from qos_jax.live.exported import LiveRouter
from qos_jax.live.plan import plan_live
from qos_jax.live.proxy import Proxy
from qos_jax.live.serve import make_proxy, make_server, open_port
from tests.live.conftest import EXPERTS
from tests.live.fake_server import FakeServer


@dataclasses.dataclass
class Live:
    """A running proxy, its servers and a client."""

    url: str
    proxy: Proxy
    servers: tuple[FakeServer, FakeServer]
    client: aiohttp.ClientSession
    folder: Path

    async def ask(self, url: str | None = None, **body: Any) -> tuple[int, aiohttp.ClientResponse, bytes]:
        """Return status, answer and body of a request, to the proxy or straight to a server."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "a b c"}], "stream": True, **body}
        async with self.client.post(f"{url or self.url}/v1/chat/completions", json=body) as answer:
            return answer.status, answer, await answer.read()

    async def counts(self) -> dict[str, float]:
        """Return what /metrics counts, by name, labels added up."""
        found: dict[str, float] = {}
        async with self.client.get(f"{self.url}/metrics") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith("qos_requests"):
                    name = line.partition("{")[0].partition(" ")[0].removeprefix("qos_requests_")
                    found[name] = found.get(name, 0.0) + float(line.split()[-1])
        return found


async def until(holds: Callable[[], bool]) -> None:
    """Let others run until something holds."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


def opener(router: LiveRouter, fleet: Path, tmp_path: Path) -> Any:
    """Return what opens a proxy with the options given, and closes it again."""

    @contextlib.asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[Live]:
        servers = FakeServer(), FakeServer(is_llama=True)
        for server in servers:
            await server.start()
        upstreams = tmp_path / "upstreams.csv"
        rows = [f"{name},{server.url}/v1,0.5,10" for name, server in zip(EXPERTS, servers, strict=True)]
        upstreams.write_text("\n".join(["expert,url,quality,output_tokens", *rows]) + "\n")
        chosen = RouterConfig(str(fleet), "shortest_queue", latency_limit_s=1.0)
        config = ServeConfig(str(upstreams), chosen, port=0, **{"scrape_period_s": 0.05, **options})
        plan = plan_live(config)
        folder = tmp_path / "logs"
        folder.mkdir()
        proxy = make_proxy(plan, router, folder)
        listening = asyncio.Event()
        server, listener = make_server(plan, proxy, listening.set), open_port(config)
        running = asyncio.create_task(server.serve([listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with aiohttp.ClientSession() as client:
                await listening.wait()
                yield Live(url, proxy, servers, client, folder)
        finally:
            server.should_exit = True
            await running
            for fake in servers:
                await fake.kill()

    return opened
