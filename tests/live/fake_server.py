"""An OpenAI-compatible server for tests: answers of words, at the times of the reference, scaled."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from aiohttp import web

from qos_jax.serving import reference
from qos_jax.serving.reference import ReferenceProfile, iteration_s
from tests.live.profile import SMALL


class FakeServer:
    """One server; its clock runs ``scale`` times as slow as the reference's, 0 = as fast as it can."""

    def __init__(
        self,
        profile: ReferenceProfile = SMALL,
        *,
        scale: float = 0.01,
        scheduler: str = "chunked_prefill",
        is_llama: bool = False,
    ) -> None:
        self.profile, self.scale, self.is_llama = profile, scale, is_llama
        self._plan = reference._SCHEDULERS[scheduler]
        self._expert = reference._Expert(profile)
        self._tokens: dict[int, asyncio.Queue[int]] = {}
        self._work = asyncio.Event()
        self._arrived = 0
        self.bodies: list[dict[str, Any]] = []  # of the requests that came
        self.authorization: list[str] = []
        self.cancelled = 0  # requests whose client went away
        self.answers = 10  # tokens of an answer without max_tokens
        self.cached_tokens: int | None = None  # that it says it found of each prompt
        self.break_after: int | None = None  # tokens after which it drops the connection; 0 = before any byte
        self.closes_silently = False  # connections that served once are dropped at their next request
        self.dropped = 0
        self._served: set[Any] = set()
        self.status = 200
        self.health_status = 200
        self.health_s, self.checked = 0.0, 0  # time that a health check takes, and how many came
        self.port = 0

    async def start(self, port: int = 0) -> None:
        """Listen, at the same port as before if it did."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, shutdown_timeout=0.0, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port or self.port, reuse_address=True, backlog=2048)
        await site.start()
        assert self._runner.addresses
        self.port = self._runner.addresses[0][1]
        self._loop = asyncio.create_task(self._serve())

    async def kill(self) -> None:
        """Drop every connection and all requests at once."""
        self._loop.cancel()
        for site in tuple(self._runner.sites):
            await site.stop()
        await asyncio.sleep(0.01)  # whom it accepted just now is among the connections, too
        for request in tuple(self._runner.server.connections if self._runner.server else ()):
            if request.transport is not None:
                request.transport.abort()
        await self._runner.cleanup()
        await asyncio.sleep(0.01)  # the loop closes what was aborted
        self._expert, self._tokens = reference._Expert(self.profile), {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        expert = self._expert
        while True:
            if not expert.waiting and not expert.running:
                self._work.clear()
                await self._work.wait()
            work, gaining = self._plan(expert)
            await asyncio.sleep(iteration_s(self.profile, work) * self.scale)
            for request in gaining:
                request.generated_tokens += 1
                self._tokens[request.order].put_nowait(request.generated_tokens)
            expert.running = [r for r in expert.running if r.generated_tokens < r.output_tokens]

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        if self.closes_silently and http.transport in self._served:
            self.dropped += 1
            http.transport.abort()
            return web.Response()
        self._served.add(http.transport)
        self.bodies.append(body)
        self.authorization.append(http.headers.get("Authorization", ""))
        if self.status != 200:
            return web.json_response({"error": {"message": "as told"}}, status=self.status)
        if self.break_after == 0:
            assert http.transport is not None
            http.transport.abort()
            return web.Response()
        prompt = body.get("prompt") or " ".join(str(one["content"]) for one in body["messages"])
        prompt_tokens = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        order, self._arrived = self._arrived, self._arrived + 1
        request = reference._Request(order, prompt_tokens, body.get("max_tokens") or self.answers)
        self._tokens[order] = tokens = asyncio.Queue()
        self._expert.arrive(request)
        if request.rejected:
            return web.json_response({"error": {"message": request.rejected}}, status=429)
        self._work.set()
        try:
            return await self._answer(http, body, request, tokens)
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled += 1
            request.output_tokens = request.generated_tokens
            raise
        finally:
            self._tokens.setdefault(order, asyncio.Queue())

    async def _answer(
        self, http: web.Request, body: dict[str, Any], request: Any, tokens: asyncio.Queue[int]
    ) -> web.StreamResponse:
        total = request.output_tokens
        usage = {"prompt_tokens": request.prompt_tokens, "completion_tokens": total}
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        if not body.get("stream"):
            for _ in range(total):
                await tokens.get()
            text = " ".join(f"w{k}" for k in range(1, total + 1))
            message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            head = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
            return web.json_response({**head, "choices": [message], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if not self.is_llama:
            await response.prepare(http)
        for count in range(1, total + 1):
            await tokens.get()
            if not response.prepared:
                await response.prepare(http)
            await response.write(self._event(body, [{"index": 0, "delta": {"content": f"w{count} "}}]))
            if self.break_after == count:
                assert http.transport is not None
                http.transport.abort()
                return response
        end = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        await response.write(self._event(body, end))
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(self._event(body, [], usage=usage))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _event(self, body: dict[str, Any], choices: list[Any], **more: Any) -> bytes:
        head = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
        return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n".encode()

    async def _health(self, http: web.Request) -> web.Response:
        self.checked += 1
        await asyncio.sleep(self.health_s)
        return web.Response(status=self.health_status)

    async def _metrics(self, http: web.Request) -> web.Response:
        running, waiting = len(self._expert.running), len(self._expert.waiting)
        if self.is_llama:
            return web.Response(
                text=f"llamacpp:requests_processing {running}\nllamacpp:requests_deferred {waiting}\n"
            )
        share = self._expert.held_tokens() / self.profile.kv_capacity_tokens
        lines = (("num_requests_running", running), ("num_requests_waiting", waiting))
        lines = (*lines, ("kv_cache_usage_perc", share))
        return web.Response(
            text="".join(f'vllm:{name}{{engine="0",model_name="m"}} {value}\n' for name, value in lines)
        )


def main() -> None:
    """Serve in a process of its own: prints the port, ends when it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--running", type=int, default=64)
    options = parser.parse_args()

    async def run() -> None:
        profile = ReferenceProfile(options.running, 512, 4096, 400_000, 0.002, 1e-5, 0.0, 0.004, 1e-5, 1e-8)
        server = FakeServer(profile, scale=options.scale)
        await server.start(options.port)
        print(server.port, flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
