"""Run the host's training loop: chunks of updates, evaluations, checkpoints; Ctrl-C saves one more.

All processes of a run call it. Process 0 evaluates and writes; the others only train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from qos_jax.devices import gather, own_copy, place
from qos_jax.errors import input_error
from qos_jax.learning.spread import state_shardings
from qos_jax.learning.types import Learner
from qos_jax.memory import return_freed
from qos_jax.runs import checkpoint
from qos_jax.runs.checkpoint_record import CHECKPOINTS, step_folders
from qos_jax.runs.config_json import config_dict
from qos_jax.runs.folder import RunFolder
from qos_jax.runs.progress import progress
from qos_jax.training.hyper import Together
from qos_jax.training.plan import Phase, TrainPlan, phase_key

# (state, [] int32 number of updates) -> (state, means of their metrics, which of them first had a metric that
# is not finite, or -1).
Advance = Callable[[Any, jax.Array], tuple[Any, dict[str, jax.Array], jax.Array]]
# How far a run is, for a line of metrics: phase, update, decisions, wall_s.
RunProgress = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A run that may begin or go on; make one with :func:`~qos_jax.training.run.open_training`."""

    plan: TrainPlan  # of several routers, one of ``over_routers``
    folder: RunFolder | None  # None in a process that does not write
    update: int = 0  # done so far, over all phases
    state: Any = None  # of the learner that did the last of them; None at the start
    wall_s: float = 0.0  # seconds of training so far
    together: Together | None = None  # routers trained at once; None = one, with no axis for them

    def start(self, index: int, params: Any | None) -> Any:
        """Return the state that a phase starts from, given the parameters that the one before ended with.

        None, as of the first phase, stands for those of the router ``plan.start``, if the run has one.
        """
        key = jax.random.key(self.plan.config.seed)
        if params is None:
            params = self.plan.start_params
            if self.together is not None:
                count = self.together.count
                params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), params)
        if self.together is None:
            key = phase_key(key, index)
        else:
            keys = jax.random.split(key, self.together.seeds)
            keys = jax.vmap(functools.partial(phase_key, index=index))(keys)
            key = keys[jnp.arange(self.together.count) % self.together.seeds]
        return jax.jit(self.plan.phases[index].learner.init)(key, params)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of an evaluation."""

    average_qos: float | None  # by which the best checkpoint is kept; None = the last ones alone
    is_best: bool  # to be kept at once


@dataclasses.dataclass(frozen=True)
class Recorder:
    """What process 0 records; each call returns when its files are on disk."""

    # (progress, metrics: means over the updates since the last line, [] or [R] of several routers)
    metrics: Callable[[RunProgress, Mapping[str, Any]], None]
    evaluate: Callable[[RunProgress, Any], Verdict]  # (progress, parameters)


def train(run: TrainingRun, recorder: Recorder | None, mesh: Mesh, *, every_evaluation: bool = False) -> Any:
    """Train to the end.

    Ctrl-C, in any process, stops all at the next line of metrics, with a checkpoint there; a second one stops
    at once.

    Args:
      run: what to train, which is not at its end.
      recorder: None in processes that do not write.
      mesh: the devices that environments are shared out to.
      every_evaluation: keep metrics and checkpoints at the evaluations, not at paces of their own.

    Returns:
      The state after the last update.

    Raises:
      InputError: a metric is not finite any more, or the folder cannot be written.
      KeyboardInterrupt: it was stopped.
    """
    with _stop_on_ctrl_c() as stopped:
        return _Loop(run, recorder, mesh, stopped, every_evaluation).train()


class _Loop:
    """The loop of one run, and how far it is."""

    def __init__(
        self,
        run: TrainingRun,
        recorder: Recorder | None,
        mesh: Mesh,
        stopped: threading.Event,
        every_evaluation: bool,
    ) -> None:
        self._run, self._recorder, self._mesh, self._stopped = run, recorder, mesh, stopped
        self._plan, self._config = run.plan, run.plan.config
        config, every = self._config, self._config.evaluation.every
        self._save_every = every if every_evaluation else config.checkpoint_every
        self._paces = (every, self._save_every, every if every_evaluation else config.log_every)
        self._update = run.update
        self._begun = time.monotonic() - run.wall_s

    def train(self) -> Any:
        ends = list(phase_ends(self._plan).values())
        current = phase_of(self._plan, self._run.update) if self._run.state is not None else 0
        state, params = None, None
        for index, phase in enumerate(self._plan.phases[current:], start=current):
            resumed = self._run.state if index == current else None
            begin = functools.partial(self._begin, index, params, resumed)
            state = None  # of the phase before, which would take memory
            state = self._phase(phase, begin, ends[index])
            params = phase.learner.params(state)
        return state

    def _begin(self, index: int, params: Any | None, resumed: Any | None) -> Any:
        """Return the state that a phase goes on from, or starts with, on its devices."""
        state = self._run.start(index, params) if resumed is None else resumed
        return place(state, state_shardings(state, self._mesh))

    def _phase(self, phase: Phase, begin: Callable[[], Any], end: int) -> Any:
        """Return the state after the last update of a phase.

        Args:
          phase: of the plan.
          begin: returns the state that the phase goes on from, which the first update donates.
          end: number of its last update.
        """
        learner = phase.learner
        if self._update == 0:
            self._evaluate(phase, learner.params(begin()))
        if self._update == end:
            return begin()
        begun = time.monotonic()
        return_freed()  # of what was compiled before, since compiling takes more memory than training
        # A state is made after compiling, and not kept meanwhile; that of a resumed run was read before.
        shapes = jax.eval_shape(begin)
        with jax.set_mesh(self._mesh):
            advance = _compiled(learner, shapes, state_shardings(shapes, self._mesh))
        return_freed()
        if self._recorder is not None:
            say(f"{phase.name}: compiled in {time.monotonic() - begun:.0f} s")
        state = begin()
        with self._progress_bar(phase, end) as advance_bar:
            while self._update < end:
                stop = min(end, *((self._update // pace + 1) * pace for pace in self._paces))
                count = stop - self._update
                state, metrics, bad = jax.block_until_ready(advance(state, jnp.int32(count)))
                first, self._update = self._update, stop
                means = {name: np.asarray(value, np.float64) for name, value in sorted(metrics.items())}
                if self._recorder is not None:
                    lists = {name: value.tolist() for name, value in means.items()}
                    self._recorder.metrics(self._run_progress(phase), lists)
                if int(bad) >= 0:
                    raise self._divergence(phase, first + int(bad) + 1, means)
                advance_bar(count * learner.decisions_per_update)
                self._keep(phase, state, end)
        return state

    def _keep(self, phase: Phase, state: Any, end: int) -> None:
        """Evaluate and save where it is due; stop if asked to."""
        judged = self._update % self._config.evaluation.every == 0 or self._update == end
        verdict = self._evaluate(phase, phase.learner.params(state)) if judged else None
        best = verdict is not None and verdict.is_best
        # Process 0 alone knows what is best, and any may have got the signal to stop; all must do the same.
        said = gather(np.array([[best, self._stopped.is_set()]]))
        best, stopped = bool(said[0, 0]), bool(said[:, 1].any())
        due = self._update % self._save_every == 0 or self._update == end
        if due or best or stopped:
            self._save(phase, state, verdict)
        if stopped:
            gather(np.zeros(1))  # the others wait until process 0 has saved
            raise KeyboardInterrupt

    def _evaluate(self, phase: Phase, params: Any) -> Verdict | None:
        """Return the verdict of an evaluation in process 0; None in the others."""
        params = own_copy(self._mesh, params)
        if self._recorder is None:
            return None
        # The cases are simulated on one device, which must not wait for the others' copies.
        return self._recorder.evaluate(self._run_progress(phase), jax.device_get(params))

    def _save(self, phase: Phase, state: Any, verdict: Verdict | None) -> None:
        params = own_copy(self._mesh, phase.learner.params(state))
        state = own_copy(self._mesh, state)
        if self._run.folder is None:
            return
        checkpoint.save(
            self._run.folder.path,
            self._update,
            state,
            params=params if self._run.together is None else None,
            config=checkpoint_config(self._plan, self._run.together),
            average_qos=None if verdict is None else verdict.average_qos,
            metadata={"phase": phase.name, "wall_s": time.monotonic() - self._begun},
            keep_last=self._config.keep_last,
        )

    def _run_progress(self, phase: Phase) -> RunProgress:
        return {
            "phase": phase.name,
            "update": self._update,
            "decisions": _decisions(self._plan, self._update),
            "wall_s": round(time.monotonic() - self._begun, 3),
        }

    def _progress_bar(self, phase: Phase, end: int) -> AbstractContextManager[Callable[[int], None]]:
        if self._recorder is None:
            return contextlib.nullcontext(lambda _: None)
        many = "" if self._run.together is None else f" x {self._run.together.count} routers"
        left = (end - self._update) * phase.learner.decisions_per_update
        return progress(left, "decisions", description=phase.name + many)

    def _divergence(self, phase: Phase, update: int, metrics: Mapping[str, np.ndarray]) -> Exception:
        finite = np.isfinite(np.stack(list(metrics.values()))).all(axis=0)
        together = self._run.together
        which = "" if together is None else f", seed {together.label(int(np.argmin(finite)))}"
        folder = self._run.folder
        saved = step_folders(folder.file(CHECKPOINTS)) if folder is not None else {}
        last = f"the last good checkpoint is {saved[max(saved)]}" if saved else "no checkpoint was saved yet"
        return input_error(
            f"training diverged in phase {phase.name}{which}: a metric of update {update:,} is not finite"
            + ("" if folder is None else f" ({last})"),
            file=None if folder is None else folder.path,
            remedy=f"start anew with a lower learning rate, see the flags --{phase.name}.*",
        )


def _compiled(learner: Learner, shapes: Any, shardings: Any) -> Advance:
    """Compile as many updates as one asks for: one program for chunks of any length.

    Args:
      learner: what is advanced.
      shapes: of the state's leaves.
      shardings: of them, before and after.
    """
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    update = jax.jit(learner.update, inline=True)  # traced once, for its shapes and for the loop

    def advance(state: Any, count: jax.Array) -> tuple[Any, dict[str, jax.Array], jax.Array]:
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(update, state)[1])

        def one(index: jax.Array, carry: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
            state, total, bad = carry
            state, metrics = update(state)
            finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
            bad = jnp.where((bad < 0) & ~finite, index, bad)
            return state, jax.tree.map(jnp.add, total, metrics), bad

        state, total, bad = jax.lax.fori_loop(0, count, one, (state, none, jnp.int32(-1)))
        return state, jax.tree.map(lambda leaf: leaf / count.astype(jnp.float32), total), bad

    jitted = jax.jit(advance, donate_argnums=0, out_shardings=(shardings, None, None))
    return jitted.lower(state, jnp.int32(1)).compile()


def checkpoint_config(plan: TrainPlan, together: Together | None) -> Any:
    """Return the configuration that a checkpoint is of."""
    return plan.config if together is None else {**config_dict(plan.config), **together.record()}


def phase_ends(plan: TrainPlan) -> dict[str, int]:
    """Return the number of the last update of each phase, by its name."""
    ends = itertools.accumulate(phase.updates for phase in plan.phases)
    return {phase.name: end for phase, end in zip(plan.phases, ends, strict=True)}


def phase_of(plan: TrainPlan, update: int) -> int:
    """Return the index of the phase that did an update, counted from 1."""
    ends = list(phase_ends(plan).values())
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
        say("stopping after a checkpoint; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield stopped  # signals are the main thread's
        return
    previous = signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)


say = functools.partial(tqdm.write, file=sys.stderr)  # prints a line above a bar of progress
