"""Workloads: fleets, request tables, traces and arrival processes."""

from qos_jax.workload.arrivals import (
    ArrivalProcess,
    ArrivalState,
    diurnal,
    gamma,
    init_arrivals,
    make_process,
    mmpp,
    next_gap,
    poisson,
    sample_gaps,
)
from qos_jax.workload.fleet import Fleet, read_fleet, take, validate_fleet, write_fleet
from qos_jax.workload.request_table import (
    PredictionError,
    RequestTable,
    measure_prediction_error,
    validate_request_table,
)
from qos_jax.workload.trace import Trace, scale_rate, split, window

__all__ = [
    "ArrivalProcess",
    "ArrivalState",
    "Fleet",
    "PredictionError",
    "RequestTable",
    "Trace",
    "diurnal",
    "gamma",
    "init_arrivals",
    "make_process",
    "measure_prediction_error",
    "mmpp",
    "next_gap",
    "poisson",
    "read_fleet",
    "sample_gaps",
    "scale_rate",
    "split",
    "take",
    "validate_fleet",
    "validate_request_table",
    "window",
    "write_fleet",
]
