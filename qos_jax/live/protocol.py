"""HTTP as the router speaks it: uvicorn's, with limits on headers and on connections that ask nothing."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class LimitedProtocol(HttpToolsProtocol):
    """One connection; a subclass has the limits of its server."""

    max_header_bytes: ClassVar[int] = 32_768
    header_timeout_s: ClassVar[float] = 30.0

    _header_bytes = 0
    _is_in_header = True
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Give the client some time to ask."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.header_timeout_s, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a header; one that is too long ends the connection."""
        if self._is_in_header:
            self._header_bytes += len(data)
            end = data.find(b"\r\n\r\n")
            if self._header_bytes - (len(data) - end if end >= 0 else 0) > self.max_header_bytes:
                self.transport.write(_TOO_LARGE)
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin a header: those of later requests on the connection have time, too."""
        super().on_message_begin()
        self._is_in_header = True

    def on_headers_complete(self) -> None:
        """End a header: its body has limits of its own."""
        self._is_in_header, self._header_bytes = False, 0
        if self._timer is not None:
            self._timer.cancel()
        super().on_headers_complete()

    def _close_if_silent(self) -> None:
        if self._is_in_header and not self.transport.is_closing():
            self.transport.close()
