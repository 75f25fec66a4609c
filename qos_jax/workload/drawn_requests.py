"""Draw the requests of runs and the answers of each expert: from synthetic parameters or a table's rows."""

from __future__ import annotations

import dataclasses
import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from qos_jax.workload import (
    AddedError,
    LengthHistogram,
    NamedTable,
    RequestTable,
    SyntheticParams,
    Trace,
    measure_length_log_std,
    sample_lengths,
    sample_table,
    table_for_trace,
    with_prediction_error,
)
from qos_jax.workload.table_rows import effective_rows, even_rows, length_ratios, rows_near, take_rows

Source = SyntheticParams | NamedTable  # parameters to sample requests from, or real ones to draw

# A warning is logged where a table's rows differ more than this from the recorded requests they stand for:
MAX_LENGTH_RATIO = 1.5  # times longer or shorter
MIN_EFFECTIVE_SHARE = 0.1  # effective rows, of the table's or, if they are fewer, of those drawn


def draw_contents(
    keys: jax.Array, source: Source, lengths: LengthHistogram | Trace | None, num_requests: int
) -> RequestTable:
    """Draw the requests of S runs and their answers.

    From synthetic parameters, requests of these lengths are sampled (``sample_table``, ``table_for_trace``).
    From a table, rows are drawn with replacement: uniformly without ``lengths``, else each near the length
    of its request (``rows_near``). A row keeps its own lengths and qualities: only the arrivals are then
    those of a trace. A warning is logged where the table has few rows of such lengths, or none.

    Args:
      keys: [S] random keys, one per run.
      source: synthetic parameters of N experts, or a table of them.
      lengths: None = the source's own; a histogram to draw from; or a trace, whose requests they are.
      num_requests: T; that of the trace, if one is given.

    Returns:
      NumPy leaves [S, T] and [S, T, N].
    """
    if isinstance(source, SyntheticParams):
        if isinstance(lengths, Trace):
            prompt, output = jnp.asarray(lengths.prompt_tokens), jnp.asarray(lengths.output_tokens)
            return jax.device_get(_recorded_tables(keys, source, prompt, output))
        return jax.device_get(_sample_tables(keys, source, lengths, num_requests))
    row_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    if lengths is None:
        return take_rows(source.table, even_rows(row_keys, source.num_rows, num_requests))
    if isinstance(lengths, Trace):
        wanted = (lengths.prompt_tokens, lengths.output_tokens)
    else:
        # The keys are split as for figures, so that the lengths asked for are the same.
        length_keys, row_keys = jax.vmap(jax.random.split, out_axes=1)(row_keys)
        wanted = jax.device_get(_sample_lengths(length_keys, lengths, num_requests))
    rows = rows_near(row_keys, source.table, *wanted)
    drawn = take_rows(source.table, rows)
    _warn_if_unlike(source, rows, drawn, wanted)
    return drawn


def known_length_log_std(source: Source, drawn: RequestTable) -> np.ndarray:
    """Return the std of log length errors that routers are given: [N] float32.

    Args:
      source: a table has its own, which holds over all its rows.
      drawn: requests [S, T], over which it is measured for synthetic parameters.
    """
    if isinstance(source, NamedTable):
        return source.length_log_std
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), drawn)
    return np.asarray(measure_length_log_std(flat))


def as_replicas(drawn: RequestTable, xp: ModuleType = np) -> RequestTable:
    """Return the requests as answered by replicas of the first expert: equal, true and predicted, at all N.

    Args:
      drawn: leaves [..., N].
      xp: ``numpy`` or, within a program, ``jax.numpy``.
    """

    def first(leaf: Any) -> Any:
        return xp.broadcast_to(xp.asarray(leaf)[..., :1], np.shape(leaf))

    return dataclasses.replace(
        drawn,
        quality=first(drawn.quality),
        output_tokens=first(drawn.output_tokens),
        predicted_quality=first(drawn.predicted_quality),
        predicted_output_tokens=first(drawn.predicted_output_tokens),
    )


