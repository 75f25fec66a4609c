"""Draw the rows of a request table: uniformly, or near the lengths of recorded requests."""

from __future__ import annotations

import jax
import numpy as np
import numpy.typing as npt

from qos_jax.workload.request_table import RequestTable

NEIGHBOURS = 16  # rows that a recorded request is drawn from


def even_rows(keys: jax.Array, num_rows: int, num_requests: int) -> npt.NDArray[np.int32]:
    """Return rows drawn uniformly with replacement, a run per key [S]: [S, T] int32 below ``num_rows``."""
    return np.asarray(jax.vmap(lambda key: jax.random.randint(key, (num_requests,), 0, num_rows))(keys))


def rows_near(
    keys: jax.Array, table: RequestTable, prompt_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike
) -> npt.NDArray[np.int32]:
    """Return for each request of each run one of the ``NEIGHBOURS`` rows nearest in length, drawn uniformly.

    Near is by Euclidean distance in (log prompt tokens, mean over experts of log output tokens): the recorded
    output stands for the experts' geometric mean, as in ``table_for_trace``. The rows keep their OWN lengths,
    so they are as near to the recorded ones as the table has any; see :func:`length_ratios`.

    Args:
      keys: [S] random keys, one per run.
      table: M rows; where M < ``NEIGHBOURS``, all of them are drawn from.
      prompt_tokens: [S, T] or [T], the same for every run; tokens, >= 1.
      output_tokens: same shape, tokens, >= 1.

    Returns:
      [S, T] int32 rows.
    """
    wanted = _logs(prompt_tokens, output_tokens)
    from scipy import spatial  # slow to import, and needed for tables alone

    count = min(NEIGHBOURS, table.num_rows)
    _, near = spatial.KDTree(_log_lengths(table)).query(wanted, k=list(range(1, count + 1)))
    near = np.broadcast_to(near, (*keys.shape, *near.shape[-2:]))  # [S, T, count]
    pick = even_rows(keys, count, near.shape[1])
    return np.take_along_axis(near, pick[..., None], axis=2)[..., 0].astype(np.int32)


def take_rows(table: RequestTable, rows: npt.NDArray[np.int32]) -> RequestTable:
    """Return the given rows [...] of a table of NumPy leaves: leaves [...] and [..., N]."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], table)


def effective_rows(rows: npt.NDArray[np.int32]) -> float:
    """Return the effective number of distinct rows among these [...]: 1 / sum of squared shares."""
    counts = np.bincount(rows.reshape(-1)).astype(np.float64)
    return float(np.square(counts.sum()) / np.square(counts).sum())


def length_ratios(
    drawn: RequestTable, prompt_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike
) -> tuple[float, float]:
    """Return the median over requests of drawn over recorded prompt tokens, and of output tokens.

    Args:
      drawn: leaves [S, T] and [S, T, N].
      prompt_tokens: recorded ones, [S, T] or [T].
      output_tokens: same shape.
    """
    wanted = _logs(prompt_tokens, output_tokens)
    apart = _log_lengths(drawn) - np.broadcast_to(wanted, (*np.shape(drawn.prompt_tokens), 2))
    prompt, output = np.exp(np.median(apart.reshape(-1, 2), axis=0))
    return float(prompt), float(output)


def _logs(prompt_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the logs of both: [..., 2]."""
    return np.stack([np.log(np.asarray(tokens, np.float64)) for tokens in (prompt_tokens, output_tokens)], -1)


def _log_lengths(table: RequestTable) -> npt.NDArray[np.float64]:
    """Return the log of prompt tokens and the mean log of output tokens: [..., 2]."""
    prompt = np.log(np.asarray(table.prompt_tokens, np.float64))
    return np.stack([prompt, np.log(np.asarray(table.output_tokens, np.float64)).mean(axis=-1)], -1)
