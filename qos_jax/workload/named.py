"""The workloads by name, and the arrival process of each."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from qos_jax.workload import ArrivalProcess, arrivals_like, diurnal, gamma, load_rate_profile, mmpp, poisson

SYNTHETIC = ("poisson", "gamma", "mmpp", "diurnal")
RECORDED = ("azure_conv", "azure_code")
CONVERSATION = "conversation"
SESSIONS = "sessions"
TRACE = "trace"
TABLE_MATCHES = ("nearest", "even")
TABLE_MATCH_HELP = "rows that a trace's arrivals get: nearest in length to its requests, or any, evenly"
WORKLOADS = (*SYNTHETIC, *RECORDED, CONVERSATION, SESSIONS, TRACE)
_DIURNAL_BINS = 24


def arrival_process(workload: str, rate_per_s: Any, numbers: Any, num_requests: int) -> ArrivalProcess:
    """Return the process of a workload, any but ``trace`` and ``sessions``; the numbers may be traced.

    Args:
      workload: one of ``WORKLOADS``.
      rate_per_s: mean arrivals per second.
      numbers: a :class:`CaseConfig`, or what else has ``gap_cv``, ``burst_factor``, ``burst_mean_s``,
        ``calm_mean_s`` and ``diurnal_swing``.
      num_requests: of a run, which is a day of the workload "diurnal".
    """
    if workload in ("poisson", CONVERSATION):
        return poisson(rate_per_s)
    if workload == "gamma":
        return gamma(rate_per_s, numbers.gap_cv)
    if workload == "mmpp":
        return mmpp(rate_per_s, numbers.burst_factor, numbers.burst_mean_s, numbers.calm_mean_s)
    if workload == "diurnal":
        phase = (np.arange(_DIURNAL_BINS) + 0.5) / _DIURNAL_BINS
        shape = 1.0 - numbers.diurnal_swing * np.cos(2.0 * np.pi * phase)
        return diurnal(rate_per_s, shape, num_requests / rate_per_s / _DIURNAL_BINS)
    return arrivals_like(load_rate_profile(workload), rate_per_s)


def start_bin(workload: str, process: ArrivalProcess, num_requests: int, seed: Any, seeds: int) -> Any:
    """Return the bin of the profile in which seed ``seed`` of ``seeds`` starts, see :func:`build_cases`."""
    if workload not in RECORDED:
        return seed * 0
    bins = process.profile.shape[0]
    short = num_requests / process.rate_per_s < bins * process.bin_s
    return jnp.where(short, seed * bins // seeds, 0)
