"""The flags of XLA that the suite runs with: of right programs those that are ready soonest."""

from __future__ import annotations

import importlib.util
import mmap
from pathlib import Path


def quick_to_compile() -> str:
    """Return the flags of XLA with which programs are ready soonest.

    Without its fusion emitters compiling takes a third of the time. XLA ends a process over a flag that it
    does not know, so one without the promise to stay is given only where the library has its name in it.
    """
    flags, name = ["--xla_backend_optimization_level=0"], "xla_cpu_use_fusion_emitters"
    spec = importlib.util.find_spec("jaxlib")
    folders = spec.submodule_search_locations if spec is not None else None
    for path in sorted(Path(folders[0]).glob("libjax_common*")) if folders else ():
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            if library.find(name.encode()) >= 0:
                flags.append(f"--{name}=false")
    return " ".join(flags)
