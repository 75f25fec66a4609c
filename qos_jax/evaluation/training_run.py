"""A training run in its folder: chunks of updates, evaluations, checkpoints; stopped and resumed at will."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from qos_jax.devices import lane_mesh
from qos_jax.errors import input_error
from qos_jax.evaluation.judge import Judge
from qos_jax.evaluation.learning_curve import render_difference, render_judgement
from qos_jax.evaluation.progress import progress
from qos_jax.evaluation.run_folder import RunFolder, check_run_folder, open_run_folder
from qos_jax.evaluation.training_log import TrainingLog
from qos_jax.files import sha256
from qos_jax.learning import checkpoint
from qos_jax.learning.checkpoint_record import CHECKPOINTS, find, step_folders
from qos_jax.learning.config_json import config_dict
from qos_jax.learning.plan import Phase, TrainPlan, phase_key
from qos_jax.learning.spread import state_shardings
from qos_jax.learning.types import Learner

# (state, [] int32 number of updates) -> (state, means of their metrics, which of them first had a metric that
# is not finite, or -1).
Advance = Callable[[Any, jax.Array], tuple[Any, dict[str, jax.Array], jax.Array]]


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A run whose folder is open; make one with :func:`open_training`."""

    plan: TrainPlan
    folder: RunFolder
    update: int = 0  # done so far, over all phases
    state: Any = None  # of the learner that did the last of them; None at the start
    wall_s: float = 0.0  # seconds of training so far


def open_training(
    plan: TrainPlan, out: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False
) -> TrainingRun:
    """Open the folder of a run: a new one, or with ``resume`` that of a stopped one at its last checkpoint.

    A run stopped before its first checkpoint, or not there at all, starts from the beginning.

    Raises:
      InputError: the folder is in use and neither ``overwrite`` nor ``resume`` is given, or both are; what is
        to be resumed has other settings, or other files, or is damaged.
    """
    if overwrite and resume:
        raise input_error("contradicts resume", field="overwrite", remedy="give one of the two")
    for phase in plan.phases:
        count, devices = getattr(plan.config, phase.name).num_envs, lane_mesh().size
        if count % devices:
            raise input_error(
                f"{count} environments cannot be shared out evenly to {devices} devices",
                field=f"{phase.name}.num_envs",
                remedy=f"give a multiple of {devices}",
            )
    root = Path(out)
    settings = training_settings(plan)
    trained = bool(step_folders(root / CHECKPOINTS))
    if trained and resume:
        config = plan.config
        phase = plan.phases[_phase_of(plan, find(root).step)]
        like = jax.eval_shape(phase.learner.init, jax.random.key(0), None)
        state, found = checkpoint.restore(root, like, config)
        # The same settings may now name other files, which the folder's config.json tells.
        folder = open_run_folder(root, settings, resume=True)
        return TrainingRun(plan, folder, found.step, state, float(found.metadata["wall_s"]))
    if trained and not overwrite:
        raise input_error(
            f"holds a training run at update {max(step_folders(root / CHECKPOINTS)):,}",
            remedy="give --resume to go on with it, --overwrite to start anew, or another folder with --out",
            file=root,
        )
    check_run_folder(root, settings, overwrite=overwrite)
    checkpoint.clear(root)
    return TrainingRun(plan, open_run_folder(root, settings, overwrite=overwrite))


def execute_training(run: TrainingRun, *, plot: bool) -> None:
    """Train to the end, and print what came of it.

    Ctrl-C stops at the next line of metrics, with a checkpoint there; a second one stops at once.

    Raises:
      InputError: a metric is not finite any more, or the folder cannot be written.
      KeyboardInterrupt: it was stopped.
    """
    plan = run.plan
    ends = _phase_ends(plan)
    log = TrainingLog(run.folder, run.update, ends, plot=plot)
    try:
        if run.update < plan.total_updates:
            if plan.figures_are_drawn and plan.table is None:
                _say("note: the fleet's models have no figures; those of drawn experts stand in")
            with _stop_on_ctrl_c() as stopped:
                _Trainer(run, log, stopped).train()
        else:
            print(f"the run has had its {run.update:,} updates: there is nothing to resume\n")
    finally:
        log.close()
    best = log.best()
    print(f"{render_judgement(best)}\n")
    print(
        f"best of {len(log.judged)} evaluations (update {best.update:,}), chosen on these very cases; "
        f"for others: python -m launch.evaluate --checkpoint={run.folder.path}"
    )
    print(f"results in {run.folder.path}")


