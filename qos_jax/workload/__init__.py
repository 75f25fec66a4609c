"""Workloads: fleets, request tables, traces and arrival processes."""

from qos_jax.workload.added_error import AddedError, known_log_std, with_prediction_error
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
    with_recording,
)
from qos_jax.workload.fleet import Fleet, read_fleet, take, validate_fleet, write_fleet
from qos_jax.workload.named_table import NamedTable, split_rows, table_for_experts
from qos_jax.workload.profiles import (
    LengthHistogram,
    RateProfile,
    arrivals_like,
    data_folder,
    default_latency_limit_s,
    fleet_path,
    load_calibration,
    load_length_histogram,
    load_rate_profile,
    sample_lengths,
    workload_names,
)
from qos_jax.workload.request_table import RequestTable, measure_length_log_std
from qos_jax.workload.requests import DROPPED, Requests, read_requests, write_requests
from qos_jax.workload.synthetic import sample_table, table_for_trace
from qos_jax.workload.synthetic_params import (
    SyntheticParams,
    experts_named,
    load_params,
    sample_experts,
    save_params,
    select_experts,
)
from qos_jax.workload.table_file import read_table, write_table
from qos_jax.workload.trace import Trace, gaps_s, known_rate_per_s, scale_rate, split, window
from qos_jax.workload.trace_readers import read_trace

__all__ = [
    "read_fleet",
    "Fleet",
    "fleet_path",
    "default_latency_limit_s",
    "write_fleet",
    "validate_fleet",
    "take",
    "Requests",
    "read_requests",
    "write_requests",
    "DROPPED",
    "RequestTable",
    "measure_length_log_std",
    "NamedTable",
    "read_table",
    "write_table",
    "table_for_experts",
    "split_rows",
    "Trace",
    "read_trace",
    "window",
    "scale_rate",
    "split",
    "known_rate_per_s",
    "gaps_s",
    "ArrivalProcess",
    "poisson",
    "gamma",
    "mmpp",
    "diurnal",
    "make_process",
    "with_recording",
    "sample_gaps",
    "next_gap",
    "init_arrivals",
    "ArrivalState",
    "workload_names",
    "load_rate_profile",
    "RateProfile",
    "arrivals_like",
    "load_length_histogram",
    "LengthHistogram",
    "sample_lengths",
    "data_folder",
    "SyntheticParams",
    "load_calibration",
    "sample_table",
    "table_for_trace",
    "experts_named",
    "sample_experts",
    "select_experts",
    "load_params",
    "save_params",
    "AddedError",
    "with_prediction_error",
    "known_log_std",
]
