"""The one results file of a sweep: rows appended a chunk at a time, read back, put in order at the end."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qos_jax.errors import input_error
from qos_jax.files import atomic_write
from qos_jax.runs.statistics import mean_ci
from qos_jax.simulation.metrics import METRICS

RESULTS = "sweep.csv"
ENDS = ("", "_ci_low", "_ci_high")  # of a metric's three columns: mean over seeds, 95% interval


@dataclasses.dataclass(frozen=True)
class SweepTable:
    """The rows of a results file, by column."""

    text: Mapping[str, np.ndarray]  # [rows] str, columns as written

    def numbers(self, column: str) -> np.ndarray:
        """Return a column as [rows] float64; NaN where it is empty."""
        return np.array([float(cell) if cell else math.nan for cell in self.text[column]])


class ResultsFile:
    """``sweep.csv``: a row per cell and policy.

    A row is whole or absent: rows are appended in one write, and what a kill cut short is cut away when
    the file is opened again.
    """

    def __init__(self, path: Path, columns: Sequence[str], metrics: Sequence[str] = tuple(METRICS)) -> None:
        """Open the file, or begin it.

        Args:
          path: of the file.
          columns: those before the metrics'; the first two are "cell" and "policy".
          metrics: their names.

        Raises:
          InputError: the file there has other columns.
        """
        self.path = path
        self.columns = [*columns, *(f"{name}{end}" for name in metrics for end in ENDS)]
        if not path.is_file():
            with atomic_write(path) as stream:
                stream.write(_line(self.columns))
        self._finished = self._read_finished()

    def is_finished(self, cell: int, policy: str) -> bool:
        """Return whether the row of a cell and policy is there."""
        return (cell, policy) in self._finished

    def append(self, rows: Sequence[Sequence[object]], metrics: np.ndarray) -> None:
        """Append rows and have them on disk; those already there are left out.

        Args:
          rows: the values of the columns before the metrics', r of them.
          metrics: [r, S, M], of which mean and 95% interval over seeds are written.
        """
        new = [i for i, row in enumerate(rows) if not self.is_finished(int(str(row[0])), str(row[1]))]
        if not new:
            return
        estimate = mean_ci(np.moveaxis(metrics[new], 1, -1))
        figures = np.stack([estimate.mean, estimate.low, estimate.high], axis=-1)  # [r, M, 3]
        lines = [
            _line(
                [
                    *(_cell(value, may_be_inf=True) for value in rows[i]),
                    *map(_cell, mine.reshape(-1).tolist()),
                ]
            )
            for i, mine in zip(new, figures, strict=True)
        ]
        with open(self.path, "ab") as stream:
            stream.write("".join(lines).encode())
            stream.flush()
            os.fsync(stream.fileno())
        self._finished |= {(int(str(rows[i][0])), str(rows[i][1])) for i in new}

    def put_in_order(self, policies: Sequence[str]) -> None:
        """Write the rows anew by cell, then policy: the file of a finished sweep, however it was run."""
        place = {name: index for index, name in enumerate(policies)}
        with open(self.path, encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))[1:]
        rows.sort(key=lambda row: (int(row[0]), place[row[1]]))
        with atomic_write(self.path) as stream:
            stream.writelines(_line(row) for row in [self.columns, *rows])

    def table(self) -> SweepTable:
        """Return all rows."""
        with open(self.path, encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))[1:]
        columns = zip(*rows, strict=True) if rows else [()] * len(self.columns)
        return SweepTable({name: np.array(cells) for name, cells in zip(self.columns, columns, strict=True)})

    def _read_finished(self) -> set[tuple[int, str]]:
        with open(self.path, "rb+") as raw:
            content = raw.read()
            whole = content[: content.rfind(b"\n") + 1]
            raw.truncate(len(whole))
        rows = list(csv.reader(io.StringIO(whole.decode("utf-8", errors="replace"))))
        fault = None if rows and rows[0] == self.columns else (1, "has other columns than this sweep's")
        for number, row in enumerate(rows[1:], start=2):
            if len(row) != len(self.columns) or not row[0].isdigit():
                fault = fault or (number, "is no row of this sweep")
        if fault:
            raise input_error(
                fault[1], file=self.path, row=fault[0], remedy="remove the file, or give --overwrite"
            )
        return {(int(row[0]), row[1]) for row in rows[1:]}


def _line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _cell(value: object, may_be_inf: bool = False) -> object:
    """Return a number with the 9 digits that carry a float32 whole, "" where there is none.

    A limit may be infinite; a metric that is not finite says nothing.
    """
    if isinstance(value, float):
        return f"{value:.9g}" if math.isfinite(value) or (may_be_inf and value == math.inf) else ""
    return value
