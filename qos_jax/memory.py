"""Memory that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
import gc


def return_freed() -> bool:
    """Return what this process has freed to the system; False where the C library can't, or has none.

    Compiling a large program takes more than 1 GB, most of which glibc keeps in the arenas of the compiler's
    threads. What only cycles of references keep, as tracing leaves some, is freed first. Source:
    malloc_trim(3).
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows has no library of that name
        return False
    return bool(trim(ctypes.c_size_t(0)))
