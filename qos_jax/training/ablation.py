"""An ablation: train every variant in a folder of its own, then compare them all on the same requests."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path

from tqdm import tqdm

from qos_jax.errors import input_error
from qos_jax.evaluation.comparison import (
    ComparisonConfig,
    draw_cases,
    execute_comparison,
    load_comparison,
    work_requests,
)
from qos_jax.evaluation.comparison_table import Comparison
from qos_jax.runs.folder import check_run_folder, open_run_folder
from qos_jax.runs.progress import progress
from qos_jax.simulation.cases import CaseConfig
from qos_jax.training.plan import load_plan
from qos_jax.training.presets import PRESETS
from qos_jax.training.run import execute_training, open_training
from qos_jax.training.train_config import TrainConfig
from qos_jax.training.variants import FULL, VARIANTS, variants
from qos_jax.workload.named_table import ALL_ROWS, SPLITS

COMPARED = "comparison"  # folder of the comparison, beside those of the variants

_say = functools.partial(tqdm.write, file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """What to train, and what to compare it on: the fleet, limit and table are those of the training."""

    variants: tuple[str, ...] = tuple(VARIANTS)  # names of VARIANTS
    policies: tuple[str, ...] = ("projected_greedy", "shortest_queue")  # compared with them
    baseline: str = FULL  # the policy or variant that differences are taken to
    train: TrainConfig = PRESETS["edge6"]  # the full run
    cases: CaseConfig = dataclasses.field(
        default_factory=lambda: CaseConfig(workloads=("poisson", "mmpp", "azure_conv"))
    )


def run_ablation(
    config: AblationConfig, out: str | Path, *, plot: bool, overwrite: bool = False
) -> Comparison:
    """Train what is not trained yet, compare, and return the comparison.

    Every variant goes on from its last checkpoint, so an ablation that was stopped is simply run again. A
    variant's run is in ``out/NAME``, the comparison in ``out/comparison``.

    Raises:
      InputError: a variant that is unknown or cannot be trained, a folder that holds another run, a
        comparison that does not fit; all of it before anything trains.
      KeyboardInterrupt: it was stopped.
    """
    root, train = Path(out), config.train
    plans = {name: load_plan(variant) for name, variant in variants(config.variants, train).items()}
    comparison = ComparisonConfig(
        fleet=train.fleet,
        policies=config.policies,
        baseline=config.baseline,
        scheduler=train.scheduler,
        latency_limit_s=train.latency_limit_s,
        allow_drop=train.network.allow_drop,
        table=train.table,
        table_split=ALL_ROWS if train.table is None else SPLITS[2],
        cases=config.cases,
    )
    _check(comparison, plans)
    runs = {
        name: open_training(plan, root / name, overwrite=overwrite, resume=not overwrite)
        for name, plan in plans.items()
    }
    for place, (name, run) in enumerate(runs.items(), start=1):
        _say(f"variant {place} of {len(runs)}, {name}: {VARIANTS[name][0]}")
        execute_training(run, plot=plot)
    trained = tuple(f"{name}={root / name}" for name in runs)
    plan = load_comparison(dataclasses.replace(comparison, checkpoint=trained))
    check_run_folder(root / COMPARED, plan.settings, overwrite=True)
    cases = draw_cases(plan)
    folder = open_run_folder(root / COMPARED, plan.settings, overwrite=True, resume=True)
    with progress(work_requests(plan, cases)) as advance:
        return execute_comparison(plan, cases, folder, plot=plot, on_progress=advance)


def _check(comparison: ComparisonConfig, names: dict) -> None:
    """Find the faults of a comparison whose learned routers are still to be trained."""
    baseline = comparison.baseline
    if baseline not in (*comparison.policies, *names):
        raise input_error(
            f"{baseline!r} is neither a policy nor a variant of this ablation",
            field="baseline",
            remedy=f"use one of {', '.join((*comparison.policies, *names))}",
        )
    known = comparison.policies or ("random",)
    load_comparison(dataclasses.replace(comparison, policies=known, baseline=known[0]))
