"""Train several routers at once, seed by seed, in one program: curves with intervals over seeds."""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate

from qos_jax.errors import input_error
from qos_jax.evaluation import plot_style
from qos_jax.evaluation.judge import BASELINE, Judge
from qos_jax.evaluation.progress import progress
from qos_jax.evaluation.run_folder import RunFolder, check_run_folder, open_run_folder
from qos_jax.evaluation.statistics import mean_ci
from qos_jax.evaluation.training_run import training_settings
from qos_jax.files import atomic_write
from qos_jax.learning import checkpoint
from qos_jax.learning.checkpoint_record import CHECKPOINTS
from qos_jax.learning.plan import Phase, TrainPlan, phase_key
from qos_jax.learning.whole_folder import remove_folder

CURVE_CSV, CURVE_PLOT, POLICIES = "evaluations.csv", "plots/learning_curve.png", "seeds"
COLUMNS = ("update", "average_qos", "ci_low", "ci_high", "difference", "diff_low", "diff_high", "seeds")


@dataclasses.dataclass(frozen=True)
class Point:
    """Where the routers of all seeds stand after an update; averages over the cases of the judge."""

    update: int
    average_qos: np.ndarray  # [S]
    difference: np.ndarray  # [S], to the baseline on the same requests


def train_seeds(plan: TrainPlan, seeds: int, folder: RunFolder, *, plot: bool) -> list[Point]:
    """Train ``seeds`` routers at once, and leave curves and every router's last policy in the folder.

    Seed s draws as a run with the key ``split(key(seed), seeds)[s]`` does; all are judged on the same cases.
    There are no checkpoints on the way: a run that is stopped starts anew.

    Args:
      plan: the run; its seed is that of all draws.
      seeds: S, at least 1.
      folder: where ``metrics.jsonl``, the curve and ``seeds/S/`` go.
      plot: whether to draw the curve.

    Raises:
      InputError: a metric is not finite any more, or a file cannot be written.
    """
    judge = Judge(plan)
    points: list[Point] = []
    keys = jax.random.split(jax.random.key(plan.config.seed), seeds)
    params, update = None, 0
    for index, phase in enumerate(plan.phases):
        phase_keys = jax.vmap(functools.partial(phase_key, index=index))(keys)
        init = phase.learner.init
        if params is None:
            states = jax.jit(jax.vmap(lambda key, init=init: init(key, None)))(phase_keys)
        else:
            states = jax.jit(jax.vmap(init))(phase_keys, params)
        if not points:
            points.append(_judged(judge, folder, 0, phase.learner.params(states), seeds))
        states = _phase(plan, phase, states, update, seeds, judge, folder, points)
        params, update = phase.learner.params(states), update + phase.updates
    for seed in range(seeds):
        checkpoint.save_policy(
            folder.file(f"{POLICIES}/{seed}"),
            _of_seed(params, seed),
            plan.config,
            average_qos=float(points[-1].average_qos[seed]),
        )
    write_curve_csv(folder, points)
    if plot:
        plot_style.save_figure(curve(points, _ends(plan.phases)), folder.file(CURVE_PLOT))
    return points


def open_seed_training(
    plan: TrainPlan, seeds: int, out: str | os.PathLike[str], *, overwrite: bool = False
) -> RunFolder:
    """Open the folder of such a run, which must be new, or ``overwrite`` given.

    Raises:
      InputError: fewer than one seed, or the folder is in use.
    """
    if seeds < 1:
        raise input_error(f"{seeds} is below 1", field="vmap_seeds", remedy="give at least 1")
    settings = {**training_settings(plan), "vmap_seeds": seeds}
    check_run_folder(out, settings, overwrite=overwrite)
    policies = Path(out) / POLICIES
    for name in (policies, Path(out) / CHECKPOINTS):
        if name.is_dir():
            if not overwrite:
                raise input_error(
                    f"holds trained routers in {name.name}/",
                    file=out,
                    remedy="choose another folder with --out, or give --overwrite",
                )
            remove_folder(name)
    return open_run_folder(out, settings, overwrite=overwrite)


def write_curve_csv(folder: RunFolder, points: Sequence[Point]) -> None:
    """Write ``evaluations.csv``: a line per evaluation, mean and 95% interval over the seeds of training."""
    with atomic_write(folder.file(CURVE_CSV)) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for point in points:
            qos, gain = mean_ci(point.average_qos), mean_ci(point.difference)
            numbers = (qos.mean, qos.low, qos.high, gain.mean, gain.low, gain.high)
            shown = ["" if np.isnan(value) else float(value) for value in numbers]
            writer.writerow([point.update, *shown, qos.n])


