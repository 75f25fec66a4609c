"""From an answer log to a request table: split, predicted out of fold, paired with a trace, written."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from qos_jax.errors import InputError, input_error
from qos_jax.evaluation.cases import TABLE_MATCHES
from qos_jax.evaluation.contents import draw_contents
from qos_jax.evaluation.run_folder import RunFolder, digest, open_run_folder
from qos_jax.evaluation.table_plots import write_table_plots
from qos_jax.evaluation.table_summary import render_summary, summarise_table, write_summary
from qos_jax.predictors import (
    Predictions,
    Predictor,
    PredictorConfig,
    fit_predictor,
    out_of_fold,
    save_predictor,
)
from qos_jax.predictors.answers import check_answers
from qos_jax.workload import (
    Fleet,
    NamedTable,
    Requests,
    RequestTable,
    Trace,
    fleet_path,
    read_fleet,
    read_table,
    read_trace,
    split_rows,
    table_for_experts,
    window,
    write_requests,
    write_table,
)
from qos_jax.workload.answer_log import MISSING_TOKENS, take_rows
from qos_jax.workload.answer_rows import (
    MISSING,
    TEST,
    TRAIN,
    Completed,
    SplitConfig,
    complete,
    split_by_prompt,
)
from qos_jax.workload.answers import LogConfig, check_tasks, read_answers
from qos_jax.workload.answers_lookahead import ARRAYS, PROMPTS
from qos_jax.workload.named_table import ALL_ROWS, SPLITS
from qos_jax.workload.requests import MIN_PREDICTED_TOKENS
from qos_jax.workload.table_file import MAX_LENGTH_LOG_STD
from qos_jax.workload.table_rows import length_ratios

TABLE, PREDICTOR, REQUESTS = "table.npz", "predictor.npz", "requests.csv"


@dataclasses.dataclass(frozen=True)
class PreparationConfig:
    """Everything that determines a table.

    Raises:
      InputError: a value out of its range, naming the field, which is also the flag's name.
    """

    log: LogConfig
    split: SplitConfig
    missing: str = "drop"  # rows that miss an answer: "drop" them, or "fill" the answer
    folds: int = 5  # parts of train, each predicted by a fit on the others
    predictor: PredictorConfig = dataclasses.field(default_factory=PredictorConfig)
    fleet: str | None = None  # a fleet CSV or the name of a shipped one; for costs and for the requests
    trace: str | None = None  # trace file, whose arrivals are paired with rows
    trace_start_s: float = 0.0  # of the trace, seconds from its first arrival
    trace_end_s: float = math.inf  # exclusive
    trace_match: str = "nearest"  # rows nearest in length to the recorded requests, or any, "even"
    trace_split: str = SPLITS[TEST]  # which rows
    trace_seed: int = 0  # of the rows drawn

    def __post_init__(self) -> None:
        for field, value, known in (
            ("missing", self.missing, MISSING),
            ("trace_match", self.trace_match, TABLE_MATCHES),
            ("trace_split", self.trace_split, (ALL_ROWS, *SPLITS)),
        ):
            if value not in known:
                raise input_error(
                    f"{value!r} is unknown", field=field, remedy=f"use one of {', '.join(known)}"
                )
        if self.folds < 2:
            raise input_error(f"{self.folds} is below 2", field="folds", remedy="give at least 2")
        if not 0 <= self.trace_start_s < self.trace_end_s:  # NaN fails too
            raise input_error(
                f"{self.trace_start_s} to {self.trace_end_s} is no window",
                field="trace_start_s",
                remedy="give seconds >= 0, the start before the end",
            )


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A table to be made that has passed every check; see :func:`load_preparation`."""

    config: PreparationConfig
    rows: Completed
    split: npt.NDArray[np.int32]  # [M] index into SPLITS
    excluded: dict[str, int]  # rows left out, by task
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
        """What became of the rows of the log, for the summary."""
        return {
            "rows": self.rows.log.num_rows,
            "rows_by_split": {name: int(np.sum(self.split == k)) for k, name in enumerate(SPLITS)},
            "rows_dropped_for_a_missing_answer": self.rows.dropped_rows,
            "answers_filled": int(np.sum(~self.rows.seen)),
            "rows_excluded_by_task": self.excluded,
            "notes": list(self.rows.log.notes),
        }


