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
    "DROPPED",
    "AddedError",
    "ArrivalProcess",
    "ArrivalState",
    "Fleet",
    "LengthHistogram",
    "NamedTable",
    "RateProfile",
    "RequestTable",
    "Requests",
    "SyntheticParams",
    "Trace",
    "arrivals_like",
    "data_folder",
    "default_latency_limit_s",
    "diurnal",
    "experts_named",
    "fleet_path",
    "gamma",
    "gaps_s",
    "init_arrivals",
    "known_log_std",
    "known_rate_per_s",
    "load_calibration",
    "load_length_histogram",
    "load_params",
    "load_rate_profile",
    "make_process",
    "measure_length_log_std",
    "mmpp",
    "next_gap",
    "poisson",
    "read_fleet",
    "read_requests",
    "read_table",
    "read_trace",
    "sample_experts",
    "sample_gaps",
    "sample_lengths",
    "sample_table",
    "save_params",
    "scale_rate",
    "select_experts",
    "split",
    "split_rows",
    "table_for_experts",
    "table_for_trace",
    "take",
    "validate_fleet",
    "window",
    "with_prediction_error",
    "with_recording",
    "workload_names",
    "write_fleet",
    "write_requests",
    "write_table",
]