def curve(points: Sequence[Point], phase_ends: Mapping[str, int]) -> Any:
    """Return a figure of QoS, and of its difference to the baseline, against updates.

    Thin lines are seeds; the band is the 95% interval of their mean.
    """
    figure = plot_style.new_figure(10.5, 4.2)
    updates = [point.update for point in points]
    labels = ("average QoS", f"difference to {BASELINE}, same requests")
    for axes, name, label in zip(figure.subplots(1, 2), ("average_qos", "difference"), labels, strict=True):
        values = np.array([getattr(point, name) for point in points])  # [points, S]
        estimate = mean_ci(values)
        style = plot_style.policy_styles(["han"])["han"]
        axes.plot(updates, values, color=style.colour, linewidth=0.6, alpha=0.5)
        axes.plot(updates, estimate.mean, color=style.colour, marker=style.marker, markersize=4)
        axes.fill_between(updates, estimate.low, estimate.high, color=style.colour, alpha=0.2, linewidth=0)
        for end in phase_ends.values():
            axes.axvline(end, color="#BBBBBB", linewidth=1, zorder=0)
        plot_style.tidy(axes, "updates", label)
    figure.suptitle(f"{values.shape[1]} seeds, mean and 95% CI", fontsize=10)
    return figure


def render_points(points: Sequence[Point]) -> str:
    """Return the curve as a table for the terminal."""
    lines = []
    for point in points:
        estimates = (mean_ci(point.average_qos), mean_ci(point.difference))
        cells = [f"{float(e.mean):.4f} [{float(e.low):.4f}, {float(e.high):.4f}]" for e in estimates]
        lines.append([f"{point.update:,}", *cells])
    heads = ("update", "average QoS [95% CI over seeds]", f"difference to {BASELINE} [95% CI]")
    return tabulate(lines, heads, tablefmt="simple", disable_numparse=True)


def _phase(
    plan: TrainPlan,
    phase: Phase,
    states: Any,
    begin: int,
    seeds: int,
    judge: Judge,
    folder: RunFolder,
    points: list[Point],
) -> Any:
    """Take the updates of a phase, judging every so often; return the states after the last."""

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(states: Any, count: jax.Array) -> tuple[Any, Any]:
        """Take ``count`` updates; the metrics are those of the last."""
        step = jax.vmap(phase.learner.update)
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(step, states)[1])
        return jax.lax.fori_loop(0, count, lambda _, both: step(both[0]), (states, none))

    learner, every, done = phase.learner, plan.config.evaluation.every, 0
    total = phase.updates * learner.decisions_per_update * seeds
    with progress(total, "decisions", description=f"{phase.name} x {seeds} seeds") as tell:
        while done < phase.updates:
            update = begin + done
            count = min(every - update % every, phase.updates - done)
            states, metrics = jax.block_until_ready(advance(states, jnp.int32(count)))
            done, update = done + count, update + count
            told = {name: np.asarray(value, np.float64) for name, value in sorted(metrics.items())}
            folder.append_metrics({"phase": phase.name, "update": update, "metrics": told})
            bad = [seed for seed in range(seeds) if not all(np.isfinite(v[seed]) for v in told.values())]
            if bad:
                raise input_error(
                    f"training diverged in phase {phase.name}, seed {bad[0]}, by update {update:,}",
                    file=folder.path,
                    remedy=f"start anew with a lower learning rate, see the flags --{phase.name}.*",
                )
            points.append(_judged(judge, folder, update, learner.params(states), seeds))
            tell(count * learner.decisions_per_update * seeds)
    return states


def _judged(judge: Judge, folder: RunFolder, update: int, params: Any, seeds: int) -> Point:
    """Judge the routers of all seeds, and keep what came of it."""
    each = [judge.judge(update, _of_seed(params, seed)) for seed in range(seeds)]
    point = Point(
        update,
        np.array([float(one.qos.mean) for one in each]),
        np.array([float(one.difference.mean) for one in each]),
    )
    folder.append_metrics(dataclasses.asdict(point))
    return point


def _of_seed(params: Any, seed: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[seed], params)


def _ends(phases: Sequence[Phase]) -> dict[str, int]:
    """Return the last update of each phase."""
    ends = np.cumsum([phase.updates for phase in phases]).tolist()
    return dict(zip((phase.name for phase in phases), ends, strict=True))
