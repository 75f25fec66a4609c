"""Read an answer log of any known format."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from qos_jax.errors import input_error
from qos_jax.options import check_options, option
from qos_jax.tables.answers.benchmarks import (
    add_llmrouterbench,
    add_routellm,
    add_routerbench,
    is_llmrouterbench,
    is_routellm,
    is_routerbench,
)
from qos_jax.tables.answers.generic import add_generic, is_generic
from qos_jax.tables.answers.log import AnswerLog, take_rows
from qos_jax.tables.answers.log_builder import LogBuilder
from qos_jax.tables.answers.lookahead import add_lookahead, is_lookahead
from qos_jax.tables.answers.public import BERTSCORE, add_mixinstruct, add_sprout, is_mixinstruct, is_sprout
from qos_jax.tables.answers.records import CSV, read_records, record_kind
from qos_jax.tables.answers.token_count import APPROXIMATION, token_counter

AUTO, GENERIC, LOOKAHEAD, SPROUT, MIXINSTRUCT = "auto", "generic", "lookahead6", "sprout", "mixinstruct"
ROUTERBENCH, LLMROUTERBENCH, ROUTELLM = "routerbench", "llmrouterbench", "routellm"
FORMATS = (AUTO, GENERIC, LOOKAHEAD, SPROUT, MIXINSTRUCT, ROUTERBENCH, LLMROUTERBENCH, ROUTELLM)
_COUNTED = (MIXINSTRUCT, ROUTERBENCH, ROUTELLM)  # formats without token counts

# How a format is known by its first record, asked in this order.
_IS = {
    MIXINSTRUCT: is_mixinstruct,
    ROUTERBENCH: is_routerbench,
    LLMROUTERBENCH: is_llmrouterbench,
    GENERIC: is_generic,
    SPROUT: is_sprout,
    ROUTELLM: is_routellm,
}


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Files of an answer log and how to read them.

    Raises:
      InputError: a value out of its range, naming the field, which is also the flag's name.
    """

    log: tuple[str, ...] = option(
        (),
        help="answer log, a file or a folder of lookahead6; with several, files of one format",
        repeatable=True,
    )
    format: str = option(AUTO, known=FORMATS)  # of the log; auto = by its first record
    score_range: tuple[float, float] = (0.0, 1.0)  # what the log's scores run from and to: rescaled to [0, 1]
    score_name: str = BERTSCORE  # which of MixInstruct's scores is the quality
    tokenizer: str | None = option(
        None,
        help="tokenizer.json that counts tokens where only texts are given; none = their number is estimated",
    )
    exclude_task: tuple[str, ...] = option(
        (), help="task to leave out, for example for its licence", repeatable=True
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.log or not all(self.log):
            raise input_error("names no file", field="log", remedy="give --log=FILE")
        if len(set(self.log)) < len(self.log):
            raise input_error("names a file twice", field="log", remedy="name each once")
        if not (np.isfinite(self.score_range).all() and self.score_range[0] < self.score_range[1]):
            fault = f"{self.score_range[0]:g} to {self.score_range[1]:g} is no range"
            raise input_error(fault, field="score_range", remedy="give two finite numbers, the lower first")


def read_answers(config: LogConfig) -> tuple[AnswerLog, dict[str, int]]:
    """Read a log and leave out the tasks that are excluded.

    Returns:
      The log, and by task how many rows were left out.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    kind = config.format if config.format != AUTO else _kind(config.log[0])
    builder = LogBuilder(config.log[0], config.score_range)
    count = token_counter(config.tokenizer)
    counted = kind in _COUNTED
    seen: dict[tuple[str, int], int] = {}
    for path in config.log:
        if kind == GENERIC:
            counted |= add_generic(builder, path, count)
        elif kind == LOOKAHEAD:
            add_lookahead(builder, path)
        elif kind == SPROUT:
            add_sprout(builder, path)
        elif kind == ROUTERBENCH:
            add_routerbench(builder, path, count)
        elif kind == LLMROUTERBENCH:
            add_llmrouterbench(builder, path, seen)
        elif kind == ROUTELLM:
            add_routellm(builder, path, count)
        else:
            add_mixinstruct(builder, path, count, config.score_name)
    builder.file = ", ".join(config.log)
    log = builder.build([APPROXIMATION] if counted and config.tokenizer is None else [])
    return _without_tasks(log, config.exclude_task)


def _kind(path: str) -> str:
    """Return the format of a file or folder by its content."""
    if os.path.isdir(path):
        if is_lookahead(path):
            return LOOKAHEAD
        remedy = "give a file, or a folder with scores_lengths.npz and prompts.jsonl.gz"
        raise input_error("the folder is not in the layout of lookahead6", file=path, remedy=remedy)
    _, record = next(read_records(path), (0, None))
    if record is None:
        raise input_error("holds no record", file=path, remedy="give at least one prompt with answers")
    for kind, fits in _IS.items():
        if fits(record):
            return kind
    if record_kind(path) == CSV:
        return GENERIC  # which says what is missing
    fault = f"the fields {', '.join(map(str, list(record)[:8]))} are of no known format"
    remedy = f"give --format, one of {', '.join(FORMATS[1:])}, or see --help for the generic one"
    raise input_error(fault, file=path, row=1, remedy=remedy)


def _without_tasks(log: AnswerLog, excluded: tuple[str, ...]) -> tuple[AnswerLog, dict[str, int]]:
    if not excluded:
        return log, {}
    check_tasks(log, excluded, "exclude_task")
    assert log.task is not None
    tasks = np.array(log.task)
    kept = ~np.isin(tasks, excluded)
    if not kept.any():
        raise input_error("leaves no row", field="exclude_task", remedy="exclude fewer tasks")
    return take_rows(log, kept), {task: int(np.sum(tasks == task)) for task in excluded}


def check_tasks(log: AnswerLog, names: tuple[str, ...], field: str) -> None:
    """Raise InputError unless every name is a task of the log."""
    known = sorted(set(log.task or ()))
    for name in names:
        if name not in known:
            fault = f"task {name!r} is not in the log" if known else "the log has no tasks"
            remedy = f"use one of {', '.join(known[:12])}" if known else "leave it out, or give tasks"
            raise input_error(fault, file=log.file, field=field, remedy=remedy)
