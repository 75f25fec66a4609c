"""Decode times by batch size in a fleet's file: three columns of lists, all empty for an affine expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qos_jax.errors import input_error
from qos_jax.serving import DecodeKnot, FleetProfile
from qos_jax.text_table import TextTable, cell_error

# Lists separated by spaces, of equal lengths: batch sizes, and what an iteration of each takes.
BATCHES, FIXED_S, PER_CONTEXT_TOKEN_S = KNOT_COLUMNS = (
    "decode_batches",  # requests decoding: 1, then rising
    "decode_batch_s",  # seconds but for the context, > 0, never falling
    "decode_batch_per_context_token_s",  # seconds / context token, >= 0
)
# What the lists stand in for.
KNOTS_REPLACE = ("decode_base_s", "decode_per_seq_s", "decode_per_context_token_s")

_Lists = tuple[list[float], list[float], list[float]]


def read_knots(table: TextTable, affine: dict[str, np.ndarray]) -> tuple[DecodeKnot, ...]:
    """Return the knots of a fleet's file, or none if no expert has any.

    An expert without lists, in a fleet where others have some, gets knots on its affine law; shorter lists
    are continued with their last slope. Neither changes what its iterations take.

    Args:
      table: the file, with all of ``KNOT_COLUMNS`` or none.
      affine: the columns ``KNOTS_REPLACE``, [N] each.

    Raises:
      InputError: naming row and column of a list that breaks a rule.
    """
    given = [name for name in KNOT_COLUMNS if name in table.columns]
    if not given:
        return ()
    for name in KNOT_COLUMNS:
        if name not in given:
            remedy = f"give all of {', '.join(KNOT_COLUMNS)}, or none"
            raise input_error("column is missing", file=table.file, field=name, remedy=remedy)
    lists = [_lists_of(table, row) for row in range(table.num_rows)]
    longest = max((len(one[0]) for one in lists), default=0)
    if longest == 0:
        return ()
    base, per_seq, per_token = (np.asarray(affine[name], np.float64) for name in KNOTS_REPLACE)
    filled = [
        _continued(one if one[0] else _on_affine(base[n], per_seq[n], per_token[n]), max(longest, 2))
        for n, one in enumerate(lists)
    ]
    columns = np.asarray(filled, np.float32)  # [N, 3, M]
    return tuple(DecodeKnot(*columns[:, :, m].T) for m in range(columns.shape[2]))


def knot_cells(profile: FleetProfile) -> list[list[str]]:
    """Return the columns ``KNOT_COLUMNS`` as text, [3][N]; empty without knots."""
    if not profile.decode_knots:
        return []
    leaves = (
        [np.asarray(getattr(knot, name)) for knot in profile.decode_knots]
        for name in ("batch", "fixed_s", "per_context_token_s")
    )
    return [[" ".join(map(str, row)) for row in np.stack(leaf, axis=1)] for leaf in leaves]


def check_knots(profile: FleetProfile, num_experts: int) -> None:
    """Raise InputError unless every rule of the lists holds for knots given as arrays."""
    for knot in profile.decode_knots:
        for name in ("batch", "fixed_s", "per_context_token_s"):
            shape = np.shape(getattr(knot, name))
            if shape != (num_experts,):
                fault = f"a knot's {name} has shape {shape} for {num_experts} experts"
                raise input_error(fault, field="decode_knots", remedy="give one value per expert")
    for n in range(num_experts if profile.decode_knots else 0):
        lists: Any = tuple(
            [float(np.asarray(getattr(knot, name))[n]) for knot in profile.decode_knots]
            for name in ("batch", "fixed_s", "per_context_token_s")
        )
        broken = _fault(lists)
        if broken is not None:
            raise input_error(f"expert {n}: {broken[1]}", field=broken[0], remedy=broken[2])


def _lists_of(table: TextTable, row: int) -> _Lists:
    cells = [table.columns[name][row].split() for name in KNOT_COLUMNS]
    lists: list[list[float]] = []
    for name, words in zip(KNOT_COLUMNS, cells, strict=True):
        try:
            lists.append([float(word) for word in words])
        except ValueError:
            remedy = "give numbers separated by spaces"
            raise cell_error(table, name, row, "is no list of numbers", remedy) from None
    found: _Lists = (lists[0], lists[1], lists[2])
    fault = _fault(found) if any(found) else None
    if fault is not None:
        raise input_error(fault[1], file=table.file, row=table.line[row], field=fault[0], remedy=fault[2])
    return found


def _fault(lists: _Lists) -> tuple[str, str, str] | None:
    """Return field, fault and remedy of the first rule that an expert's lists break."""
    batches, fixed_s, per_token_s = lists
    sizes = [len(one) for one in lists]
    if min(sizes) != max(sizes) or sizes[0] < 2:
        fault = f"lists of {sizes[0]}, {sizes[1]} and {sizes[2]} numbers"
        return BATCHES, fault, "give two or more numbers, equally many in each of the three columns"
    if not (np.isfinite(lists).all() and batches[0] == 1 and _rises(batches, strictly=True)):
        return BATCHES, "are no rising batch sizes from 1", "write such as 1 2 4 8"
    if not (min(fixed_s) > 0 and _rises(fixed_s, strictly=False)):
        return FIXED_S, "falls, or is not above 0", "give seconds > 0 that never fall with the batch"
    if min(per_token_s) < 0:
        return PER_CONTEXT_TOKEN_S, "is below 0", "give seconds per context token, >= 0"
    return None


def _rises(values: Sequence[float], *, strictly: bool) -> bool:
    steps = np.diff(values)
    return bool(np.all(steps > 0 if strictly else steps >= 0))


def _on_affine(base_s: float, per_seq_s: float, per_token_s: float) -> _Lists:
    return [1.0, 2.0], [base_s + per_seq_s, base_s + 2.0 * per_seq_s], [per_token_s, per_token_s]


def _continued(lists: _Lists, length: int) -> _Lists:
    """Return lists of ``length`` knots, those added with the slope of the last two; context stays."""
    batches, fixed_s, per_token_s = (list(one) for one in lists)
    slope = (fixed_s[-1] - fixed_s[-2]) / (batches[-1] - batches[-2])
    while len(batches) < length:
        batches.append(2.0 * batches[-1])
        fixed_s.append(fixed_s[-1] + slope * batches[-1] / 2.0)
        per_token_s.append(per_token_s[-1])
    return batches, fixed_s, per_token_s
