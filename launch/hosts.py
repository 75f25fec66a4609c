"""Flags and start of runs on many devices and hosts: ``with joined():`` before anything uses JAX."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax

from qos_jax.checks import COUNT, Interval, check_range
from qos_jax.devices import cores
from qos_jax.errors import input_error

from . import common

EXIT_LOST = 3  # another process of the run is gone


@dataclasses.dataclass(frozen=True)
class HostConfig:
    """Which processes make up a run, and how many devices each makes of its CPU.

    Raises:
      InputError: settings that are missing, contradict each other or are out of range.
    """

    coordinator_address: str | None = None  # many hosts: HOST:PORT of process 0; needs the next two
    num_processes: int | None = None  # many hosts: processes in all
    process_id: int | None = None  # many hosts: which of them this is, from 0
    multihost: bool = False  # many hosts: detect all that from Slurm, Open MPI, Kubernetes or Cloud TPU
    lost_after_s: int = 100  # many hosts: seconds without a sign of life until a process counts as lost
    cpu_devices: int | None = None  # made of this host's CPU; none = for a sweep one a core, from 2, else one

    @property
    def processes(self) -> dict[str, Any]:
        """What ``jax.distributed.initialize`` needs unless the cluster says it."""
        names = ("coordinator_address", "num_processes", "process_id")
        return {name: getattr(self, name) for name in names}

    def __post_init__(self) -> None:
        given = [name for name, value in self.processes.items() if value is not None]
        missing = [name for name in self.processes if name not in given]
        if self.multihost and given:
            remedy = "give either --multihost or the three flags"
            raise input_error("contradicts what the cluster is to say", field=given[0], remedy=remedy)
        if given and missing:
            remedy = f"give all of {', '.join(self.processes)}"
            raise input_error("is missing", field=missing[0], remedy=remedy)
        check_range(self, ["num_processes", "lost_after_s", "cpu_devices"], COUNT)
        if not given:
            return
        host, colon, port = str(self.coordinator_address).rpartition(":")
        if not (colon and host and port.isdigit() and 0 < int(port) < 2**16):
            fault = f"{self.coordinator_address!r} is not HOST:PORT"
            raise input_error(fault, field="coordinator_address", remedy="give e.g. 10.0.0.1:7000")
        check_range(self, ["process_id"], Interval(0, (self.num_processes or 1) - 1, whole=True))


def one_a_core() -> int:
    """Return as many devices as make full use of a CPU, which works on a program as fast as one core does.

    They are two at least: XLA rounds a program for one device and the same for several differently in a last
    bit, and results are not to depend on the number of cores.
    """
    return max(cores(), 2)


@contextlib.contextmanager
def joined(config: HostConfig, cpu_devices: int | None) -> Iterator[None]:
    """Make this process part of a run; ends it if another process is lost.

    A run of one process, the default, only gets its CPU devices.

    Args:
      config: the processes of the run.
      cpu_devices: how many, unless ``config`` or ``XLA_FLAGS`` says; None = as JAX makes them, which is one.

    Raises:
      InputError: no cluster to detect, or no coordinator to reach.
    """
    _make_cpu_devices(config.cpu_devices, cpu_devices)
    if config.multihost or config.coordinator_address is not None:
        # Where JAX itself ends the process, its message says why, and stacks would bury it.
        faulthandler.disable()
        try:
            jax.distributed.initialize(**config.processes, heartbeat_timeout_seconds=config.lost_after_s)
        except (ValueError, RuntimeError) as error:
            raise input_error(
                f"this process could not join the others ({_first_line(error)})",
                field="multihost" if config.multihost else "coordinator_address",
                remedy="check that process 0 runs and is reached there, or give --coordinator_address, "
                "--num_processes and --process_id",
            ) from None
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        fault = f"lost touch with another process of the run ({_first_line(error)})"
        remedy = "start all processes again with --resume, which keeps what is complete"
        print(f"error: {fault}; {remedy}", file=sys.stderr)
        common.exit_now(EXIT_LOST)  # else it would wait for the lost one


def _make_cpu_devices(asked: int | None, default: int | None) -> None:
    users_choice = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    count = default if asked is None and not users_choice else asked
    if count is None:
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has begun to compute in this process, as under a test
        if asked not in (None, len(jax.devices("cpu"))):
            fault = "JAX already has its devices in this process"
            raise input_error(fault, field="cpu_devices", remedy="leave it out") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
