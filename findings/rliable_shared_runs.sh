#!/usr/bin/env bash
# rliable 1.2.0: the interval of a policy that was trained R times, each run tested on the same tasks.
#
# A good guess: rows of the score matrix are runs, so a run is drawn again with its scores on all tasks, and the 95%
# interval tells how far another training run may lie.
# Instead: runs are drawn within each task by themselves, as suits a training for each task. Where one
# training run is tested on all of them, its luck stands in its whole row; drawn apart, it averages out over
# tasks. With 10 runs on 11 tasks and luck that tasks share, a 95% interval holds the truth in 44 of 100 cases;
# drawn as whole rows, in 90, as percentile intervals of ten runs do. Give rliable one column, the mean over
# tasks of each run, or draw rows yourself.
# Source: rliable/library.py (StratifiedBootstrap.update_indices draws rows for each task).
#
# Seen:
#   rliable 1.2.0, arch 7.2.0, pandas 2.3.3, numpy 2.3.5
#   a training run for each task: share of 95% intervals that hold the truth: 0.92
#   one training run for all tasks, as a matrix of runs and tasks: 0.44
#   the same, as the mean of each run: 0.9
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install rliable==1.2.0 arch==7.2.0 pandas==2.3.3 numpy==2.3.5
observe <<'PROGRAM'
import numpy as np
from finding import shown, versions
from rliable import library, metrics

versions("rliable", "arch", "pandas", "numpy")
TRIALS, RUNS, TASKS, TRUTH = 200, 10, 11, 0.6
rng = np.random.default_rng(0)
np.random.seed(0)  # which rliable draws by


def interval(scores):
    _, found = library.get_interval_estimates(
        {"runs": [scores]}, lambda x: np.array([metrics.aggregate_mean(x)]), reps=400
    )
    return found["runs"][:, 0]


def covered(shared):
    """Return the share of intervals that hold the truth, of whole matrices and of one column."""
    held = np.zeros(2)
    for _ in range(TRIALS):
        luck = rng.standard_normal((RUNS, 1)) if shared else rng.standard_normal((RUNS, TASKS))
        scores = TRUTH + 0.01 * (luck + 0.3 * rng.standard_normal((RUNS, TASKS)))
        for form, each in enumerate((scores, scores.mean(1, keepdims=True))):
            low, high = interval(each)
            held[form] += low <= TRUTH <= high
    return held / TRIALS


seen = covered(shared=False)[0]
shown("a training run for each task: share of 95% intervals that hold the truth", round(seen, 2), seen > 0.8)
matrix, column = covered(shared=True)
shown("one training run for all tasks, as a matrix of runs and tasks", round(matrix, 2), matrix < 0.6)
shown("the same, as the mean of each run", round(column, 2), column > 0.8)
PROGRAM
