"""Work on blocks of runs side by side, in threads: one program keeps little more than one core busy."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax

from qos_jax.devices import cores

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Advance = Callable[[int], None]  # takes how many more requests are routed


def default_workers() -> int:
    """Return how many blocks make full use of the device: one per core on a CPU, one elsewhere.

    XLA itself shares the steps of one block out to cores, but they are too small for that: on two cores a
    block takes longer than on one (data/results/speed.md).
    """
    return cores() if jax.default_backend() == "cpu" else 1


def map_blocks(
    function: Callable[[_Item, Advance], _Result],
    blocks: Iterable[_Item],
    workers: int | None,
    on_progress: Advance | None,
) -> list[_Result]:
    """Return ``function`` of each block, in order.

    Args:
      function: of a block, and of what it calls after each chunk with the number of requests just routed:
        that ends the block once another has failed or the caller was interrupted.
      blocks: any number. One alone is computed by the caller's thread.
      workers: threads; None = :func:`default_workers`.
      on_progress: called with the numbers of requests, by one thread at a time.
    """
    stopped, lock = threading.Event(), threading.Lock()

    def advance(count: int) -> None:
        with lock:
            if stopped.is_set():
                raise InterruptedError
            if on_progress is not None:
                on_progress(count)

    blocks, workers = list(blocks), default_workers() if workers is None else workers
    if min(workers, len(blocks)) <= 1:
        return [function(block, advance) for block in blocks]
    return map_in_threads(lambda block: function(block, advance), blocks, workers, stopped.set)


def map_in_threads(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    workers: int,
    on_error: Callable[[], None] | None = None,
) -> list[_Result]:
    """Return ``function`` of each item, in order, computed by threads.

    The first error ends it: items not begun are left out, and those begun are waited for. An interrupt is
    raised at once and waits for no thread, since one cannot be stopped while it compiles.

    Args:
      function: of an item; called by several threads at a time.
      items: any number.
      workers: how many threads.
      on_error: called at the first error or when interrupted, before anything is waited for.
    """
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        futures = [pool.submit(function, item) for item in items]
        done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        for future in done:
            future.result()
    except BaseException as error:
        if on_error is not None:
            on_error()
        pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
        raise
    pool.shutdown()
    return [future.result() for future in futures]


def compiled_once(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Return a jitted function for threads that call it alike: one of them compiles, the others wait."""
    lock, ready = threading.Lock(), threading.Event()

    def call(*arguments: Any) -> _Result:
        if not ready.is_set():
            with lock:
                if not ready.is_set():
                    result = function(*arguments)
                    ready.set()
                    return result
        return function(*arguments)

    return call
