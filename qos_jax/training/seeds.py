"""Train routers of several seeds and settings in one program, and draw their curves."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qos_jax.devices import lane_mesh
from qos_jax.errors import input_error
from qos_jax.runs import checkpoint, plot_style
from qos_jax.runs.checkpoint_record import CHECKPOINTS, step_folders
from qos_jax.runs.folder import RunFolder
from qos_jax.runs.whole_folder import remove_folder
from qos_jax.training.curve import Point, render_point, seed_curve, write_seed_curve_csv
from qos_jax.training.hyper import Together, checked
from qos_jax.training.judge import Judge
from qos_jax.training.log import CURVE_CSV, CURVE_PLOT, lines_until
from qos_jax.training.loop import Recorder, RunProgress, TrainingRun, Verdict, phase_ends, say, train
from qos_jax.training.plan import TrainPlan, over_routers
from qos_jax.training.run import open_training

POLICIES = "seeds"


def open_seed_training(
    plan: TrainPlan,
    together: Together,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> TrainingRun:
    """Open the folder of a run of several seeds, as :func:`~qos_jax.training.run.open_training` does.

    Raises:
      InputError: as there; fewer than one seed; a run on many hosts; trained routers in the folder, and
        neither ``overwrite`` nor ``resume`` is given.
    """
    if together.seeds < 1:
        raise input_error(f"{together.seeds} is below 1", field="vmap_seeds", remedy="give at least 1")
    if jax.process_count() > 1:
        fault = "several seeds are trained on one host"
        raise input_error(fault, field="vmap_seeds", remedy="leave it out, or the other hosts")
    policies = Path(out) / POLICIES
    is_resumed = resume and bool(step_folders(Path(out) / CHECKPOINTS))
    if policies.is_dir() and not overwrite and not is_resumed:
        fault = f"holds trained routers in {POLICIES}/"
        raise input_error(fault, file=out, remedy="choose another folder with --out, or give --overwrite")
    plan = over_routers(plan, together)
    run = open_training(plan, out, overwrite=overwrite, resume=resume, together=together)
    if policies.is_dir() and not is_resumed:
        remove_folder(policies)
    return run


def train_seeds(run: TrainingRun, *, plot: bool) -> list[Point]:
    """Train all routers to the end; write curves and every router's last policy to the folder.

    Seed s draws as a run with the key ``split(key(seed), seeds)[s]`` does, in every setting; all are judged
    on the same cases. There is a line of metrics and a checkpoint of all routers at each evaluation. Ctrl-C
    stops at the next one; a second one stops at once.

    Args:
      run: of :func:`open_seed_training`.
      plot: whether to draw the curve.

    Raises:
      InputError: a metric is not finite any more, or a file cannot be written.
      KeyboardInterrupt: it was stopped.
    """
    plan, folder, together = run.plan, run.folder, run.together
    assert folder is not None
    assert together is not None
    numbers = functools.partial(np.array, dtype=np.float64)  # null is NaN
    points = [
        Point(line["update"], numbers(line["average_qos"]), numbers(line["difference"]))
        for line in lines_until(folder, run.update)
        if "average_qos" in line
    ]
    state = run.state
    if run.update < plan.total_updates:
        # On one device: what is shared out to several are environments, and here the routers fill it.
        recorder = _recorder(plan, folder, together, points, plot)
        state = train(run, recorder, lane_mesh(1), every_evaluation=True)
    params = jax.device_get(plan.phases[-1].learner.params(state))
    for router in range(together.count):
        policy = folder.file(f"{POLICIES}/{together.label(router)}")
        if not policy.is_dir():  # else a run resumed at its end wrote it, whole
            checkpoint.save_policy(
                policy,
                _of_router(params, router),
                checked(plan.config, together.setting(router)),
                average_qos=points[-1].average_qos[router],
            )
    return points


def _recorder(
    plan: TrainPlan, folder: RunFolder, together: Together, points: list[Point], plot: bool
) -> Recorder:
    """Return what writes metrics and evaluations of all routers, and adds the latter to ``points``."""
    say("simulating the baseline")
    judge = Judge(plan)

    def write(progress: RunProgress, metrics: Mapping[str, Any]) -> None:
        line = {name: progress[name] for name in ("phase", "update")}
        folder.append_metrics({**line, "metrics": metrics})

    def evaluate(progress: RunProgress, params: Any) -> Verdict:
        routers = range(together.count)
        each = [judge.judge(progress["update"], _of_router(params, router)) for router in routers]
        qos = np.array([float(one.qos.mean) for one in each])
        point = Point(progress["update"], qos, np.array([float(one.difference.mean) for one in each]))
        folder.append_metrics(dataclasses.asdict(point))
        points.append(point)
        write_seed_curve_csv(folder.file(CURVE_CSV), points, together)
        if plot:
            figure = seed_curve(points, phase_ends(plan), together)
            plot_style.save_figure(figure, folder.file(CURVE_PLOT))
        say(render_point(point))
        return Verdict(average_qos=None, is_best=False)  # routers do not do best at the same update

    return Recorder(metrics=write, evaluate=evaluate)


def _of_router(params: Any, router: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[router], params)
