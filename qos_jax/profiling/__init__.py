"""From measurements to an expert's profile: fits of iteration and request logs, and a roofline."""

from qos_jax.profiling.coefficients import COEFFICIENTS, CoefficientFit
from qos_jax.profiling.iteration_fit import IterationFit, fit_iterations
from qos_jax.profiling.iteration_log import IterationLog, read_iterations
from qos_jax.profiling.replay import Replay, ServerLimits
from qos_jax.profiling.request_fit import RequestFit, SearchConfig, fit_requests
from qos_jax.profiling.request_log import RequestLog, read_request_log, read_request_logs
from qos_jax.profiling.roofline import Roofline, RooflineConfig, roofline

__all__ = [
    "fit_iterations",
    "fit_requests",
    "roofline",
    "read_iterations",
    "read_request_log",
    "read_request_logs",
    "CoefficientFit",
    "COEFFICIENTS",
    "IterationLog",
    "RequestLog",
    "IterationFit",
    "RequestFit",
    "Replay",
    "ServerLimits",
    "SearchConfig",
    "RooflineConfig",
    "Roofline",
]
