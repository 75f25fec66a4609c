"""Replace the predictions of a request table by better or worse ones, to measure what they are worth."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from qos_jax.errors import input_error
from qos_jax.workload.named_table import SPLITS, NamedTable
from qos_jax.workload.request_table import RequestTable, measure_length_log_std

FITTED, MEAN, SHUFFLED, TRUE = "fitted", "mean", "shuffled", "true"
PREDICTIONS = (FITTED, MEAN, SHUFFLED, TRUE)


def with_predictions(named: NamedTable, predictions: str, seed: int = 0) -> NamedTable:
    """Return a table with its truths unchanged and its predictions of another kind.

    - ``fitted``: those of the table.
    - ``mean``: of each expert its mean quality and its median output tokens over train rows: no text is read.
    - ``shuffled``: those of another row of the same split, the whole row's together: right on average, and
      wrong about this request. One shuffle for all runs is biased: comparisons shuffle in every run.
    - ``true``: the true quality and output tokens.

    ``length_log_std``, the length error that a router is given, is that of train rows: the table's own, or
    measured anew for ``mean`` and ``shuffled``; 0 for ``true``.

    Args:
      named: M rows, all of the file, so that train is among them.
      predictions: one of ``PREDICTIONS``.
      seed: of the shuffle.

    Raises:
      InputError: ``mean`` or ``shuffled`` of a table without train rows.
    """
    if predictions == FITTED:
        return named
    table = named.table
    if predictions == TRUE:
        known = _predicted(table, table.quality, table.output_tokens)
        return dataclasses.replace(named, table=known, length_log_std=np.zeros_like(named.length_log_std))
    if named.split is None or not (named.split == SPLITS.index("train")).any():
        fault = f"has no train rows, which {predictions!r} predictions are made from"
        remedy = "use a table with a split, or other predictions"
        raise input_error(fault, file=named.file, field="split", remedy=remedy)
    train = named.split == SPLITS.index("train")
    if predictions == MEAN:
        shape = np.shape(table.quality)
        quality = np.broadcast_to(np.mean(table.quality[train], axis=0, dtype=np.float64), shape)
        tokens = np.broadcast_to(np.median(table.output_tokens[train], axis=0), shape)
        known = _predicted(table, quality, tokens)
    else:
        row = np.arange(named.num_rows)
        generator = np.random.default_rng(seed)
        for split in range(len(SPLITS)):
            at = np.flatnonzero(named.split == split)
            row[at] = generator.permutation(at)
        known = _predicted(table, table.predicted_quality[row], table.predicted_output_tokens[row])
    fit_on = jax.tree.map(lambda leaf: leaf[train], known)
    length_log_std = np.asarray(measure_length_log_std(fit_on))
    return dataclasses.replace(named, table=known, length_log_std=length_log_std)


def _predicted(table: RequestTable, quality: npt.ArrayLike, output_tokens: npt.ArrayLike) -> RequestTable:
    known: dict[str, Any] = {
        "predicted_quality": np.asarray(quality, np.float32),
        "predicted_output_tokens": np.asarray(output_tokens, np.float32),
    }
    return dataclasses.replace(table, **known)
