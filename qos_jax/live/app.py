"""The endpoints: who may ask, how much a client may send, what becomes of one that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import sys
import traceback
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qos_jax.live.client import Client, Outcome
from qos_jax.live.patience import TICK_S
from qos_jax.live.proxy import Proxy
from qos_jax.live.servers import open_sessions
from qos_jax.live.sse import error_body

_NO_KEY = "give the API key as a bearer token"
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ClientGoneError(Exception):
    """The client closed its connection."""


def make_app(proxy: Proxy, api_key: str | None) -> Any:
    """Return the ASGI application of a proxy.

    Completions are called by the server itself: Starlette would wrap each event of a stream twice.

    Args:
      proxy: the state that requests share.
      api_key: that clients must give as a bearer token; None = anyone may ask.
    """

    def guarded(answer: Any) -> Any:
        async def endpoint(request: Request) -> Response:
            if not _may_ask(request.scope, api_key):
                body = error_body(_NO_KEY, "authentication_error", "invalid_api_key")
                return JSONResponse(body, 401, {"www-authenticate": "Bearer"})
            return answer()

        return endpoint

    def models() -> Response:
        one = {"id": proxy.config.model, "object": "model", "created": 0, "owned_by": "qos-jax"}
        return JSONResponse({"object": "list", "data": [one]})

    def metrics() -> Response:
        for expert, pace in zip(proxy.experts, proxy.twin.pace, strict=True):
            proxy.counters.pace.labels(expert).set(float(pace))
        return Response(proxy.counters.text(), media_type=_METRICS_TYPE)

    async def health(request: Request) -> Response:
        up = [bool(one) for one in proxy.twin.up]
        return JSONResponse({"status": "ok" if any(up) else "no server is up"}, 200 if any(up) else 503)

    asked = {
        "/v1/chat/completions": Completions(proxy, api_key, is_chat=True),
        "/v1/completions": Completions(proxy, api_key, is_chat=False),
    }
    others = Starlette(
        routes=[
            *(Route(path, answer, methods=["POST"]) for path, answer in asked.items()),
            Route("/v1/models", guarded(models)),
            Route("/metrics", guarded(metrics)),
            Route("/health", health),
        ],
        lifespan=lambda app: _running(proxy),
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        is_asked = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in asked
        await (asked[scope["path"]] if is_asked else others)(scope, receive, send)

    return app


@contextlib.asynccontextmanager
async def _running(proxy: Proxy) -> AsyncIterator[None]:
    """Run what serving needs besides requests: clients of the servers, health checks, scrapes, the clock."""
    sessions = proxy.sessions = open_sessions()
    loops = [asyncio.create_task(server.watch(sessions[0])) for server in proxy.servers]
    loops += [asyncio.create_task(server.scrape(sessions[0])) for server in proxy.servers]
    loops.append(asyncio.create_task(_tick(proxy)))
    for loop in loops:
        loop.add_done_callback(_report)
    try:
        yield
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        for session in sessions:
            await session.close()
        proxy.log.close()


async def _tick(proxy: Proxy) -> None:
    """Take in what was noted, end what has stalled, and flush the log, several times a second."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(TICK_S)
        proxy.patience.tick()
        proxy.twin.catch_up()
        now_s = loop.time()
        for server in proxy.servers:
            for attempt in tuple(server.attempts):
                if attempt.has_begun and now_s - attempt.moved_s > proxy.config.stall_timeout_s:
                    attempt.give_up("nothing came for too long")
        proxy.log.flush()


def _report(task: asyncio.Task[None]) -> None:
    """Say why a loop ended that should not."""
    if not task.cancelled() and task.exception() is not None:
        traceback.print_exception(task.exception(), file=sys.stderr)


class Completions:
    """An ASGI application that answers requests for completions, and counts what becomes of each."""

    def __init__(self, proxy: Proxy, api_key: str | None, *, is_chat: bool) -> None:
        """Answer chats, or plain prompts."""
        self._proxy, self._api_key, self._is_chat = proxy, api_key, is_chat

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        counters, client = self._proxy.counters, Client(send)
        counters.arrived.inc()
        counters.in_flight.inc()
        outcome = ("failed", "router")
        try:
            outcome = await self._answer(scope, receive, client)
        except ClientGoneError:
            outcome = ("failed", "client")
        except Exception:
            traceback.print_exc()
            if not client.has_begun:
                await client.error(500, "the router failed; see its log", "router_failed")
        finally:
            counters.in_flight.dec()
            kind, label = outcome
            {"completed": counters.completed, "refused": counters.refused, "failed": counters.failed}[
                kind
            ].labels(label).inc()

    async def _answer(self, scope: Any, receive: Any, client: Client) -> Outcome:
        config = self._proxy.config
        if not _may_ask(scope, self._api_key):
            return await client.refuse(401, _NO_KEY, "invalid_api_key", close=True)
        try:
            async with asyncio.timeout(config.body_timeout_s):
                raw = await _read_body(scope, receive, config.max_body_bytes)
        except TimeoutError:
            message = f"the body took longer than {config.body_timeout_s:g} s"
            return await client.refuse(408, message, "too_slow", close=True)
        if raw is None:
            message = f"the body is longer than {config.max_body_bytes} bytes"
            return await client.refuse(413, message, "too_large", close=True)
        work = asyncio.ensure_future(self._proxy.answer(client, raw, is_chat=self._is_chat))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise ClientGoneError
        finally:
            for task in (work, gone):
                if not task.done():
                    task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


async def _read_body(scope: Any, receive: Any, longest: int) -> bytes | None:
    """Return the body of a request, None if it is too long.

    Raises:
      ClientGoneError: the client went away before the end.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > longest:
            return None
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > longest:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _may_ask(scope: Any, api_key: str | None) -> bool:
    """Return whether a request gives the key, compared in constant time."""
    if api_key is None:
        return True
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    kind, _, token = given.partition(b" ")
    return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), api_key.encode())
