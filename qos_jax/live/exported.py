"""Read an exported router: one file with its decision, loaded without the code of policies and learning."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from qos_jax.checks import check_names
from qos_jax.errors import input_error
from qos_jax.files import read_npz

VERSION = 2
_REMEDY = "write it with qos-jax export of this version"


@dataclasses.dataclass(frozen=True, eq=False)
class LiveRouter:
    """A compiled decision and what else serving needs of the fleet."""

    name: str  # of the policy
    experts: tuple[str, ...]  # N names
    kv_capacity_tokens: np.ndarray  # [N] int64
    network_rtt_s: np.ndarray  # [N] float32
    limits: dict[str, float]  # those that are set, seconds
    step: Callable[..., Any]  # see program.py
    start: list[Any]
    events: dict[str, np.ndarray]


def load_exported(path: str | Path) -> LiveRouter:
    """Read a file that :meth:`PlannedRouter.export` wrote, and compile it for this machine.

    Raises:
      InputError: no such file, a damaged one, or one of another version.
    """
    arrays = read_npz(path, remedy=_REMEDY)
    try:
        header = json.loads(str(arrays["header"]))
        version = header["version"]
    except (KeyError, ValueError, TypeError):
        raise input_error("is no exported router", file=path, field="header", remedy=_REMEDY) from None
    if version != VERSION:
        fault = f"has version {version!r}, not {VERSION}"
        raise input_error(fault, file=path, field="header", remedy=_REMEDY)
    try:
        check_names("experts", header["experts"], file=path)
        program = export.deserialize(bytearray(arrays["program"].tobytes()))
        start = [arrays[name] for name in sorted(arrays) if name.startswith("state/")]
        events = {name.removeprefix("events/"): a for name, a in arrays.items() if name.startswith("events/")}
        compiled = jax.jit(program.call).lower(start, events).compile()
        return live_router(header, compiled, start, events)
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError, struct.error) as error:
        reason = str(error).partition("\n")[0]
        raise input_error(f"is damaged ({reason})", file=path, remedy=_REMEDY) from None


def live_router(header: dict[str, Any], program: Any, start: list[Any], events: dict[str, Any]) -> LiveRouter:
    """Return a compiled program with what its header says."""
    return LiveRouter(
        name=header["policy"],
        experts=tuple(header["experts"]),
        kv_capacity_tokens=np.array(header["kv_capacity_tokens"], np.int64),
        network_rtt_s=np.array(header["network_rtt_s"], np.float32),
        limits=header["limits"],
        step=program,
        start=[jnp.asarray(leaf) for leaf in start],
        events=events,
    )
