"""Answer clients: decide, send to a server, pass its bytes on; count what becomes of every request."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import time

import aiohttp
import numpy as np

from qos_jax.live.client import Client, Outcome
from qos_jax.live.config import ServeConfig
from qos_jax.live.counters import Counters
from qos_jax.live.exported import LiveRouter
from qos_jax.live.patience import Patience
from qos_jax.live.prefixes import KnownPrefixes
from qos_jax.live.prompts import BadRequestError, ClientRequest, Expectations, read_request
from qos_jax.live.published import Published
from qos_jax.live.request_log import RequestLog
from qos_jax.live.servers import Attempt, Server, to_avoid
from qos_jax.live.sse import EventStream, Usage, error_event, parsed, usage_of
from qos_jax.live.twin import Newcomer, Twin
from qos_jax.serving.limits import ServiceLimits, all_kept, limits_kept

_REFUSALS = {  # reason of the twin -> status, message
    "dropped": (429, "no server would answer in time"),
    "full": (429, "the line of every suitable server is full"),
    "too_long": (400, "the prompt is longer than any server can hold"),
}
_PASSED_ON = ("content-type", "cache-control", "x-request-id")


class ServerFailedError(Exception):
    """A server failed before the first byte, so that the request may go elsewhere."""

    def __init__(self, reason: str, status: int = 0) -> None:
        """Keep why, and the status of HTTP if there was one."""
        super().__init__(reason)
        self.status = status


class Proxy:
    """The state that all requests share."""

    def __init__(
        self,
        config: ServeConfig,
        router: LiveRouter,
        twin: Twin,
        servers: list[Server],
        expectations: Expectations,
        log: RequestLog,
        counters: Counters,
        patience: Patience,
    ) -> None:
        """Put the parts together; the clients of servers come when the loop runs."""
        self.config, self.experts, self.twin, self.servers = config, router.experts, twin, servers
        self.expectations, self.log, self.counters, self.patience = expectations, log, counters, patience
        self._limits = ServiceLimits(**{"latency_limit_s": math.inf, **router.limits})  # type: ignore[arg-type]
        self._rtt_s, self._kv_capacity_tokens = router.network_rtt_s, router.kv_capacity_tokens
        self._prefixes = KnownPrefixes(expectations) if twin.follows_caches else None
        self._recent_s = 1.0  # mean latency of recent answers
        self.sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession] | None = None
        for server, expert in zip(servers, router.experts, strict=True):
            counters.up.labels(expert).set(1)
            server.on_change, server.on_published = self._on_change, self._on_published

    def _on_published(self, server: Server, published: Published) -> None:
        kv_tokens = published.kv_in_use(int(self._kv_capacity_tokens[server.index]))
        self.twin.scraped(server.index, published.running, published.waiting, kv_tokens)

    def _on_change(self, server: Server) -> None:
        self.twin.up[server.index] = server.is_up
        self.counters.up.labels(self.experts[server.index]).set(int(server.is_up))

    async def answer(self, client: Client, raw: bytes, *, is_chat: bool) -> Outcome:
        """Answer a request whose body has arrived."""
        started_s = time.monotonic()
        try:
            request = read_request(raw, is_chat=is_chat)
        except BadRequestError as error:
            return await client.refuse(400, str(error), "invalid_request")
        model = request.body.get("model", self.config.model)
        if model != self.config.model:
            message = f"the model {str(model)[:80]!r} does not exist; use {self.config.model!r}"
            return await client.refuse(404, message, "model_not_found")
        if self.expectations.reads_text:
            newcomer = await asyncio.to_thread(self.expectations.newcomer, request)
        else:
            newcomer = self.expectations.newcomer(request)
        if self._prefixes is not None:
            newcomer = dataclasses.replace(newcomer, prefix=self._prefixes.of(request))
        return await self._route(client, request, newcomer, is_chat, started_s)

    async def _route(
        self, client: Client, request: ClientRequest, newcomer: Newcomer, is_chat: bool, started_s: float
    ) -> Outcome:
        """Try one server after the other until one begins to answer."""
        avoided: list[int] = []
        failure = ServerFailedError("no server is up")
        for number in range(self.config.retries + 1):
            begun_s = time.perf_counter()
            age_s = time.monotonic() - started_s if number else 0.0
            request_id, decision = self.twin.decide(newcomer, age_s, to_avoid(self.servers, avoided))
            self.counters.decision_s.observe(time.perf_counter() - begun_s)
            if decision.expert is None:
                if number == 0 and self.twin.up.any():
                    status, message = _REFUSALS[decision.reason]
                    return await client.refuse(status, message, decision.reason, self._retry_after_s(status))
                break
            if number:
                self.counters.retried.labels(self.experts[decision.expert]).inc()
            attempt = Attempt(decision.expert, request_id)
            try:
                return await self._attempt(client, request, newcomer, attempt, is_chat, started_s)
            except ServerFailedError as error:
                failure = error
                avoided.append(decision.expert)
        if failure.status == 429:
            return await client.refuse(429, "every server is full", "full", self._retry_after_s(429))
        if not avoided:
            return await client.refuse(503, "no server is up", "no_server", self._retry_after_s(503))
        await client.error(502, f"the server failed before it answered: {failure}", "server_failed")
        return "failed", "server"

    def _retry_after_s(self, status: int) -> int | None:
        """Return after how many seconds a slot is likely free, or a server is checked again."""
        if status == 503:
            return math.ceil(self.config.health_period_s)
        in_flight = sum(len(server.attempts) for server in self.servers)
        return min(max(math.ceil(self._recent_s / max(in_flight, 1)), 1), 30) if status == 429 else None

    async def _attempt(
        self,
        client: Client,
        request: ClientRequest,
        newcomer: Newcomer,
        attempt: Attempt,
        is_chat: bool,
        started_s: float,
    ) -> Outcome:
        """Send a request to a server and pass its answer on; note in any case how it ended."""
        server, expert = self.servers[attempt.expert], self.experts[attempt.expert]
        events = EventStream(hide_usage=self.config.stream_usage and not request.wants_usage)
        usage: Usage | None = None
        status, error = 0, "abandoned"
        if not request.is_streamed:
            self.twin.unseen(attempt.request_id)
        server.attempts.add(attempt)
        self.counters.sent.labels(expert).inc()
        self.log.write_text(client.request_id, expert, request.body)
        try:
            response = await self._send(server, request, attempt, is_chat)
            status = response.status
            async with response:
                if status == 429 or status >= 500:
                    if status >= 500:
                        server.has_failed(is_down=False)
                    raise ServerFailedError(f"it says {status}", status)
                if request.is_streamed and response.content_type == "text/event-stream":
                    outcome = await self._pass_stream(client, response, attempt, events, expert)
                    usage = events.usage
                else:
                    body = await self._read(response, attempt)
                    usage = usage_of(parsed(body))
                    await client.begin(status, _headers(response, expert), len(body))
                    attempt.has_begun = True
                    await client.send(body, last=True)
                    outcome = ("completed", expert) if status < 400 else ("refused", "by_server")
            error = "" if outcome[0] == "completed" else outcome[1]
            if not error:
                server.has_answered()
            return outcome
        except asyncio.CancelledError:
            error = attempt.given_up or "client"
            if not attempt.given_up or attempt.task is None:
                raise
            attempt.task.uncancel()
            if attempt.awaits_server and not attempt.has_begun:
                raise ServerFailedError(error) from None
            if attempt.awaits_server:
                await client.send(error_event(f"the answer ended early: {error}", "server_failed"), last=True)
                return "failed", "server"
            return "failed", "client"
        except ServerFailedError as failed:
            error, status = str(failed), failed.status
            raise
        finally:
            server.attempts.discard(attempt)
            self.counters.sent.labels(expert).dec()
            tokens = usage.output_tokens if usage is not None else events.deltas
            self._note(attempt, request, newcomer, usage, tokens, error, status, client.request_id, started_s)

    async def _send(
        self, server: Server, request: ClientRequest, attempt: Attempt, is_chat: bool
    ) -> aiohttp.ClientResponse:
        """Return the server's answer, whose body is still to come.

        A connection that served before may be one that the server just closed: then nothing is wrong with the
        server, and the request goes out on a new one.
        """
        assert self.sessions is not None
        path = "/v1/chat/completions" if is_chat else "/v1/completions"
        body = {**request.body, "model": server.upstream.model}
        if request.is_streamed and self.config.stream_usage:
            options = body.get("stream_options")
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        data = json.dumps(body, ensure_ascii=False).encode(errors="replace")
        headers = {**server.headers(), "Content-Type": "application/json", "Accept-Encoding": "identity"}
        for session in self.sessions:
            attempt.was_reused, attempt.awaits_server = False, True
            try:
                async with self.patience.limit(self.config.connect_timeout_s) as attempt.on_connected:
                    response = await session.post(
                        server.upstream.url + path, data=data, headers=headers, trace_request_ctx=attempt
                    )
                attempt.moved_s = server.heard_s = time.monotonic()
                return response
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                attempt.awaits_server = False
                if not attempt.was_reused:
                    server.has_failed(is_down=isinstance(error, aiohttp.ClientConnectorError))
                    raise ServerFailedError(_said(error)) from None
        raise ServerFailedError("the connection broke")

    async def _read(self, response: aiohttp.ClientResponse, attempt: Attempt) -> bytes:
        """Return the whole body of an answer."""
        attempt.awaits_server = True
        try:
            body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            attempt.awaits_server = False
            self.servers[attempt.expert].has_failed(is_down=False)
            raise ServerFailedError(_said(error)) from None
        attempt.awaits_server = False
        attempt.moved_s = time.monotonic()
        return body

    async def _pass_stream(
        self,
        client: Client,
        response: aiohttp.ClientResponse,
        attempt: Attempt,
        events: EventStream,
        expert: str,
    ) -> Outcome:
        """Pass events on as they come, and say so to the client where they end early."""
        broken = ""
        while True:
            attempt.awaits_server = True
            try:
                data = await response.content.readany()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                attempt.awaits_server, broken = False, _said(error)
                break
            attempt.awaits_server = False
            attempt.moved_s = self.servers[attempt.expert].heard_s = time.monotonic()
            whole = events.feed(data) if data else events.end()
            if attempt.first_s is None and events.deltas:
                attempt.first_s = attempt.moved_s
                self.twin.began(attempt.request_id)
            if whole:
                if not attempt.has_begun:
                    await client.begin(response.status, _headers(response, expert), None)
                    attempt.has_begun = True
                await client.send(whole)
            if not data:
                break
        if events.is_done and attempt.has_begun:
            await client.send(b"", last=True)
            return ("failed", "server") if events.has_error else ("completed", expert)
        self.servers[attempt.expert].has_failed(is_down=False)
        broken = broken or "the connection was closed"
        if not attempt.has_begun:
            raise ServerFailedError(broken)
        await client.send(error_event(f"the answer ended early: {broken}", "server_failed"), last=True)
        return "failed", "server"

    def _note(
        self,
        attempt: Attempt,
        request: ClientRequest,
        newcomer: Newcomer,
        usage: Usage | None,
        tokens: int,
        error: str,
        status: int,
        request_id: str,
        started_s: float,
    ) -> None:
        """Tell the twin, the log and the counters how an attempt ended."""
        expert, now_s = self.experts[attempt.expert], time.monotonic()
        self.twin.ended(attempt.request_id, tokens if not error else 0)
        if usage is not None:
            self.expectations.learn(request, usage.prompt_tokens)
        counted = 0 if usage is None else usage.prompt_tokens
        last_s = attempt.moved_s if not error else now_s
        unseen = "not streamed" if not request.is_streamed else "no token seen"
        several = tokens > 1 and attempt.first_s is not None and last_s <= attempt.first_s
        # One that the client left after its first token was load all the same: it asked for what it got.
        fault = unseen if attempt.first_s is None else "tokens came at once" if several else ""
        fault = fault if error in ("", "client") else error
        self.log.write(
            attempt.expert,
            sent_s=attempt.sent_at_s,
            first_s=None if attempt.first_s is None else attempt.wall_s(attempt.first_s),
            last_s=attempt.wall_s(last_s),
            prompt_tokens=counted or newcomer.prompt_tokens,
            output_tokens=tokens,
            cached_tokens=None if usage is None else usage.cached_tokens,
            error=fault,
            ended=error or "completed",
            request_id=request_id,
            status=status,
        )
        self.counters.note_tokens(expert, usage, tokens)
        if attempt.first_s is not None:
            self.counters.ttft_s.labels(expert).observe(attempt.first_s - attempt.sent_s)
        if not error:
            latency_s = now_s - started_s
            self._recent_s += 0.05 * (latency_s - self._recent_s)
            self.counters.latency_s.labels(expert).observe(latency_s)
            if self._within_limits(attempt, latency_s, tokens):
                self.counters.within_limits.labels(expert).inc()

    def _within_limits(self, attempt: Attempt, latency_s: float, tokens: int) -> bool:
        rtt_s = float(self._rtt_s[attempt.expert])
        ttft_s = (attempt.first_s or attempt.moved_s) - attempt.sent_s - rtt_s
        return bool(all_kept(limits_kept(self._limits, latency_s, ttft_s, max(tokens, 1), rtt_s, np)))


def _headers(response: aiohttp.ClientResponse, expert: str) -> list[tuple[bytes, bytes]]:
    kept = [(name, response.headers[name]) for name in _PASSED_ON if name in response.headers]
    kept.append(("x-qos-expert", expert))
    return [(name.encode(), value.encode("latin-1", errors="replace")) for name, value in kept]


def _said(error: BaseException) -> str:
    """Return what went wrong, without addresses of servers, which clients need not know."""
    return {
        "ClientConnectorError": "no connection",
        "ServerDisconnectedError": "it closed the connection",
        "ClientPayloadError": "the connection broke",
    }.get(type(error).__name__, type(error).__name__)
