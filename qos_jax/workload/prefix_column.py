"""Nested groups of prefixes as one column of a request file: ``GROUP:END GROUP:END``, from the root."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qos_jax import text_table
from qos_jax.serving.state import PrefixLevel
from qos_jax.text_table import MAX_INT32, TextTable

PATH_COLUMN = "prefix_path"
_REMEDY = (
    "give GROUP:END for each group from the root, ends rising and the last perhaps empty, such as 3:512 17:"
)


def path_cells(path: Sequence[PrefixLevel]) -> list[str]:
    """Return the cell of each request of a table, leaves [T]; the reverse of :func:`read_paths`."""
    group = np.stack([np.asarray(level.group) for level in path], axis=-1).tolist()
    end = np.stack([np.asarray(level.end_tokens) for level in path], axis=-1).tolist()
    return [
        " ".join(f"{g}:{e if e < MAX_INT32 else ''}" for g, e in zip(groups, ends, strict=True) if g >= 0)
        for groups, ends in zip(group, end, strict=True)
    ]


def read_paths(table: TextTable, group: npt.NDArray[np.int32]) -> npt.NDArray[np.object_]:
    """Return of each row a list of (group, end in tokens), [R]; an end left out is that of any prompt.

    Args:
      table: where they are read from, with a column ``prefix_path``.
      group: [R], the last group of each row, -1 = none.

    Raises:
      InputError: a cell of another form, ends that do not rise, or another last group.
    """
    found = np.empty(len(group), object)
    for row, (cell, last) in enumerate(zip(table.columns[PATH_COLUMN], group.tolist(), strict=True)):
        parts = [part.partition(":") for part in cell.split()]
        whole = all(g.isdecimal() and colon and (e.isdecimal() or not e) for g, colon, e in parts)
        if not whole or any(not e for _, _, e in parts[:-1]):
            raise text_table.cell_error(table, PATH_COLUMN, row, "is no list of groups", _REMEDY)
        levels = [(int(g), int(e) if e else MAX_INT32) for g, _, e in parts]
        ends = [0, *(end for _, end in levels)]
        if np.any(np.diff(ends) <= 0) or max([0, *(max(level) for level in levels)]) > MAX_INT32:
            raise text_table.cell_error(table, PATH_COLUMN, row, "has ends that do not rise", _REMEDY)
        if (levels[-1][0] if levels else -1) != last:
            fault = f"does not end with its prefix_group {last}" if last >= 0 else "is of no prefix_group"
            raise text_table.cell_error(table, PATH_COLUMN, row, fault, "give the last group in both columns")
        found[row] = levels
    return found


def as_levels(paths: npt.NDArray[np.object_]) -> tuple[PrefixLevel, ...]:
    """Return the levels of a table's requests, leaves [T] int32, as many as the longest path has."""
    most = max((len(path) for path in paths), default=0)
    # [T, L, 2]; behind the end of a path there are no further groups.
    padded = np.array([[*path, *[(-1, 0)] * (most - len(path))] for path in paths], np.int32)
    padded = padded.reshape(len(paths), most, 2)
    levels: list[Any] = [(padded[:, level, 0], padded[:, level, 1]) for level in range(most)]
    return tuple(PrefixLevel(*level) for level in levels)
