"""Summarise a request table by split and expert: what it holds, and how good its predictions are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from qos_jax.files import write_csv
from qos_jax.runs.folder import RunFolder
from qos_jax.tables.scores import area_under_curve, explained_share
from qos_jax.workload import NamedTable
from qos_jax.workload.named_table import ALL_ROWS, SPLITS

EVERY_EXPERT = "all"
CORRECT = 0.5  # quality from which an answer counts as correct, for the AUC


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One expert, or all of them together, on the rows of one split; NaN = undefined."""

    split: str
    expert: str
    rows: int
    quality: float  # mean
    predicted_quality: float  # mean
    quality_auc: float  # of telling answers of quality >= CORRECT from the others
    quality_r2: float  # explained share of the variance
    output_tokens: float  # median
    predicted_output_tokens: float  # median
    log_length_r2: float  # explained share of the variance of log output tokens
    length_error_tokens: float  # median of |true - predicted|
    length_log_std: float  # std of log(true) - log(predicted) output tokens, over these rows
    told_length_log_std: float  # the one that routers are given


def summarise_table(named: NamedTable) -> list[TableRow]:
    """Return a row for each split that has rows and each expert, after one for all its experts.

    Quality's AUC and both R2 of all experts are the means of theirs, where defined, so that differences
    between experts, which predicting each one's mean explains, do not count.
    """
    parts = [(ALL_ROWS, np.ones(named.num_rows, bool))]
    if named.split is not None:
        parts = [(name, named.split == k) for k, name in enumerate(SPLITS) if (named.split == k).any()]
    found = []
    for split, rows in parts:
        experts = [_expert_row(named, split, rows, n) for n in range(len(named.names))]
        found += [_all_experts_row(named, split, rows, experts), *experts]
    return found


def _expert_row(named: NamedTable, split: str, rows: npt.NDArray[np.bool_], n: int) -> TableRow:
    table = named.table
    quality, guess, tokens, predicted = (
        np.asarray(getattr(table, field), np.float64)[rows, n]
        for field in ("quality", "predicted_quality", "output_tokens", "predicted_output_tokens")
    )
    return TableRow(
        split=split,
        expert=named.names[n],
        rows=int(rows.sum()),
        quality=float(quality.mean()),
        predicted_quality=float(guess.mean()),
        quality_auc=area_under_curve(quality >= CORRECT, guess),
        quality_r2=explained_share(quality, guess),
        output_tokens=float(np.median(tokens)),
        predicted_output_tokens=float(np.median(predicted)),
        log_length_r2=explained_share(np.log(tokens), np.log(predicted)),
        length_error_tokens=float(np.median(np.abs(tokens - predicted))),
        length_log_std=float(np.std(np.log(tokens) - np.log(predicted))),
        told_length_log_std=float(named.length_log_std[n]),
    )


def _all_experts_row(
    named: NamedTable, split: str, rows: npt.NDArray[np.bool_], experts: Sequence[TableRow]
) -> TableRow:
    tokens, predicted = named.table.output_tokens[rows], named.table.predicted_output_tokens[rows]
    figures = {
        field.name: _mean_defined([getattr(row, field.name) for row in experts])
        for field in dataclasses.fields(TableRow)
        if field.name not in ("split", "expert", "rows")
    }
    figures |= {
        "output_tokens": float(np.median(tokens)),
        "predicted_output_tokens": float(np.median(predicted)),
        "length_error_tokens": float(np.median(np.abs(tokens - predicted))),
    }
    return TableRow(split=split, expert=EVERY_EXPERT, rows=int(rows.sum()), **figures)


def _mean_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def write_summary(folder: RunFolder, rows: Sequence[TableRow]) -> None:
    """Write the rows as ``summary.csv``, whole or not at all; undefined cells are empty."""
    cells = (
        ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in dataclasses.astuple(row)]
        for row in rows
    )
    write_csv(folder.file("summary.csv"), [field.name for field in dataclasses.fields(TableRow)], cells)


def render_summary(rows: Sequence[TableRow]) -> str:
    """Return the rows as aligned text."""
    heading = ["split", "expert", "rows", "quality", "predicted", "AUC", "R2", "tokens", "predicted"]
    heading += ["log R2", "error", "log std", "told"]
    digits = (3, 3, 3, 3, 0, 0, 3, 0, 3, 3)
    lines = []
    for row in rows:
        split, expert, count, *numbers = dataclasses.astuple(row)
        shown = zip(numbers, digits, strict=True)
        cells = ["-" if math.isnan(x) else f"{x:z.{places}f}" for x, places in shown]
        lines.append([split, expert, count, *cells])
    align = ["left", "left", *["right"] * (len(heading) - 2)]
    return tabulate(lines, headers=heading, tablefmt="simple", colalign=align, disable_numparse=True)
