"""The flags of XLA that the suite runs with: of right programs those that are ready soonest."""

from __future__ import annotations

import os
import subprocess
import sys

# Passes that hoist out of loops make programs faster, not righter, and take a fifth of the compiling. A pass
# that a release does not have is nobody's loss.
_HOISTING = (
    "while-loop-invariant-code-motion",
    "simplify-while-loops",
    "small-while-loop-hoisting",
    "while-loop-constant-sinking",
)
_ALWAYS = f"--xla_backend_optimization_level=0 --xla_disable_hlo_passes={','.join(_HOISTING)}"
# Compiling takes a third of the time without the first; the second keeps a program in one piece, whose parts
# would be compiled side by side at more work in all. Not every release knows them, and XLA ends a process
# over one that it does not know, so a process is asked.
_WHERE_KNOWN = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")


def quick_to_compile() -> str:
    """Return the flags of XLA with which programs are ready soonest; it takes some seconds to find out."""
    every = " ".join((_ALWAYS, *_WHERE_KNOWN))
    if _known(every):
        return every
    return " ".join((_ALWAYS, *(flag for flag in _WHERE_KNOWN if _known(flag))))


def _known(flags: str) -> bool:
    asked = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        check=False,
    )
    return asked.returncode == 0
