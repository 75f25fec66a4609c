"""What speeds were measured on: cores, processor, JAX, the memory held and how fast it can be copied."""

from __future__ import annotations

import contextlib
import platform
import resource
import sys
from typing import Any

import jax
import jax.numpy as jnp

from qos_jax.benchmark.timing import compile_program, timed
from qos_jax.devices import cores

_COPIED_BYTES = 2**27  # far beyond any cache


def machine() -> dict[str, Any]:
    """What the figures were measured on: cores, processor, JAX and its backend."""
    return {
        "cores": cores(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def copy_bandwidth_bytes_per_s(repeats: int, size_bytes: int = _COPIED_BYTES) -> float:
    """Memory bandwidth, bytes read and written a second, by a compiled pass over one large array.

    The pass adds 1 to float32 numbers in place, so each byte is read once and written once, and no memory
    is asked of the system. The fastest of the repeats counts: others share the memory, and it is a bound
    that is asked for.

    Args:
      repeats: passes, after one to warm up.
      size_bytes: of the array.
    """
    numbers = [jnp.zeros((size_bytes // 4,), jnp.float32)]
    program = compile_program(lambda x: x + jnp.float32(1.0), numbers[0], donate=(0,))

    def one_pass() -> None:
        numbers.append(program(numbers.pop()))

    one_pass()
    fastest_s = min(timed(one_pass, 1, warm_up=False)[1]["wall_s"] for _ in range(repeats))
    return 2.0 * size_bytes / fastest_s


def peak_memory_bytes() -> dict[str, int]:
    """Most memory held so far: by this process (``host``), and on the device where it says so."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        peak["device"] = stats["peak_bytes_in_use"]
    return peak


def _processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
