"""What every run has: its folder, settings, progress, checkpoints, statistics and plot style."""

from qos_jax.runs.folder import RunFolder, check_run_folder, open_run_folder, settings_of
from qos_jax.runs.progress import progress
from qos_jax.runs.statistics import Estimate, mean_ci, paired_difference, runs_ci

__all__ = [
    "open_run_folder",
    "check_run_folder",
    "settings_of",
    "RunFolder",
    "progress",
    "mean_ci",
    "paired_difference",
    "runs_ci",
    "Estimate",
]
