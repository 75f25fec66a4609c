"""A run small enough to work out by hand, shared by the tests of the evaluation."""

import numpy as np
import pytest

from qos_jax.serving.profile import FleetProfile
from qos_jax.simulation.records import COMPLETED, DROPPED, REJECTED, RequestRecords, RunTotals

NAN = np.nan


@pytest.fixture
def limit_s() -> float:
    return 0.1


@pytest.fixture
def records() -> RequestRecords:
    """Six requests on two experts; latencies per token .05, .2, .08 and 1 s (one output token)."""
    return RequestRecords(
        status=[COMPLETED, COMPLETED, REJECTED, DROPPED, COMPLETED, COMPLETED],
        expert=[0, 1, 1, -1, 0, 1],
        arrival_s=[0.0, 0.5, 1.0, 1.25, 2.0, 3.0],
        prompt_tokens=[100, 200, 300, 400, 500, 600],
        output_tokens=[10, 5, 7, -1, 25, 1],
        ttft_s=[0.125, 0.25, NAN, NAN, 0.5, 0.75],
        latency_s=[0.5, 1.0, NAN, NAN, 2.0, 1.0],
        preemptions=[0, 2, 0, 0, 1, 0],
        quality=[0.5, 1.0, 0.75, NAN, 0.25, 1.0],
    )


@pytest.fixture
def totals() -> RunTotals:
    return RunTotals(busy_s=[2.0, 1.0], kv_token_s=[400.0, 200.0], makespan_s=4.0)


@pytest.fixture(scope="session")
def profile() -> FleetProfile:
    def pair(a: float, b: float, dtype: type = np.float32) -> np.ndarray:
        return np.array([a, b], dtype)

    return FleetProfile(
        max_running=pair(4, 4, np.int32),
        max_waiting=pair(4, 4, np.int32),
        max_batched_tokens=pair(512, 512, np.int32),
        kv_capacity_tokens=pair(1000, 500, np.int32),
        prefill_base_s=pair(0.1, 0.1),
        prefill_per_token_s=pair(0.001, 0.001),
        prefill_per_token_sq_s=pair(0, 0),
        decode_base_s=pair(0.01, 0.01),
        decode_per_seq_s=pair(0, 0),
        decode_per_context_token_s=pair(0, 0),
        network_rtt_s=pair(0.0, 0.25),
        busy_power_w=pair(300, 200),
        idle_power_w=pair(50, 25),
    )