def shuffle_predictions(keys: jax.Array, drawn: RequestTable) -> RequestTable:
    """Return the requests of S runs with their predictions permuted within each run.

    Each run has a permutation of its own: one shared by all would bias the QoS by an amount that more seeds
    do not average out and that intervals over seeds do not count.

    Args:
      keys: [S] random keys, one per run.
      drawn: NumPy leaves [S, T] and [S, T, N].
    """
    return jax.device_get(_shuffle_predictions(keys, drawn))


def add_error(keys: jax.Array, drawn: RequestTable, error: AddedError) -> RequestTable:
    """Return the requests of S runs with worse predictions, see ``workload.with_prediction_error``.

    Args:
      keys: [S] random keys, one per run.
      drawn: NumPy leaves [S, T] and [S, T, N].
      error: numbers shared by all runs.
    """
    return jax.device_get(_add_error(keys, drawn, jax.tree.map(jnp.float32, error)))


def _warn_if_unlike(
    source: NamedTable, rows: np.ndarray, drawn: RequestTable, wanted: tuple[np.ndarray, np.ndarray]
) -> None:
    """Log how a table's rows differ from the recorded requests they stand for, where they do."""
    prompt_ratio, output_ratio = length_ratios(drawn, *wanted)
    effective = effective_rows(rows)
    near = all(1 / MAX_LENGTH_RATIO <= ratio <= MAX_LENGTH_RATIO for ratio in (prompt_ratio, output_ratio))
    if near and effective >= MIN_EFFECTIVE_SHARE * min(source.num_rows, rows.size):
        return
    logging.warning(
        "%s: its rows are %.2g times as long in prompt tokens and %.2g times in output tokens "
        "as the recorded requests they stand for (medians), and repeat as if there were only %.0f; "
        "intervals over seeds do not count that",
        *(source.file, prompt_ratio, output_ratio, effective),
    )


def draw_table(
    key: jax.Array, figures: SyntheticParams, histogram: LengthHistogram | None, num_requests: int
) -> RequestTable:
    """Sample the synthetic requests of one run as :func:`draw_contents` does; jittable.

    Args:
      key: random key of the run.
      figures: synthetic parameters of N experts.
      histogram: of lengths to draw from; None = those of the parameters.
      num_requests: T, static.
    """
    key = jax.random.fold_in(key, 0)
    if histogram is None:
        return sample_table(key, figures, num_requests)
    length_key, table_key = jax.random.split(key)
    prompt, output = sample_lengths(length_key, histogram, num_requests)
    return table_for_trace(table_key, figures, prompt, output)


# Compiled once for all cases of equal sizes.
@functools.partial(jax.jit, static_argnames="num_requests")
def _sample_tables(
    keys: jax.Array, figures: SyntheticParams, histogram: LengthHistogram | None, num_requests: int
) -> RequestTable:
    return jax.vmap(lambda key: draw_table(key, figures, histogram, num_requests))(keys)


@jax.jit
def _add_error(keys: jax.Array, drawn: RequestTable, error: AddedError) -> RequestTable:
    def one(key: jax.Array, table: RequestTable) -> RequestTable:
        return with_prediction_error(jax.random.fold_in(key, 2), table, error)

    return jax.vmap(one)(keys, drawn)


@jax.jit
def _shuffle_predictions(keys: jax.Array, drawn: RequestTable) -> RequestTable:
    def one(key: jax.Array, table: RequestTable) -> RequestTable:
        of = jax.random.permutation(jax.random.fold_in(key, 3), table.num_rows)
        return dataclasses.replace(
            table,
            predicted_quality=table.predicted_quality[of],
            predicted_output_tokens=table.predicted_output_tokens[of],
        )

    return jax.vmap(one)(keys, drawn)


@jax.jit
def _recorded_tables(
    keys: jax.Array, figures: SyntheticParams, prompt: jax.Array, output: jax.Array
) -> RequestTable:
    return jax.vmap(lambda key: table_for_trace(jax.random.fold_in(key, 0), figures, prompt, output))(keys)


@functools.partial(jax.jit, static_argnames="num_requests")
def _sample_lengths(
    keys: jax.Array, histogram: LengthHistogram, num_requests: int
) -> tuple[jax.Array, jax.Array]:
    return jax.vmap(lambda key: sample_lengths(key, histogram, num_requests))(keys)
