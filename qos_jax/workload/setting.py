"""Open what a user names: a fleet, its latency limit, a trace, and what requests are drawn from."""

from __future__ import annotations

import dataclasses
import math
import pathlib

import jax
import numpy as np

from qos_jax.errors import InputError, input_error
from qos_jax.workload.fleet import Fleet, read_fleet
from qos_jax.workload.named_table import NamedTable, table_for_experts
from qos_jax.workload.profiles import default_latency_limit_s, fleet_path, load_calibration
from qos_jax.workload.synthetic_params import SyntheticParams, experts_named, sample_experts
from qos_jax.workload.table_file import read_table
from qos_jax.workload.trace import Trace, window
from qos_jax.workload.trace_readers import read_trace


def open_fleet(name: str) -> tuple[pathlib.Path, Fleet]:
    """Return the file and the fleet of a CSV's path, or of a shipped fleet's name.

    Raises:
      InputError: there is none, or any fault of the file.
    """
    file = pathlib.Path(name) if name.endswith(".csv") else fleet_path(name)
    return file, read_fleet(file)


def limit_of(file: pathlib.Path, given_s: float | None) -> float:
    """Return the latency limit, seconds per output token: the one given, or that of the shipped fleet.

    Raises:
      InputError: none is known, or it is not positive and finite in float32.
    """
    limit_s = default_latency_limit_s(file) if given_s is None else given_s
    with np.errstate(over="ignore", under="ignore"):
        as_computed_s = float(np.float32(limit_s))
    if not 0 < as_computed_s < math.inf:
        raise input_error(
            f"{limit_s} is not a positive, finite time",
            field="latency_limit_s",
            remedy="give seconds per output token, such as 0.05",
        )
    return limit_s


def open_trace(path: str, start_s: float, end_s: float) -> Trace:
    """Return the requests of a trace file that arrive in [start_s, end_s), under the file's path as name.

    Raises:
      InputError: no window, any fault of the file, or no request in the window.
    """
    if not 0 <= start_s < end_s:  # NaN fails too
        raise input_error(
            f"{start_s} to {end_s} is no window",
            field="trace_start_s",
            remedy="give seconds >= 0, the start before the end",
        )
    trace = dataclasses.replace(read_trace(path), name=path)
    return window(trace, start_s, end_s) if start_s > 0 or end_s < math.inf else trace


def figures_for(fleet: Fleet, seed: int) -> tuple[SyntheticParams, bool]:
    """Return the figures of the fleet's models, and whether experts drawn by ``seed`` stand in for them."""
    calibration = load_calibration()
    try:
        return experts_named(calibration, fleet.names), False
    except InputError:
        return sample_experts(jax.random.key(seed), calibration, fleet.num_experts), True


def open_table(path: str, fleet: Fleet) -> NamedTable:
    """Return the request table of a file, of just the fleet's experts, all its rows.

    Raises:
      InputError: an empty path, any fault of the file, or it lacks one of the experts.
    """
    if not path:
        raise input_error("is empty", field="table", remedy="give --table=FILE, or leave it out")
    return table_for_experts(read_table(path), fleet.names)
