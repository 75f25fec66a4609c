"""Run a live router: listen once all is ready, stop on SIGTERM after the requests in flight have ended."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from qos_jax.errors import input_error
from qos_jax.live.app import make_app
from qos_jax.live.config import ServeConfig
from qos_jax.live.counters import Counters
from qos_jax.live.exported import LiveRouter
from qos_jax.live.patience import Patience
from qos_jax.live.plan import LivePlan
from qos_jax.live.protocol import LimitedProtocol
from qos_jax.live.proxy import Proxy
from qos_jax.live.request_log import RequestLog
from qos_jax.live.servers import Server
from qos_jax.live.twin import Twin

_BACKLOG = 2048
_KEEP_ALIVE_S = 30


def make_proxy(plan: LivePlan, router: LiveRouter, folder: Path, *, renew_logs: bool = False) -> Proxy:
    """Return the state of a live router whose logs are in a folder, continued or begun anew."""
    patience = Patience()
    return Proxy(
        plan.config,
        router,
        Twin(router.step, router.start, router.events, time.monotonic),
        [Server(index, upstream, plan.config, patience) for index, upstream in enumerate(plan.upstreams)],
        plan.expectations,
        RequestLog(folder, router.experts, log_text=plan.config.log_text, renew=renew_logs),
        Counters(),
        patience,
    )


def open_port(config: ServeConfig) -> socket.socket:
    """Return a socket that listens at the address of the configuration.

    Raises:
      InputError: it is taken, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        field = "port" if not isinstance(error, socket.gaierror) else "host"
        fault = f"cannot listen at {config.host}:{config.port} ({error.strerror})"
        raise input_error(
            fault, field=field, remedy="give another, such as --port=0 for a free one"
        ) from None
    return listener


def make_server(plan: LivePlan, proxy: Proxy, on_listening: Callable[[], None]) -> uvicorn.Server:
    """Return the HTTP server of a proxy; ``on_listening`` is called once clients may connect."""
    config = plan.config
    limits = {"max_header_bytes": config.max_header_bytes, "header_timeout_s": config.body_timeout_s}
    settings = uvicorn.Config(
        make_app(proxy, plan.api_key),
        http=type("Protocol", (LimitedProtocol,), limits),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        limit_concurrency=config.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(int(config.drain_timeout_s), 1),
    )
    return _Server(settings, on_listening)


def run_proxy(
    plan: LivePlan, proxy: Proxy, listener: socket.socket, on_listening: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT, then until the requests in flight have ended; a second one ends at once.

    Args:
      plan: what was checked.
      proxy: from :func:`make_proxy`.
      listener: from :func:`open_port`.
      on_listening: called with the URL once clients may connect.
    """
    _raise_open_files(plan.config.max_connections)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def listening() -> None:
        # What start-up left stays for good: a collection that went through all of it would stop the loop.
        gc.collect()
        gc.freeze()
        on_listening(url)

    server = make_server(plan, proxy, listening)
    with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
        runner.run(server.serve([listener]))


class _Server(uvicorn.Server):
    """A server that ends with exit code 0 where it was asked to end."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(one, self.handle_exit) for one in signals]
        try:
            yield
        finally:
            for one, handler in zip(signals, before, strict=True):
                signal.signal(one, handler)


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes uvloop's event loop, None where there is none (Windows)."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    return importlib.import_module("uvloop").new_event_loop


def _raise_open_files(connections: int) -> None:
    """Allow a file for each connection and each server's, where the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, soft), hard))
