"""Write a training run's metrics: ``metrics.jsonl``, event files for TensorBoard, the learning curve."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from qos_jax.runs import plot_style
from qos_jax.runs.folder import RunFolder
from qos_jax.training.curve import learning_curve, write_learning_curve_csv
from qos_jax.training.judge import Judgement, judgements

CURVE_CSV, CURVE_PLOT, BOARD = "evaluations.csv", "plots/learning_curve.png", "tensorboard"


class TrainingLog:
    """Writes metrics and evaluations; each line is on disk before the next update begins."""

    def __init__(self, folder: RunFolder, update: int, phase_ends: Mapping[str, int], *, plot: bool) -> None:
        """Continue after ``update``; lines of later updates, which will be done again, are removed."""
        self.judged: list[Judgement] = judgements(lines_until(folder, update))
        self._folder, self._phase_ends, self._plot = folder, phase_ends, plot
        self._board = _board(folder, update)

    def train(self, progress: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Write the metrics of some updates.

        Args:
          progress: ``phase``, ``update``, ``decisions`` and ``wall_s`` so far.
          metrics: their means over the updates since the last line.
        """
        self._folder.append_metrics({**progress, "metrics": metrics})
        figures = {f"{progress['phase']}/{name}": value for name, value in metrics.items()}
        self._show(progress["update"], figures)

    def judge(self, progress: Mapping[str, Any], judgement: Judgement) -> None:
        """Write an evaluation, and the learning curve with it."""
        self._folder.append_metrics({**progress, **dataclasses.asdict(judgement)})
        self.judged.append(judgement)
        means = {"average_qos": judgement.qos.mean, "difference": judgement.difference.mean}
        self._show(judgement.update, {f"evaluation/{name}": float(mean) for name, mean in means.items()})
        write_learning_curve_csv(self._folder.file(CURVE_CSV), self.judged)
        if self._plot:
            figure = learning_curve(self.judged, self._phase_ends)
            plot_style.save_figure(figure, self._folder.file(CURVE_PLOT))

    def best(self) -> Judgement:
        """Return the evaluation of the highest QoS after the start, the later on a tie."""
        after = [judgement for judgement in self.judged if judgement.update > 0]
        return max(after, key=lambda judgement: (float(judgement.qos.mean), judgement.update))

    def close(self) -> None:
        """Close the event file."""
        if self._board is not None:
            self._board.close()

    def _show(self, update: int, figures: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in figures.items():
                if np.isfinite(value):
                    self._board.add_scalar(name, value, update)
            self._board.flush()


def lines_until(folder: RunFolder, update: int) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl`` up to ``update``, none if that is 0; remove the others."""
    kept = [line for line in folder.read_metrics() if update > 0 and line.get("update", 0) <= update]
    folder.replace_metrics(kept)
    return kept


def _board(folder: RunFolder, update: int) -> Any:
    """Return a TensorBoard writer that hides later updates of earlier files; None without tensorboardX."""
    if importlib.util.find_spec("tensorboardX") is None:
        return None
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder.file(BOARD)), purge_step=update + 1 if update else None)
