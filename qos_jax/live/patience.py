"""Limits of time that stand still while the router itself is late, so that no server is blamed for that."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator, Callable

TICK_S = 0.1


@dataclasses.dataclass(eq=False)
class _Limit:
    ticks_left: int
    timeout: asyncio.Timeout


class Patience:
    """Limits counted in ticks of the event loop: one that was stopped for 5 s counts a single tick.

    A timer of the loop would end a connection attempt at once after such a stop, though the connection has
    long been made and only the loop has not yet looked.
    """

    def __init__(self) -> None:
        """Start without limits."""
        self._open: set[_Limit] = set()

    def tick(self) -> None:
        """Count ``TICK_S`` seconds; limits that are reached raise TimeoutError where they were set."""
        now_s = asyncio.get_running_loop().time()
        for limit in tuple(self._open):
            limit.ticks_left -= 1
            if limit.ticks_left < 0:
                self._open.discard(limit)
                limit.timeout.reschedule(now_s)

    @contextlib.asynccontextmanager
    async def limit(self, seconds: float) -> AsyncIterator[Callable[[], None]]:
        """Limit what is awaited inside; calling what is yielded lifts the limit.

        Raises:
          TimeoutError: it took longer.
        """
        limit = _Limit(math.ceil(seconds / TICK_S), asyncio.timeout(None))
        self._open.add(limit)
        try:
            async with limit.timeout:
                yield lambda: self._open.discard(limit)
        finally:
            self._open.discard(limit)
