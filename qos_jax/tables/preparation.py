"""Load and check what a request table is made from: an answer log, its rows completed and split."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from qos_jax.checks import Interval, check_range
from qos_jax.errors import InputError, input_error
from qos_jax.options import check_options, option
from qos_jax.predictors import PredictorConfig
from qos_jax.predictors.answers import check_answers
from qos_jax.tables.answers.log import take_rows
from qos_jax.tables.answers.read import LogConfig, check_tasks, read_answers
from qos_jax.tables.answers.rows import (
    MISSING,
    TEST,
    TRAIN,
    Completed,
    SplitConfig,
    complete,
    split_by_prompt,
)
from qos_jax.workload import Fleet, Trace
from qos_jax.workload.named import TABLE_MATCH_HELP, TABLE_MATCHES
from qos_jax.workload.named_table import ALL_ROWS, SPLITS
from qos_jax.workload.setting import open_fleet, open_trace


@dataclasses.dataclass(frozen=True)
class PreparationConfig:
    """Everything that determines a table.

    Raises:
      InputError: a value out of its range, naming the field, which is also the flag's name.
    """

    log: LogConfig = option(flat=True)
    split: SplitConfig = option(SplitConfig, flat=True)
    missing: str = option(MISSING[0], known=MISSING)  # a row's missing answers: drop the row, or fill them
    folds: int = 5  # parts of train, each predicted by a fit on the others
    predictor: PredictorConfig = dataclasses.field(default_factory=PredictorConfig)
    fleet: str | None = None  # a fleet CSV, or the name of a shipped one: for costs and for the trace
    trace: str | None = option(
        None, help="trace file whose arrivals get rows of the table: requests.csv, for launch.simulate"
    )
    trace_start_s: float = 0.0  # first second of the trace to use
    trace_end_s: float = math.inf  # second of the trace to stop before
    table_match: str = option("nearest", help=TABLE_MATCH_HELP, known=TABLE_MATCHES)
    table_split: str = option(SPLITS[TEST], known=(ALL_ROWS, *SPLITS))  # which rows a trace's arrivals get
    trace_seed: int = 0  # of the rows drawn for the trace

    def __post_init__(self) -> None:
        check_options(self)
        check_range(self, ["folds"], Interval(2, 2**31 - 1, whole=True))


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A table to be made that has passed every check; see :func:`load_preparation`."""

    config: PreparationConfig
    rows: Completed
    split: npt.NDArray[np.int32]  # [M] index into SPLITS
    excluded: dict[str, int]  # rows left out, by task
    fleet_file: pathlib.Path | None
    fleet: Fleet | None
    trace: Trace | None

    @property
    def epochs(self) -> int:
        """Steps of progress that a fit counts as."""
        return self.config.predictor.max_epochs

    @property
    def work(self) -> int:
        """Steps of progress of all fits: one per fold, and the last on all of train."""
        return (self.config.folds + 1) * self.epochs

    def counts(self) -> dict[str, Any]:
        """Return counts of the log's rows for the summary: by split, dropped, filled, excluded."""
        return {
            "rows": self.rows.log.num_rows,
            "rows_by_split": {name: int(np.sum(self.split == k)) for k, name in enumerate(SPLITS)},
            "rows_dropped_for_a_missing_answer": self.rows.dropped_rows,
            "answers_filled": int(np.sum(self.rows.given.missing)),
            "rows_excluded_by_task": self.excluded,
            "notes": list(self.rows.log.notes),
        }


def load_preparation(config: PreparationConfig) -> Preparation:
    """Read the files, complete and split the rows, and check that all fits; nothing is written or fitted.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    fleet_file, fleet = (None, None) if config.fleet is None else open_fleet(config.fleet)
    trace = None
    if config.trace is not None:
        trace = open_trace(config.trace, config.trace_start_s, config.trace_end_s)
    log, excluded = read_answers(config.log)
    if config.split.held_out_task is not None:
        check_tasks(log, (config.split.held_out_task,), "held_out_task")
    if fleet is not None:
        for name in fleet.names:
            if name not in log.experts:
                fault = f"has no answers of {name!r} of the fleet"
                remedy = f"use a fleet of some of {', '.join(log.experts)}, or leave it out"
                raise input_error(fault, file=log.file, field="fleet", remedy=remedy)
    rows = complete(log, config.missing)
    split = split_by_prompt(rows.log, config.split)
    if np.sum(split == TRAIN) < config.folds:
        fault = f"{int(np.sum(split == TRAIN))} train rows are fewer than {config.folds} folds"
        raise input_error(fault, field="folds", remedy="give fewer folds, or more prompts")
    _check_fit(config.predictor, rows, split)
    wanted = [] if config.table_split == ALL_ROWS else [SPLITS.index(config.table_split)]
    if trace is not None and not all((split == k).any() for k in wanted):
        raise input_error(
            f"no row is in {config.table_split!r}", field="table_split", remedy="use another split"
        )
    return Preparation(config, rows, split, excluded, fleet_file, fleet, trace)


def _check_fit(config: PredictorConfig, rows: Completed, split: npt.NDArray[np.int32]) -> None:
    """Raise now the errors that fitting would raise later."""
    log = rows.given
    longest = log.output_tokens
    if longest.max() > config.max_output_tokens:
        row, expert = np.unravel_index(int(longest.argmax()), longest.shape)
        raise input_error(
            f"an answer of {log.experts[expert]!r} has {longest.max()} tokens, past the last length bucket",
            file=log.files[int(row)],
            row=int(log.line[row]),
            field="output_tokens",
            remedy=f"shorten it, or give --predictor.max_output_tokens={longest.max()}",
        )
    try:
        check_answers(config, *fitted_answers(rows, split == TRAIN))
    except InputError as error:
        raise InputError(f"{log.file}, train rows, {error}") from None


def fitted_answers(
    rows: Completed, chosen: npt.NDArray[np.bool_]
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return what predictors are fitted to: prompts, their answers as given, filled ones missing, experts."""
    given = take_rows(rows.given, chosen)
    return given.prompts, given.quality, given.output_tokens, given.experts
