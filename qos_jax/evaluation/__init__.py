"""Judging routers: records, metrics, statistics, comparison tables, plots, run folders."""

from qos_jax.evaluation.comparison_table import (
    Comparison,
    ComparisonRow,
    comparison_table,
    render_text,
    write_comparison_csv,
    write_comparison_json,
)
from qos_jax.runs.folder import RunFolder, check_run_folder, open_run_folder
from qos_jax.runs.progress import progress
from qos_jax.runs.statistics import Estimate, mean_ci, paired_difference
from qos_jax.simulation.metrics import METRICS, Metric, summarise
from qos_jax.simulation.policy_runs import PolicyResult
from qos_jax.simulation.records import (
    COMPLETED,
    DROPPED,
    REJECTED,
    RequestRecords,
    RunTotals,
    write_records_csv,
)

__all__ = [
    "COMPLETED",
    "DROPPED",
    "METRICS",
    "REJECTED",
    "Comparison",
    "ComparisonRow",
    "Estimate",
    "Metric",
    "PolicyResult",
    "RequestRecords",
    "RunFolder",
    "RunTotals",
    "check_run_folder",
    "comparison_table",
    "mean_ci",
    "open_run_folder",
    "paired_difference",
    "progress",
    "render_text",
    "summarise",
    "write_comparison_csv",
    "write_comparison_json",
    "write_records_csv",
]
