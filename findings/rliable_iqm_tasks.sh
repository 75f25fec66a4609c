#!/usr/bin/env bash
# rliable 1.2.0: the interquartile mean of runs on several tasks that differ in level.
#
# A good guess: the middle half of the runs of each task counts, and then the mean over tasks, so that a method that
# is better on one task and equal on the others has the higher score.
# Instead: scores of all tasks are sorted together and the lowest and the highest quarter of them left out. With eleven
# workloads whose levels differ more than runs do, those are whole tasks: a router that doubles its score on the
# hardest has the same interquartile mean to the last digit, and the interval of its gain is [0, 0]. What
# is left out depends on the company: beside two more easy tasks the same gain counts for nothing either.
# The median is no way out: it is of the tasks' means, and is blind in the same way. Take the interquartile mean
# over runs within each task, or of each run's mean over tasks.
# Source: rliable/metrics.py (aggregate_iqm: scipy.stats.trim_mean with axis=None; aggregate_median).
#
# Seen:
#   rliable 1.2.0, arch 7.2.0, pandas 2.3.3, numpy 2.3.5
#   mean over tasks, before and after: (0.5651, 0.5841)
#   aggregate_iqm, before and after: (0.6047, 0.6047)
#   aggregate_median, before and after: (0.611, 0.611)
#   95% interval of the gain in aggregate_iqm: (0.0, 0.0)
#   interquartile mean over runs within each task, before and after: (0.5647, 0.5837)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install rliable==1.2.0 arch==7.2.0 pandas==2.3.3 numpy==2.3.5
observe <<'PROGRAM'
import numpy as np
import scipy.stats
from finding import shown, versions
from rliable import library, metrics

versions("rliable", "arch", "pandas", "numpy")
RUNS = 10
levels = np.array([0.65, 0.64, 0.64, 0.63, 0.62, 0.61, 0.59, 0.59, 0.53, 0.50, 0.21])
rng = np.random.default_rng(0)
before = levels + 0.01 * rng.standard_normal((RUNS, len(levels)))


def improved(scores):
    """Return the scores with those of the hardest task doubled; it stays the hardest."""
    return np.concatenate([scores[:, :-1], 2.0 * scores[:, -1:]], axis=1)


def both(of_scores):
    return tuple(round(float(of_scores(scores)), 4) for scores in (before, improved(before)))


seen = both(metrics.aggregate_mean)
shown("mean over tasks, before and after", seen, seen[1] > seen[0] + 0.01)
for name in ("aggregate_iqm", "aggregate_median"):
    seen = both(getattr(metrics, name))
    shown(f"{name}, before and after", seen, seen[0] == seen[1])


def gain(scores):
    return np.array([metrics.aggregate_iqm(improved(scores)) - metrics.aggregate_iqm(scores)])


_, intervals = library.get_interval_estimates({"gain": [before]}, gain, reps=500)
low, high = intervals["gain"][:, 0]
shown("95% interval of the gain in aggregate_iqm", (float(low), float(high)), low == high == 0.0)
seen = both(lambda scores: scipy.stats.trim_mean(scores, 0.25, axis=0).mean())
shown("interquartile mean over runs within each task, before and after", seen, seen[1] > seen[0] + 0.01)
PROGRAM
