"""A request table with the names of its experts: take a fleet's experts, or the rows of a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import numpy.typing as npt

from qos_jax.errors import input_error, near_match
from qos_jax.workload.request_table import RequestTable

SPLITS = ("train", "validation", "test")  # by number in a table's file
ALL_ROWS = "all"


@dataclasses.dataclass(frozen=True, eq=False)
class NamedTable:
    """A request table with the names of its experts."""

    names: tuple[str, ...]  # N unique names, the order of the table's experts
    table: RequestTable  # M rows, NumPy leaves
    length_log_std: npt.NDArray[np.float32]  # [N], known std of log(true) - log(predicted) output tokens
    split: npt.NDArray[np.int32] | None  # [M] int32 index into ``SPLITS``, None if the rows are not split
    file: str  # path of its source, for errors

    @property
    def num_rows(self) -> int:
        """Number of requests M."""
        return self.table.num_rows


def table_for_experts(named: NamedTable, names: Sequence[str]) -> NamedTable:
    """Return the table of just these experts, in this order, such as those of a fleet.

    Raises:
      InputError: the table does not have one of them.
    """
    for name in names:
        if name not in named.names:
            fault = f"has no expert {name!r} of the fleet{near_match(name, named.names)}"
            remedy = f"use a fleet of some of {', '.join(named.names)}, or add its answers"
            raise input_error(fault, file=named.file, field="experts", remedy=remedy)
    at = np.array([named.names.index(name) for name in names])
    std = named.length_log_std[at]
    table = jax.tree.map(lambda leaf: leaf[:, at] if leaf.ndim == 2 else leaf, named.table)
    return dataclasses.replace(named, names=tuple(names), table=table, length_log_std=std)


def split_rows(named: NamedTable, split: str) -> NamedTable:
    """Return the rows of one of ``SPLITS``, or all; ``length_log_std`` stays that of the file.

    Raises:
      InputError: the table is not split, or has no such row.
    """
    if split == ALL_ROWS:
        return named
    if named.split is None:
        fault = f"is missing, so {split!r} names no rows"
        remedy = f"use {ALL_ROWS!r}, or write the table with a split"
        raise input_error(fault, file=named.file, field="split", remedy=remedy)
    kept = named.split == SPLITS.index(split)
    if not kept.any():
        present = [SPLITS[k] for k in np.unique(named.split)]
        raise input_error(
            f"has no row of {split!r}", file=named.file, field="split", remedy=f"use {' or '.join(present)}"
        )
    table = jax.tree.map(lambda leaf: leaf[kept], named.table)
    return dataclasses.replace(named, table=table, split=named.split[kept])
