"""Complete the rows of an answer log, dropped or filled where answers are missing, and split them."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from qos_jax.checks import SEED, check_range
from qos_jax.errors import input_error
from qos_jax.predictors.answers import groups_of
from qos_jax.tables.answers.log import MISSING_TOKENS, AnswerLog, take_rows
from qos_jax.workload.named_table import SPLITS

DROP, FILL = "drop", "fill"
MISSING = (DROP, FILL)

TRAIN, VALIDATION, TEST = range(len(SPLITS))


@dataclasses.dataclass(frozen=True)
class Completed:
    """A log whose every answer has a score and a length."""

    log: AnswerLog  # M rows, nothing missing
    given: AnswerLog  # the same rows as they were, before scores and lengths were filled
    dropped_rows: int  # rows left out because an answer was missing


def complete(log: AnswerLog, missing: str) -> Completed:
    """Return a log without missing answers: rows that miss one dropped, or answers filled.

    ``fill`` assumes that an answer differs from the row's other answers as this expert's differ from
    theirs on average (a two-way additive model): quality = mean of the row's own + this expert's mean
    difference, clipped to [0, 1]; likewise for log tokens. Filled answers are for simulation; predictors
    are fitted without them.

    Raises:
      InputError: no row is complete; with ``fill``, a row has no score or no length at all.
    """
    absent = log.missing
    if missing == DROP:
        kept = ~absent.any(axis=1)
        if not kept.any():
            raise input_error(
                "every row misses an answer", file=log.file, field="missing", remedy="give --missing=fill"
            )
        whole = take_rows(log, kept)
        return Completed(whole, whole, int(np.sum(~kept)))
    tokens = np.where(log.output_tokens == MISSING_TOKENS, np.nan, log.output_tokens)
    for what, values in (("score", log.quality), ("length", tokens)):
        empty = np.isnan(values).all(axis=1)
        if empty.any():
            row = int(np.argmax(empty))
            fault = f"no answer has a {what}, so there is nothing to fill from"
            remedy = "remove the row, or give --missing=drop"
            raise input_error(fault, file=log.files[row], row=int(log.line[row]), remedy=remedy)
    quality = np.clip(_filled(log.quality.astype(np.float64)), 0.0, 1.0)
    length = np.maximum(np.round(np.exp(_filled(np.log(tokens)))), 1.0)
    return Completed(
        dataclasses.replace(
            log,
            quality=np.where(np.isnan(log.quality), quality, log.quality).astype(np.float32),
            output_tokens=np.where(np.isnan(tokens), length, tokens).astype(np.int32),
        ),
        log,
        0,
    )


def _filled(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return row effect + column effect where values [M, N] are NaN; no row is all NaN."""
    seen = ~np.isnan(values)
    present = np.where(seen, values, 0.0)
    count_row, count_column = seen.sum(axis=1), seen.sum(axis=0)
    column = np.zeros(values.shape[1])
    # Alternating means: the least-squares fit of the two-way model on the values that are there.
    for _ in range(50):
        row = (present - np.where(seen, column, 0.0)).sum(axis=1) / count_row
        column = (present - np.where(seen, row[:, None], 0.0)).sum(axis=0) / count_column
    return np.where(seen, values, row[:, None] + column)


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How rows are split.

    Raises:
      InputError: a value out of its range, naming the field, which is also the flag's name.
    """

    split_shares: tuple[float, ...] = (0.6, 0.1, 0.3)  # of the prompts in train, validation and test
    split_seed: int = 0  # of the split
    held_out_task: str | None = None  # task that is the test split, whole and alone

    def __post_init__(self) -> None:
        shares = np.asarray(self.split_shares, np.float64)
        if shares.shape != (len(SPLITS),) or not (np.isfinite(shares) & (shares >= 0)).all():
            fault = f"{', '.join(f'{share:g}' for share in self.split_shares)} are no shares"
            remedy = f"give {len(SPLITS)} numbers >= 0, of {', '.join(SPLITS)}"
            raise input_error(fault, field="split_shares", remedy=remedy)
        if shares[TRAIN] <= 0 or shares[TEST] <= 0:
            raise input_error("leave train or test empty", field="split_shares", remedy="give both a share")
        check_range(self, ["split_seed"], SEED)


def split_by_prompt(log: AnswerLog, config: SplitConfig) -> npt.NDArray[np.int32]:
    """Return which of ``SPLITS`` each row is in, [M] int32; rows with the same prompt are in the same one.

    Distinct prompts (case and white space aside) are drawn in random order and dealt to the splits by their
    shares. With a held-out task, test is that task; the other rows, of which none has a prompt of it, go to
    train and validation, the share of test to train.

    Raises:
      InputError: train or test would be empty.
    """
    group = groups_of(log.prompts)
    distinct = int(group.max()) + 1
    held_out = np.zeros(distinct, bool)
    shares = np.asarray(config.split_shares, np.float64)
    if config.held_out_task is not None:
        held_out[group[np.array(log.task) == config.held_out_task]] = True
        shares = np.array([shares[TRAIN] + shares[TEST], shares[VALIDATION], 0.0])
    others = np.flatnonzero(~held_out)
    order = np.random.default_rng(config.split_seed).permutation(others)
    ends = np.round(np.cumsum(shares / shares.sum()) * len(order)).astype(int)
    of_group = np.full(distinct, TEST, np.int32)
    for split, part in enumerate(np.split(order, ends[:-1])):
        of_group[part] = split
    split = of_group[group]
    for needed in (TRAIN, TEST):
        if not (split == needed).any():
            fault = f"no row of {len(split)} is left for {SPLITS[needed]}"
            remedy = "give more prompts, or another share or task"
            raise input_error(fault, file=log.file, field="split_shares", remedy=remedy)
    return split
