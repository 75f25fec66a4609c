"""Flags and start of runs on many devices and hosts: ``with joined():`` before anything uses JAX."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags

from qos_jax.errors import input_error

from . import common

EXIT_LOST = 3  # another process of the run is gone

_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "many hosts: HOST:PORT of process 0; give num_processes and process_id too"
)
_COUNT = flags.DEFINE_integer("num_processes", None, "many hosts: processes in all")
_ID = flags.DEFINE_integer("process_id", None, "many hosts: which of them this is, from 0")
_DETECT = flags.DEFINE_bool(
    "multihost", False, "many hosts: learn all that from the cluster (Slurm, Open MPI, Kubernetes, Cloud TPU)"
)
_LOST_AFTER = flags.DEFINE_integer(
    "lost_after_s", 100, "many hosts: seconds without a sign of life after which a process counts as lost"
)
_CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices",
    None,
    "devices to make of this host's CPU; default: for a sweep one a core that this process may use, from 2, "
    "else one",
)


def one_a_core() -> int:
    """Return as many devices as make full use of a CPU, which works on a program as fast as one core does.

    They are two at least: XLA rounds a program for one device and the same for several differently in a last
    bit, and results are not to depend on the number of cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores, 2)


@contextlib.contextmanager
def joined(cpu_devices: int | None) -> Iterator[None]:
    """Make this process part of the run that the flags describe; ends it if another process is lost.

    A run of one process, the default, only gets its CPU devices.

    Args:
      cpu_devices: how many, unless the flag or ``XLA_FLAGS`` says; None = as JAX makes them, which is one.

    Raises:
      InputError: flags that are missing, contradict each other or are out of range; no cluster to detect, or
        no coordinator to reach.
    """
    given: dict[str, Any] = {flag.name: flag.value for flag in (_ADDRESS, _COUNT, _ID)}
    _check(given)
    _make_cpu_devices(cpu_devices)
    if _DETECT.value or None not in given.values():
        # Where JAX itself ends the process, its message says why, and stacks would bury it.
        faulthandler.disable()
        try:
            jax.distributed.initialize(**given, heartbeat_timeout_seconds=_LOST_AFTER.value)
        except (ValueError, RuntimeError) as error:
            raise input_error(
                f"this process could not join the others ({_first_line(error)})",
                field="multihost" if _DETECT.value else "coordinator_address",
                remedy="check that process 0 runs and is reached there, or give --coordinator_address, "
                "--num_processes and --process_id",
            ) from None
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            f"error: lost touch with another process of the run ({_first_line(error)}); start all processes "
            "again with --resume, which keeps what is complete",
            file=sys.stderr,
        )
        common.exit_now(EXIT_LOST)  # else it would wait for the lost one


def _check(given: dict[str, Any]) -> None:
    missing = [name for name, value in given.items() if value is None]
    if _DETECT.value:
        if len(missing) < len(given):
            raise input_error(
                "contradicts what the cluster is to tell",
                field=next(name for name in given if name not in missing),
                remedy="give either --multihost or the three flags",
            )
    elif 0 < len(missing) < len(given):
        raise input_error("is missing", field=missing[0], remedy=f"give all of {', '.join(given)}")
    if _ADDRESS.value is not None:
        host, colon, port = _ADDRESS.value.rpartition(":")
        if not (colon and host and port.isdigit() and 0 < int(port) < 2**16):
            raise input_error(
                f"{_ADDRESS.value!r} is not HOST:PORT", field=_ADDRESS.name, remedy="give e.g. 10.0.0.1:7000"
            )
    for flag in (_COUNT, _LOST_AFTER, _CPU_DEVICES):
        if flag.value is not None and flag.value < 1:
            raise input_error(f"{flag.value} is below 1", field=flag.name, remedy="give at least 1")
    if _ID.value is not None and _COUNT.value is not None and not 0 <= _ID.value < _COUNT.value:
        raise input_error(
            f"{_ID.value} is out of range", field=_ID.name, remedy=f"give 0 to {_COUNT.value - 1}"
        )


def _make_cpu_devices(default: int | None) -> None:
    count = _CPU_DEVICES.value
    if count is None:
        if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
            return  # the user's word
        count = default
    if count is None:
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has begun to compute in this process, as under a test
        if _CPU_DEVICES.value not in (None, len(jax.devices("cpu"))):
            raise input_error(
                "JAX already has its devices in this process", field=_CPU_DEVICES.name, remedy="leave it out"
            ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
