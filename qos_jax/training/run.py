"""Open, execute and resume a training run in its folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qos_jax.devices import agree, gather, is_writer, lane_mesh, writer_does
from qos_jax.errors import input_error
from qos_jax.runs import checkpoint
from qos_jax.runs.array_store import host_leaves, rebuild
from qos_jax.runs.checkpoint_record import CHECKPOINTS, find, step_folders
from qos_jax.runs.config_json import config_dict
from qos_jax.runs.folder import check_run_folder, open_run_folder, settings_of, to_json
from qos_jax.training import loop
from qos_jax.training.curve import render_difference, render_judgement
from qos_jax.training.hyper import Together
from qos_jax.training.judge import Judge
from qos_jax.training.log import TrainingLog
from qos_jax.training.plan import TrainPlan
from qos_jax.workload.setting import limit_record


def open_training(
    plan: TrainPlan,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    together: Together | None = None,
) -> loop.TrainingRun:
    """Open the folder of a run: a new one, or with ``resume`` that of a stopped one at its last checkpoint.

    A run stopped before its first checkpoint, or not there at all, starts from the beginning.
    All processes of a run must call it. Process 0 alone opens the folder, and sends the state that it reads
    to the others, so they need not see its disk.

    Args:
      plan: what to train; with ``together``, one of ``over_routers``.
      out: the folder.
      overwrite: replace what is there.
      resume: go on with what is there.
      together: routers that are trained at once; None = one.

    Raises:
      InputError: the folder is in use and neither ``overwrite`` nor ``resume`` is given, or both are; what is
        to be resumed has other settings, or other files, or is damaged; processes have different settings.
    """
    if overwrite and resume:
        raise input_error("contradicts resume", field="overwrite", remedy="give one of the two")
    for phase in plan.phases if together is None else ():
        count, devices = getattr(plan.config, phase.name).num_envs, lane_mesh().size
        if count % devices:
            fault = f"{count} environments cannot be shared out evenly to {devices} devices"
            raise input_error(fault, field=f"{phase.name}.num_envs", remedy=f"give a multiple of {devices}")
    settings = training_settings(plan, together)
    _check_started_alike(settings)
    run = writer_does(lambda: _open(plan, Path(out), settings, overwrite, resume, together))
    return run if jax.process_count() == 1 and run is not None else _shared(plan, together, run)


def execute_training(run: loop.TrainingRun, *, plot: bool) -> None:
    """Train to the end, and print the best evaluation, in process 0.

    Ctrl-C stops at the next line of metrics, with a checkpoint there; a second one stops at once.

    Raises:
      InputError: a metric is not finite any more, or the folder cannot be written.
      KeyboardInterrupt: it was stopped.
    """
    plan, mesh = run.plan, lane_mesh()
    is_left = run.update < plan.total_updates
    if run.folder is None:
        if is_left:
            loop.train(run, None, mesh)
        return
    log = TrainingLog(run.folder, run.update, loop.phase_ends(plan), plot=plot)
    try:
        if is_left:
            if plan.setting.source_is_drawn:
                loop.say("note: the fleet's models have no figures; those of drawn experts stand in")
            if mesh.size > 1:
                loop.say(f"training on {mesh.size} devices")
            loop.say("simulating the baseline")
            loop.train(run, _recorder(plan, log), mesh)
        else:
            print(f"the run has had its {run.update:,} updates: there is nothing to resume\n")
    finally:
        log.close()
    best = log.best()
    print(f"{render_judgement(best)}\n")
    print(
        f"best of {len(log.judged)} evaluations (update {best.update:,}), chosen on these very cases; "
        f"for others: qos-jax evaluate --checkpoint={run.folder.path}"
    )
    print(f"results in {run.folder.path}")


def training_settings(plan: TrainPlan, together: Together | None = None) -> dict[str, Any]:
    """Return all that determines a run, the content of its config.json."""
    config, setting = plan.config, plan.setting
    return settings_of(
        "train",
        config_dict(loop.checkpoint_config(plan, together)),
        files={"fleet": setting.file, "table": config.table, "trace": config.trace},
        start=None if plan.start is None else plan.start.record,
        **limit_record(setting.limits),
    )


def _recorder(plan: TrainPlan, log: TrainingLog) -> loop.Recorder:
    judge = Judge(plan)

    def evaluate(progress: loop.RunProgress, params: Any) -> loop.Verdict:
        judgement = judge.judge(progress["update"], params)
        log.judge(progress, judgement)
        loop.say(render_difference(judgement))
        is_best = judgement.update > 0 and log.best().update == judgement.update
        return loop.Verdict(float(judgement.qos.mean), is_best)

    return loop.Recorder(metrics=log.train, evaluate=evaluate)


def _open(
    plan: TrainPlan,
    root: Path,
    settings: dict[str, Any],
    overwrite: bool,
    resume: bool,
    together: Together | None,
) -> loop.TrainingRun:
    saved = step_folders(root / CHECKPOINTS)
    if saved and resume:
        index = loop.phase_of(plan, find(root).step)
        like = jax.eval_shape(lambda: loop.TrainingRun(plan, None, together=together).start(index, None))
        state, found = checkpoint.restore(root, like, loop.checkpoint_config(plan, together))
        # The same settings may name files that have changed since: config.json holds their hashes.
        folder = open_run_folder(root, settings, resume=True)
        return loop.TrainingRun(plan, folder, found.step, state, float(found.metadata["wall_s"]), together)
    if saved and not overwrite:
        remedy = "give --resume to go on with it, --overwrite to start anew, or another folder with --out"
        raise input_error(f"holds a training run at update {max(saved):,}", file=root, remedy=remedy)
    check_run_folder(root, settings, overwrite=overwrite)
    checkpoint.clear(root)
    return loop.TrainingRun(plan, open_run_folder(root, settings, overwrite=overwrite), together=together)


def _check_started_alike(settings: dict[str, Any]) -> None:
    """Refuse processes with different settings: their programs would wait for each other for ever."""
    texts = [json.dumps([name, to_json(value)]).encode() for name, value in sorted(settings.items())]
    hashes = np.stack([np.frombuffer(hashlib.sha256(text).digest(), np.uint8) for text in texts])
    everyone = gather(hashes[None])  # [processes, settings, 32]
    differs = (everyone != everyone[:1]).any(axis=(0, 2))
    names = [name for name, other in zip(sorted(settings), differs, strict=True) if other]
    if names:
        fault = f"the processes of this run have different settings or files ({', '.join(names[:5])})"
        raise input_error(fault, remedy="start them all with the same flags and files")


def _shared(plan: TrainPlan, together: Together | None, run: loop.TrainingRun | None) -> loop.TrainingRun:
    """Give all processes the progress and the state that process 0 has read."""
    reached = np.zeros(3) if run is None else np.array([run.update, run.wall_s, run.state is not None])
    update, wall_s, begun = agree(reached).tolist()
    state = None
    if begun:
        fresh = loop.TrainingRun(plan, None, together=together)
        like = fresh.start(loop.phase_of(plan, int(update)), None) if run is None else run.state
        layout, leaves = host_leaves(like)
        state = rebuild(like, layout, [agree(leaf) for leaf in leaves])
    folder = None if run is None else run.folder
    assert (folder is not None) == is_writer()
    return loop.TrainingRun(plan, folder, int(update), state, wall_s, together)
