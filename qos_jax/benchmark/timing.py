"""Compile a program, time its calls in wall and processor seconds, and count the memory it takes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program; calling it waits for the result."""

    compiled: Any  # jax.stages.Compiled
    compile_s: float  # tracing included
    bytes: int  # arguments, outputs and scratch

    def __call__(self, *arguments: Any) -> Any:
        """Run it to the end."""
        return jax.block_until_ready(self.compiled(*arguments))


def compile_program(function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> Program:
    """Compile ``function`` for arguments like these.

    Args:
      function: what to compile.
      arguments: arrays, or their shapes and dtypes.
      donate: indices of the arguments whose memory it may take over.
    """
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    kinds = ("argument", "output", "temp")
    used = sum(getattr(memory, f"{kind}_size_in_bytes", 0) for kind in kinds)
    return Program(compiled, compile_s, used - getattr(memory, "alias_size_in_bytes", 0))


def timed(call: Callable[[], Any], repeats: int, warm_up: bool = True) -> tuple[Any, dict[str, Any]]:
    """Return the last result and, as fields of a row, the median seconds of ``repeats`` calls.

    They are ``wall_s``, and ``cpu_s`` of the processor, all threads.

    Args:
      call: what to time; it must wait for its result.
      repeats: timed calls.
      warm_up: call it once before.
    """
    result = call() if warm_up else None
    wall, cpu = [], []
    for _ in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        result = call()
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return result, {"wall_s": statistics.median(wall), "cpu_s": statistics.median(cpu)}


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree, or of what has their shapes; a random key counts its 8."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        total += int(leaf.size) * (8 if is_key else leaf.dtype.itemsize)
    return total
