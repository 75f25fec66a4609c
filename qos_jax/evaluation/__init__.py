"""Judging routers: records, metrics, statistics, comparison tables, plots, run folders."""

from qos_jax.evaluation.metrics import METRICS, Metric, summarise
from qos_jax.evaluation.progress import progress
from qos_jax.evaluation.records import (
    COMPLETED,
    DROPPED,
    REJECTED,
    RequestRecords,
    RunTotals,
    write_records_csv,
)
from qos_jax.evaluation.run_folder import RunFolder, check_run_folder, open_run_folder
from qos_jax.evaluation.statistics import Estimate, iqm, iqm_ci, mean_ci, paired_difference
from qos_jax.evaluation.table_text import render_text
from qos_jax.evaluation.tables import (
    Comparison,
    ComparisonRow,
    PolicyResult,
    comparison_table,
    write_comparison_csv,
    write_comparison_json,
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
    "iqm",
    "iqm_ci",
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
