"""Run routers over grids of scenarios, and search the largest arrival rate that meets a target."""

from qos_jax.sweep.plan import SweepConfig, SweepPlan, describe, load_sweep, plan_memory
from qos_jax.sweep.sweep import execute_sweep, render_sweep

__all__ = [
    "SweepConfig",
    "load_sweep",
    "plan_memory",
    "describe",
    "execute_sweep",
    "render_sweep",
    "SweepPlan",
]