def load_preparation(config: PreparationConfig) -> Preparation:
    """Read the files, complete and split the rows, and check that all fits; nothing is written or fitted.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    fleet = trace = None
    if config.fleet is not None:
        file = pathlib.Path(config.fleet) if config.fleet.endswith(".csv") else fleet_path(config.fleet)
        fleet = read_fleet(file)
    if config.trace is not None:
        trace = dataclasses.replace(read_trace(config.trace), name=config.trace)
        if config.trace_start_s > 0 or config.trace_end_s < math.inf:
            trace = window(trace, config.trace_start_s, config.trace_end_s)
    log, excluded = read_answers(config.log)
    if config.split.held_out_task is not None:
        check_tasks(log, (config.split.held_out_task,), "held_out_task")
    if fleet is not None:
        for name in fleet.names:
            if name not in log.experts:
                raise input_error(
                    f"has no answers of {name!r} of the fleet",
                    file=log.file,
                    field="fleet",
                    remedy=f"use a fleet of some of {', '.join(log.experts)}, or leave it out",
                )
    rows = complete(log, config.missing)
    split = split_by_prompt(rows.log, config.split)
    if np.sum(split == TRAIN) < config.folds:
        raise input_error(
            f"{int(np.sum(split == TRAIN))} train rows are fewer than {config.folds} folds",
            field="folds",
            remedy="give fewer folds, or more prompts",
        )
    _check_fit(config.predictor, rows, split)
    wanted = [] if config.trace_split == ALL_ROWS else [SPLITS.index(config.trace_split)]
    if trace is not None and not all((split == k).any() for k in wanted):
        raise input_error(
            f"no row is in {config.trace_split!r}", field="trace_split", remedy="use another split"
        )
    return Preparation(config, rows, split, excluded, fleet, trace)


def _check_fit(config: PredictorConfig, rows: Completed, split: npt.NDArray[np.int32]) -> None:
    """Refuse now what fitting would refuse later."""
    log = rows.log
    longest = np.where(rows.seen, log.output_tokens, 0)
    if longest.max() > config.max_output_tokens:
        row, expert = np.unravel_index(int(longest.argmax()), longest.shape)
        raise input_error(
            f"an answer of {log.experts[expert]!r} has {longest.max()} tokens, past the last length bucket",
            file=log.file,
            row=int(log.line[row]),
            field="output_tokens",
            remedy=f"mend it, or give --predictor.max_output_tokens={longest.max()}",
        )
    try:
        check_answers(config, *_answers(rows, split == TRAIN))
    except InputError as error:
        raise InputError(f"{log.file}, train rows, {error}") from None


def _answers(
    rows: Completed, chosen: npt.NDArray[np.bool_]
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return what predictors are fitted to: prompts, true answers to them, filled ones missing, experts."""
    log = rows.log
    quality = np.where(rows.seen, log.quality, np.nan)
    output_tokens = np.where(rows.seen, log.output_tokens, MISSING_TOKENS)
    return take_rows(log, chosen).prompts, quality[chosen], output_tokens[chosen], log.experts


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What was made: the table, the predictor that made its predictions, and those."""

    named: NamedTable
    predictor: Predictor
    predictions: Predictions  # [M, N], of train rows out of fold


def fit_table(plan: Preparation, on_progress: Callable[[int], None] | None = None) -> Prepared:
    """Fit the predictor on train rows and predict all rows, those of train out of fold.

    A train row's prediction comes from a fit that saw neither it nor a row of the same prompt; filled answers
    are fitted by no one. What routers are told of the length error is that of train rows out of fold.
    """
    log, train = plan.rows.log, plan.split == TRAIN
    answers = _answers(plan.rows, train)
    tell = _Progress(plan, on_progress)
    folded = out_of_fold(
        plan.config.predictor, *answers, folds=plan.config.folds, on_progress=tell.of(plan.config.folds)
    )
    predictor = fit_predictor(plan.config.predictor, *answers, on_progress=tell.of(1))
    tell.finish()
    others = predictor.predict(take_rows(log, ~train).prompts)
    predictions = dataclasses.replace(
        folded,
        quality=_interleaved(train, folded.quality, others.quality),
        bucket_probability=_interleaved(train, folded.bucket_probability, others.bucket_probability),
    )
    leaves: dict[str, Any] = {
        "prompt_tokens": log.prompt_tokens,
        "quality": log.quality,
        "output_tokens": log.output_tokens,
        "predicted_quality": np.clip(predictions.quality, 0.0, 1.0).astype(np.float32),
        "predicted_output_tokens": np.maximum(predictions.output_tokens, MIN_PREDICTED_TOKENS).astype(
            np.float32
        ),
    }
    table = RequestTable(**leaves)
    length_log_std = np.minimum(predictor.length_log_std, MAX_LENGTH_LOG_STD).astype(np.float32)
    named = NamedTable(log.experts, table, length_log_std, plan.split, log.file)
    return Prepared(named, predictor, predictions)


class _Progress:
    """Turns what each fit tells, parts done of all, into steps of ``Preparation.work``."""

    def __init__(self, plan: Preparation, on_progress: Callable[[int], None] | None) -> None:
        self._plan, self._on_progress = plan, on_progress
        self._begun, self._told = 0, 0

    def of(self, fits: int) -> Callable[[int, int], None]:
        """Return what the next so many fits are to call."""
        start, self._begun = self._begun * self._plan.epochs, self._begun + fits
        return lambda done, of: self._tell(start + done * fits * self._plan.epochs // of)

    def finish(self) -> None:
        """Count what early stopping left undone."""
        self._tell(self._plan.work)

    def _tell(self, done: int) -> None:
        if self._on_progress is not None and done > self._told:
            self._on_progress(done - self._told)
            self._told = done


def _interleaved(at: npt.NDArray[np.bool_], first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return an array with the rows of ``first`` where ``at`` [M] holds, and of ``second`` elsewhere."""
    whole = np.empty((len(at), *first.shape[1:]), first.dtype)
    whole[at], whole[~at] = first, second
    return whole


