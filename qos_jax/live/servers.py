"""The servers behind the router: connections to them, health checks with backoff, and what they publish."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import aiohttp

from qos_jax.live.config import ServeConfig
from qos_jax.live.patience import Patience
from qos_jax.live.published import Published, read_published
from qos_jax.live.upstreams import Upstream

# llama-server closes a connection that was idle for 5 s: it is not used again after this long.
_KEEP_ALIVE_S = 4.0
_FIRST_BACKOFF_S = 0.25
_CHECKS_UNTIL_DOWN = 2  # failed in a row; one refused connection is enough


class Attempt:
    """A request at one server."""

    def __init__(self, expert: int, request_id: int) -> None:
        """Begin now, for the twin's id of it."""
        self.expert, self.request_id = expert, request_id
        self.task = asyncio.current_task()
        self.sent_s, self.sent_at_s = time.monotonic(), time.time()
        self.first_s: float | None = None  # monotonic, first token
        self.moved_s = self.sent_s  # monotonic, last byte
        self.has_begun = False  # the client got a byte
        self.awaits_server = False
        self.was_reused = False  # the connection had served a request before
        self.given_up = ""  # why the task was cancelled, if it was here
        self.on_connected: Callable[[], None] = lambda: None  # called once there is a connection

    def give_up(self, reason: str) -> None:
        """Cancel the wait for the server, or for a client that does not read."""
        if not self.given_up and self.task is not None:
            self.given_up = reason
            self.task.cancel()

    def wall_s(self, at_s: float) -> float:
        """Return a monotonic time in seconds since 1970."""
        return self.sent_at_s + at_s - self.sent_s


class Server:
    """One server: whether it is up, and the attempts at it."""

    def __init__(self, index: int, upstream: Upstream, config: ServeConfig, patience: Patience) -> None:
        """Take it to be up until a check says otherwise."""
        self.index, self.upstream, self._config, self._patience = index, upstream, config, patience
        self.is_up = True
        self._failures, self._shunned_until_s = 0, 0.0  # requests that failed in a row; monotonic
        self.heard_s = 0.0  # monotonic, last byte of any answer
        self.attempts: set[Attempt] = set()
        self.on_change: Callable[[Server], None] = lambda server: None
        self.on_published: Callable[[Server, Published], None] = lambda server, published: None
        self._check_now = asyncio.Event()
        self._health_path = "/health"
        self._publishes = config.scrape_period_s != float("inf")

    def headers(self) -> dict[str, str]:
        """Return the headers of requests to it."""
        key = self.upstream.api_key
        return {"Authorization": f"Bearer {key}"} if key else {}

    def has_failed(self, *, is_down: bool) -> None:
        """Note that a request failed: check now, and where nothing listens any more take it to be down.

        A server may pass its checks and fail every request: it looks idle then, and would be chosen first. So
        requests go elsewhere for a while, twice as long after each that failed since the last that did not.
        """
        pause_s = min(_FIRST_BACKOFF_S * 2.0**self._failures, self._config.max_backoff_s)
        self._failures, self._shunned_until_s = min(self._failures + 1, 32), time.monotonic() + pause_s
        if is_down:
            self._mark(False)
        self._check_now.set()

    def has_answered(self) -> None:
        """Note that a request was answered in full."""
        self._failures, self._shunned_until_s = 0, 0.0

    @property
    def is_shunned(self) -> bool:
        """Whether requests are to go elsewhere, since some failed just now."""
        return self._shunned_until_s > time.monotonic()

    async def watch(self, session: aiohttp.ClientSession) -> None:
        """Check its health for good, with growing pauses while it is down."""
        config, failed, backoff_s = self._config, 0, _FIRST_BACKOFF_S
        while True:
            self._check_now.clear()
            if await self._is_healthy(session):
                failed, backoff_s = 0, _FIRST_BACKOFF_S
                self._mark(True)
                pause_s = config.health_period_s
            else:
                failed += 1
                if failed >= _CHECKS_UNTIL_DOWN:
                    self._mark(False)
                pause_s = min(backoff_s, config.max_backoff_s) * random.uniform(0.8, 1.2)
                backoff_s *= 2.0
            with contextlib.suppress(TimeoutError):
                wake = self._check_now if self.is_up else asyncio.Event()
                await asyncio.wait_for(wake.wait(), pause_s)

    async def scrape(self, session: aiohttp.ClientSession) -> None:
        """Read what it publishes of its load for good, or until it turns out to publish nothing."""
        while self._publishes:
            if self.is_up:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError):
                    status, text = await self._get(session, "/metrics")
                    published = read_published(text) if status == 200 else None
                    self._publishes = published is not None or (status >= 500 and status != 501)
                    if published is not None:
                        self.on_published(self, published)
            await asyncio.sleep(self._config.scrape_period_s)

    async def _is_healthy(self, session: aiohttp.ClientSession) -> bool:
        begun_s = time.monotonic()
        try:
            status, _ = await self._get(session, self._health_path)
            if status in (404, 405) and self._health_path == "/health":
                self._health_path = "/v1/models"
                status, _ = await self._get(session, self._health_path)
        except TimeoutError:
            return self.heard_s >= begun_s  # one that is too busy for checks, yet answers, is not down
        except (aiohttp.ClientError, OSError):
            return False
        return status < 500

    async def _get(self, session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
        async with (
            self._patience.limit(self._config.health_timeout_s),
            session.get(self.upstream.url + path, headers=self.headers()) as response,
        ):
            return response.status, (await response.content.read(4_000_000)).decode()

    def _mark(self, is_up: bool) -> None:
        if is_up == self.is_up:
            return
        self.is_up = is_up
        self.on_change(self)
        if is_up:
            self.has_answered()
        if not is_up:
            for attempt in tuple(self.attempts):
                if attempt.awaits_server and not attempt.has_begun:
                    attempt.give_up("its server is down")


def to_avoid(servers: Sequence[Server], failed: Collection[int]) -> list[int]:
    """Return the indices of servers that a request is not to go to.

    Args:
      servers: all of them.
      failed: indices of those that just failed it.
    """
    left = [server for server in servers if server.is_up and server.index not in failed]
    shunned = [server.index for server in left if server.is_shunned]
    return [*failed, *(shunned if len(shunned) < len(left) else ())]


def open_sessions() -> tuple[aiohttp.ClientSession, aiohttp.ClientSession]:
    """Return two clients: one keeps connections, the other makes a new one for each request."""

    async def reused(session: Any, context: SimpleNamespace, params: Any) -> None:
        if isinstance(attempt := context.trace_request_ctx, Attempt):
            attempt.was_reused = True
            attempt.on_connected()

    async def created(session: Any, context: SimpleNamespace, params: Any) -> None:
        if isinstance(attempt := context.trace_request_ctx, Attempt):
            attempt.on_connected()

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    trace.on_connection_create_end.append(created)

    def client(**options: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, **options),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            trace_configs=[trace],
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 18,
        )

    return client(keepalive_timeout=_KEEP_ALIVE_S), client(force_close=True)
