"""What the machine is, how much memory was held, how fast memory is copied, how programs are timed."""

import jax.numpy as jnp

from qos_jax.benchmark.machine import copy_bandwidth_bytes_per_s, machine, peak_memory_bytes
from qos_jax.benchmark.timing import compile_program, timed, tree_bytes


def test_where_it_ran():
    assert machine().keys() >= {"cores", "processor", "jax", "backend"}
    assert machine()["cores"] >= 1
    assert peak_memory_bytes()["host"] > 2**20
    assert 1e6 < copy_bandwidth_bytes_per_s(2, 2**20) < 1e14


def test_timing():
    calls = []
    result, times = timed(lambda: calls.append(1) or len(calls), repeats=3)
    assert result == 4  # one more to warm up
    assert times.keys() == {"wall_s", "cpu_s"}
    assert min(times.values()) >= 0
    program = compile_program(lambda x: x * jnp.float32(2.0), jnp.ones((8,)))
    assert program(jnp.ones((8,)))[3] == 2.0
    assert program.bytes >= 2 * 8 * 4
    assert tree_bytes({"a": jnp.ones((8,)), "b": jnp.zeros((), bool)}) == 33
