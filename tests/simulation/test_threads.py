"""Blocks in threads: results in order, errors and interrupts end all of them, one compilation."""

import concurrent.futures
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from qos_jax.simulation.threads import compiled_once, default_workers, map_blocks, map_in_threads


def test_results_are_in_order_whoever_is_first():
    others_are_done = threading.Event()

    def function(item):
        if item == 0:
            assert others_are_done.wait(10.0)
        elif item == 2:
            others_are_done.set()
        return 10 * item

    assert map_in_threads(function, [0, 1, 2], 2) == [0, 10, 20]


def test_a_block_alone_or_one_worker_needs_no_thread():
    here = threading.get_ident()

    def threads(count, workers):
        return map_blocks(lambda *_: threading.get_ident(), range(count), workers, None)

    assert threads(1, 4) == [here]
    assert threads(2, 1) == [here, here]
    assert here not in threads(2, 2)


def test_a_block_ends_at_its_next_chunk_once_another_has_failed():
    failing, counts = threading.Event(), []

    def function(block, advance):
        if block == 0:
            failing.wait(10.0)
            raise ValueError("a fault of block 0")
        for _ in range(10_000):
            advance(1)
            failing.set()
            time.sleep(1e-3)

    with pytest.raises(ValueError, match="a fault of block 0"):
        map_blocks(function, [0, 1], 2, counts.append)
    assert 1 <= len(counts) < 10_000


def test_an_interrupt_is_raised_at_once_and_ends_the_blocks(monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def function(block, advance):
        try:
            while True:
                advance(1)
                begun.set()
                time.sleep(1e-3)
        except InterruptedError:
            ended.set()
            raise

    def interrupted(*_, **__):
        assert begun.wait(10.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(concurrent.futures, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        map_blocks(function, [0, 1], 2, None)
    assert ended.wait(10.0)


def test_the_first_error_is_raised_once_all_begun_have_heard_of_it():
    heard, begun = threading.Event(), []

    def function(item):
        begun.append(item)
        if item == 1:
            raise ValueError("a fault of item 1")
        assert heard.wait(10.0)

    with pytest.raises(ValueError, match="a fault of item 1"):
        map_in_threads(function, [0, 1, 2, 3], 2, heard.set)
    assert {0, 1} <= set(begun)


def test_threads_that_call_a_function_alike_compile_it_once():
    traced, start = [], threading.Barrier(3)

    @jax.jit
    def doubled(values):
        traced.append(1)
        return 2 * values

    call = compiled_once(doubled)

    def function(item):
        start.wait(10.0)
        return float(call(jnp.float32(item)))

    assert map_in_threads(function, [0, 1, 2], 3) == [0.0, 2.0, 4.0]
    assert len(traced) == 1


def test_there_is_a_worker():
    assert default_workers() >= 1