class _Trainer:
    """What the parts of the host's loop share."""

    def __init__(self, run: TrainingRun, log: TrainingLog, stopped: threading.Event) -> None:
        self._run, self._log, self._stopped = run, log, stopped
        self._plan, self._config = run.plan, run.plan.config
        self._update = run.update
        self._begun = time.monotonic() - run.wall_s
        self._mesh = lane_mesh()
        if self._mesh.size > 1:
            _say(f"training on {self._mesh.size} devices")
        _say("simulating the baseline")
        self._judge = Judge(run.plan)

    def train(self) -> None:
        plan, params = self._plan, None
        for index, phase in enumerate(plan.phases):
            if self._run.state is not None and index < _phase_of(plan, self._run.update):
                continue
            if self._run.state is not None and index == _phase_of(plan, self._run.update):
                state = self._run.state
            else:
                key = phase_key(jax.random.key(self._config.seed), index)
                state = jax.jit(phase.learner.init)(key, params)
            state = jax.device_put(state, self._shardings(state))
            params = phase.learner.params(self._phase(phase, state, list(_phase_ends(plan).values())[index]))

    def _phase(self, phase: Phase, state: Any, end: int) -> Any:
        """Return the state after the last update of a phase, which is number ``end``."""
        if self._update == 0:
            self._evaluate(phase, state)
        if self._update == end:
            return state
        learner, config = phase.learner, self._config
        begun = time.monotonic()
        with jax.set_mesh(self._mesh):
            advance = _compiled(learner, state, self._shardings(state))
        _say(f"{phase.name}: compiled in {time.monotonic() - begun:.0f} s")
        paces = (config.log_every, config.evaluation.every, config.checkpoint_every)
        left = (end - self._update) * learner.decisions_per_update
        with progress(left, "decisions", description=phase.name) as tell:
            while self._update < end:
                stop = min(end, *((self._update // pace + 1) * pace for pace in paces))
                count = stop - self._update
                state, metrics, bad = jax.block_until_ready(advance(state, jnp.int32(count)))
                first, self._update = self._update, stop
                self._log.train(self._place(phase), {name: float(x) for name, x in sorted(metrics.items())})
                if bad >= 0:
                    raise self._diverged(phase, first + int(bad) + 1)
                tell(count * learner.decisions_per_update)
                self._keep(phase, state, end)
        return state

    def _keep(self, phase: Phase, state: Any, end: int) -> None:
        """Evaluate and save where it is due; stop if asked to."""
        judged = self._update % self._config.evaluation.every == 0 or self._update == end
        qos = self._evaluate(phase, state) if judged else None
        record = judged and self._log.best().update == self._update
        due = self._update % self._config.checkpoint_every == 0 or self._update == end
        stopped = self._stopped.is_set()
        if due or record or stopped:
            self._save(phase, state, qos)
        if stopped:
            raise KeyboardInterrupt

    def _evaluate(self, phase: Phase, state: Any) -> float:
        # The cases are simulated on one device, which is not to wait for the others' copies.
        judgement = self._judge.judge(self._update, jax.device_get(phase.learner.params(state)))
        self._log.judge(self._place(phase), judgement)
        _say(render_difference(judgement))
        return float(judgement.qos.mean)

    def _save(self, phase: Phase, state: Any, average_qos: float | None) -> None:
        checkpoint.save(
            self._run.folder.path,
            self._update,
            state,
            params=phase.learner.params(state),
            config=self._config,
            average_qos=average_qos,
            metadata={"phase": phase.name, "wall_s": time.monotonic() - self._begun},
            keep_last=self._config.keep_last,
        )

    def _shardings(self, state: Any) -> Any:
        """Where each leaf of a phase's state belongs: environments shared out over the devices."""
        return state_shardings(state, self._mesh)

    def _place(self, phase: Phase) -> dict[str, Any]:
        """Where the run is, for a line of metrics."""
        return {
            "phase": phase.name,
            "update": self._update,
            "decisions": _decisions(self._plan, self._update),
            "wall_s": round(time.monotonic() - self._begun, 3),
        }

    def _diverged(self, phase: Phase, update: int) -> Exception:
        saved = step_folders(self._run.folder.file(CHECKPOINTS))
        last = f"the last good checkpoint is {saved[max(saved)]}" if saved else "no checkpoint was saved yet"
        return input_error(
            f"training diverged in phase {phase.name}: a metric of update {update:,} is not finite ({last})",
            file=self._run.folder.path,
            remedy=f"start anew with a lower learning rate, see the flags --{phase.name}.*",
        )


def _compiled(learner: Learner, state: Any, shardings: Any) -> Advance:
    """Compile as many updates as one asks for: one program for chunks of any length.

    Args:
      learner: what is advanced.
      state: to start from.
      shardings: of its leaves, before and after.
    """

    def advance(state: Any, count: jax.Array) -> tuple[Any, dict[str, jax.Array], jax.Array]:
        none = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(learner.update, state)[1]
        )

        def one(index: jax.Array, carry: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
            state, total, bad = carry
            state, metrics = learner.update(state)
            finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
            bad = jnp.where((bad < 0) & ~finite, index, bad)
            return state, jax.tree.map(jnp.add, total, metrics), bad

        state, total, bad = jax.lax.fori_loop(0, count, one, (state, none, jnp.int32(-1)))
        return state, jax.tree.map(lambda leaf: leaf / count.astype(jnp.float32), total), bad

    jitted = jax.jit(advance, donate_argnums=0, out_shardings=(shardings, None, None))
    return jitted.lower(state, jnp.int32(1)).compile()


def training_settings(plan: TrainPlan) -> dict[str, Any]:
    """Return all that determines a run, the content of its config.json."""
    config = plan.config
    files = {"fleet_sha256": plan.fleet_file, "table_sha256": config.table}
    return {
        "launcher": "train",
        **config_dict(config),
        "latency_limit_s": plan.latency_limit_s,
        **{name: None if file is None else sha256(file) for name, file in files.items()},
    }


def _phase_ends(plan: TrainPlan) -> Mapping[str, int]:
    """The number of the last update of each phase, by its name."""
    ends: dict[str, int] = {}
    for phase in plan.phases:
        ends[phase.name] = max(ends.values(), default=0) + phase.updates
    return ends


def _phase_of(plan: TrainPlan, update: int) -> int:
    """Index of the phase that did an update, counted from 1."""
    ends = list(_phase_ends(plan).values())
    return next((index for index, end in enumerate(ends) if update <= end), len(ends) - 1)


def _decisions(plan: TrainPlan, update: int) -> int:
    """Decisions taken in the first updates of a run, tried ones included."""
    begin = total = 0
    for phase in plan.phases:
        total += min(max(update - begin, 0), phase.updates) * phase.learner.decisions_per_update
        begin += phase.updates
    return total


@contextlib.contextmanager
def _stop_on_ctrl_c() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets; the second raises KeyboardInterrupt, as always."""
    stopped = threading.Event()

    def note(signum: int, frame: Any) -> None:
        if stopped.is_set():
            signal.default_int_handler(signum, frame)
        stopped.set()
        _say("stopping after a checkpoint; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield stopped  # signals are the main thread's
        return
    previous = signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)


_say = functools.partial(tqdm.write, file=sys.stderr)
