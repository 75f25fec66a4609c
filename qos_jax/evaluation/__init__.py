"""Compare routers on identical requests, and run one router on given requests."""

from qos_jax.evaluation.comparison import (
    ComparisonConfig,
    ComparisonPlan,
    draw_cases,
    execute_comparison,
    load_comparison,
)
from qos_jax.evaluation.comparison_table import (
    Comparison,
    ComparisonRow,
    comparison_table,
    write_comparison_csv,
    write_comparison_json,
)
from qos_jax.evaluation.comparison_text import render_text
from qos_jax.evaluation.run_config import SessionConfig, SingleRunConfig
from qos_jax.evaluation.run_text import render_run
from qos_jax.evaluation.single_run import (
    SingleRun,
    execute_run,
    load_run,
    simulate_requests,
)

__all__ = [
    "ComparisonConfig",
    "load_comparison",
    "draw_cases",
    "execute_comparison",
    "ComparisonPlan",
    "Comparison",
    "ComparisonRow",
    "comparison_table",
    "render_text",
    "write_comparison_csv",
    "write_comparison_json",
    "simulate_requests",
    "SingleRunConfig",
    "SessionConfig",
    "load_run",
    "execute_run",
    "render_run",
    "SingleRun",
]
