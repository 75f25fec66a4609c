"""Work on blocks of runs side by side, in threads: XLA computes with most of one core on each."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax

from qos_jax.devices import cores

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def default_workers() -> int:
    """Return how many threads make full use of the device: one per core on a CPU, one elsewhere.

    XLA itself shares the steps of one block out to cores, but they are too small for that: on two cores a
    block takes longer than on one, and 1.5 times the processor time.
    """
    return cores() if jax.default_backend() == "cpu" else 1


def map_blocks(
    function: Callable[[_Item], _Result], blocks: Iterable[_Item], workers: int | None
) -> list[_Result]:
    """Return ``function`` of each block, in order, by ``workers`` threads or, if None, the default.

    A block alone, or one worker, is computed by the caller's thread.
    """
    blocks, workers = list(blocks), default_workers() if workers is None else workers
    if min(workers, len(blocks)) <= 1:
        return [function(block) for block in blocks]
    return map_in_threads(function, blocks, workers)


def map_in_threads(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    workers: int,
    on_error: Callable[[], None] | None = None,
) -> list[_Result]:
    """Return ``function`` of each item, in order, computed by threads.

    The first error ends it: items not begun are left out, and those begun are waited for. When interrupted,
    it returns to the caller at once, since a thread cannot be stopped while it compiles.

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
        if ready.is_set():
            return function(*arguments)
        with lock:
            result = function(*arguments)
        ready.set()
        return result

    return call
