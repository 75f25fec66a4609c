"""The client of one request: the connection that its answer goes out on."""

from __future__ import annotations

import json
import secrets
from typing import Any

from qos_jax.live.sse import error_body

Outcome = tuple[str, str]  # "completed" and the expert, or "refused" or "failed" and the reason


class Client:
    """The client of one request: its connection, and what it has been sent."""

    def __init__(self, send: Any) -> None:
        """Answer by the ``send`` of ASGI."""
        self._send = send
        self.request_id = secrets.token_hex(8)
        self.has_begun = False

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        """Send status and headers."""
        self.has_begun = True
        if length is not None:
            headers = [*headers, (b"content-length", str(length).encode())]
        headers = [*headers, (b"x-qos-request-id", self.request_id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def error(
        self, status: int, message: str, code: str, retry_after_s: int | None = None, *, close: bool = False
    ) -> None:
        """Send an error as OpenAI's API writes it."""
        kind = "invalid_request_error" if status < 429 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        body = json.dumps(error_body(message, kind, code)).encode()
        headers = [(b"content-type", b"application/json")]
        if retry_after_s is not None:
            headers.append((b"retry-after", str(retry_after_s).encode()))
        if close:
            headers.append((b"connection", b"close"))
        await self.begin(status, headers, len(body))
        await self.send(body, last=True)

    async def refuse(
        self, status: int, message: str, reason: str, retry_after_s: int | None = None, *, close: bool = False
    ) -> Outcome:
        """Send an error to a request that goes to no server."""
        await self.error(status, message, reason, retry_after_s, close=close)
        return "refused", reason
