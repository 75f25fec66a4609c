"""Route many requests through one fleet, record what became of each, and measure it."""

from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import Case, build_cases
from qos_jax.simulation.metrics import METRICS, Metric, summarise
from qos_jax.simulation.policy_runs import Compared, PolicyResult, PolicyRun, compare
from qos_jax.simulation.records import (
    COMPLETED,
    DROPPED,
    FAILED,
    REJECTED,
    REJECTED_TOO_LONG,
    RequestRecords,
    RunTotals,
    write_records_csv,
)
from qos_jax.simulation.simulate import Runs, SimulationResult, simulate
from qos_jax.simulation.world import World, simulate_world
from qos_jax.simulation.world_config import WorldConfig

__all__ = [
    "simulate",
    "simulate_world",
    "World",
    "WorldConfig",
    "Runs",
    "SimulationResult",
    "RequestRecords",
    "RunTotals",
    "summarise",
    "METRICS",
    "Metric",
    "CaseConfig",
    "build_cases",
    "Case",
    "compare",
    "Compared",
    "PolicyRun",
    "PolicyResult",
    "write_records_csv",
    "COMPLETED",
    "REJECTED",
    "REJECTED_TOO_LONG",
    "DROPPED",
    "FAILED",
]
