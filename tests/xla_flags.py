"""The flags of XLA that the suite runs with: of right programs those that are ready soonest."""

from __future__ import annotations

import os
import subprocess
import sys

_ALWAYS = "--xla_backend_optimization_level=0"
# Compiling takes a third of the time. Not every release knows it, and XLA ends a process over one that it
# does not know, so a process is asked.
_WHERE_KNOWN = "--xla_cpu_use_fusion_emitters=false"


def quick_to_compile() -> str:
    """Return the flags of XLA with which programs are ready soonest; it takes some seconds to find out."""
    flags = f"{_ALWAYS} {_WHERE_KNOWN}"
    asked = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        check=False,
    )
    return flags if asked.returncode == 0 else _ALWAYS