def pair_with_trace(plan: Preparation, named: NamedTable) -> tuple[Requests, tuple[str, ...], dict[str, Any]]:
    """Return the trace's arrivals with a row of the table for each, and what is to be known of it.

    Returns:
      T requests, their experts (the fleet's, if there is one), and what the summary tells of the pairing.
    """
    config, trace = plan.config, plan.trace
    assert trace is not None
    if plan.fleet is not None:
        named = table_for_experts(named, plan.fleet.names)
    named = split_rows(named, config.trace_split)
    lengths = trace if config.trace_match == "nearest" else None
    keys = jax.random.key(config.trace_seed)[None]
    drawn = draw_contents(keys, named, lengths, trace.num_requests)
    prompt_ratio, output_ratio = length_ratios(drawn, trace.prompt_tokens, trace.output_tokens)
    one = jax.tree.map(lambda leaf: leaf[0], drawn)
    figures = {
        "trace": config.trace,
        "requests": trace.num_requests,
        "rows_from": config.trace_split,
        "matched": "a row among the 16 nearest in prompt and output length"
        if lengths is not None
        else "any row, evenly",
        "rows_times_as_long_as_recorded": {"prompt_tokens": prompt_ratio, "output_tokens": output_ratio},
        "recorded_requests_skipped": trace.skipped_rows,
    }
    return Requests(trace.arrival_s, one, None), named.names, figures


def preparation_settings(plan: Preparation) -> dict[str, Any]:
    """Return all that determines a table, the content of ``config.json``."""
    config = plan.config
    files = [file for path in config.log.log for file in _files_of(path)]
    return {
        "launcher": "prepare_data",
        **dataclasses.asdict(config),
        "log_sha256": [digest(file) for file in files],
        "trace_sha256": digest(config.trace) if config.trace else None,
    }


def _files_of(path: str) -> list[pathlib.Path]:
    folder = pathlib.Path(path)
    return [folder / ARRAYS, folder / PROMPTS] if folder.is_dir() else [folder]


def write_prepared(folder: RunFolder, plan: Preparation, prepared: Prepared, *, plot: bool) -> str:
    """Write everything that was made and return what to tell the user.

    ``table.npz`` and the predictor, ``summary.csv`` and ``summary.json``, with a trace ``requests.csv``,
    and with ``plot`` the plots of test rows.
    """
    named = prepared.named
    write_table(
        folder.file(TABLE),
        named.names,
        named.table,
        split=named.split,
        length_log_std=named.length_log_std,
    )
    save_predictor(folder.file(PREDICTOR), prepared.predictor)
    summary = plan.counts()
    if plan.trace is not None:
        requests, names, figures = pair_with_trace(plan, named)
        comment = f"arrivals: {figures['trace']}; contents: {figures['matched']}, {figures['rows_from']} rows"
        write_requests(folder.file(REQUESTS), requests, names, [comment])
        summary["paired"] = figures
    return _tell(folder, named, summary, plot)


def verify_table(path: str, out: str, *, overwrite: bool, plot: bool) -> str:
    """Summarise an existing table into a run folder and return what to tell the user.

    Raises:
      InputError: naming file, array and remedy of what is wrong with the table; or the folder is in use.
    """
    named = read_table(path)
    settings = {"launcher": "prepare_data --verify", "table": path, "table_sha256": digest(path)}
    folder = open_run_folder(out, settings, overwrite=overwrite)
    return _tell(folder, named, {"rows": named.num_rows, "experts": list(named.names)}, plot)


def _tell(folder: RunFolder, named: NamedTable, summary: dict[str, Any], plot: bool) -> str:
    """Write summaries and plots of a table, and return them as text."""
    rows = summarise_table(named)
    write_summary(folder, rows)
    folder.write_json("summary.json", {**summary, "table": [dataclasses.asdict(row) for row in rows]})
    if plot:
        held_out = named.split is not None and bool((named.split == TEST).any())
        write_table_plots(folder, split_rows(named, SPLITS[TEST]) if held_out else named)
    lines = [f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in summary.items() if value]
    return "\n".join([*lines, "", render_summary(rows)])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
