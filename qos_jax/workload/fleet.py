"""Fleets: the experts' names and profiles; read, written, validated, and some of their experts taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from qos_jax import text_table
from qos_jax.checks import Interval
from qos_jax.errors import InputError, input_error
from qos_jax.files import Path, write_csv
from qos_jax.serving import FleetProfile, ServingConfig, with_context_limit
from qos_jax.text_table import MAX_INT32, TOKENS, TextTable
from qos_jax.workload.decode_knots import KNOT_COLUMNS, KNOTS_REPLACE, check_knots, knot_cells, read_knots

_NUMBER = Interval(0, 2.0**100)
# Each number of an expert, in the order of a file's columns, and what it may be; units are in the names.
ALLOWED = {
    "max_running": TOKENS,  # requests batched at once
    "max_waiting": TOKENS,  # requests queued
    "max_batched_tokens": TOKENS,  # tokens of an iteration
    "kv_capacity_tokens": Interval(2, MAX_INT32, whole=True),  # holds a prompt and an output token at least
    "prefill_base_s": _NUMBER,
    "prefill_per_token_s": _NUMBER,
    "prefill_per_token_sq_s": _NUMBER,
    "decode_base_s": Interval(0, 2.0**100, above=True),
    "decode_per_seq_s": _NUMBER,
    "decode_per_context_token_s": _NUMBER,
    "network_rtt_s": _NUMBER,
    "busy_power_w": _NUMBER,
    "idle_power_w": _NUMBER,
}
COLUMNS = ("expert", *ALLOWED)
CONTEXT_LIMIT = "context_limit_tokens"  # an optional column; a cell may be empty: no limit there
OPTIONAL = {CONTEXT_LIMIT: ALLOWED["kv_capacity_tokens"]}
NO_LIMIT = MAX_INT32  # what an empty cell stands for
INTEGER_COLUMNS = tuple(name for name, allowed in (ALLOWED | OPTIONAL).items() if allowed.whole)
FLOAT_COLUMNS = tuple(name for name, allowed in ALLOWED.items() if not allowed.whole)
DROP_NAME = "drop"  # the action of refusing a request; no expert may be called so


@dataclasses.dataclass(frozen=True, eq=False)
class Fleet:
    """N experts."""

    names: tuple[str, ...]  # N unique names, none empty or ``"drop"``
    profile: FleetProfile  # limits, iteration times and power, NumPy leaves [N], int32 or float32

    @property
    def num_experts(self) -> int:
        """Number of experts N."""
        return len(self.names)

    @property
    def running_slots(self) -> int:
        """Size of the running arrays: the largest ``max_running``."""
        return int(np.max(self.profile.max_running))

    @property
    def waiting_slots(self) -> int:
        """Size of the waiting arrays: the largest ``max_waiting``."""
        return int(np.max(self.profile.max_waiting))

    def serving(self, scheduler: str, prefix_entries: int = 0) -> ServingConfig:
        """Return the static sizes of the fleet under a scheduler, one of ``SCHEDULERS``."""
        slots = (self.running_slots, self.waiting_slots)
        return ServingConfig(self.num_experts, *slots, scheduler, prefix_entries)

    def under(self, scheduler: str) -> Fleet:
        """Return the fleet with the context limits that hold under a scheduler."""
        return dataclasses.replace(self, profile=with_context_limit(scheduler, self.profile, np))


def read_fleet(path: Path) -> Fleet:
    """Read a fleet from a CSV file with the columns ``COLUMNS``, one row per expert.

    The columns ``KNOT_COLUMNS`` may be there too: decode times by batch size; and ``CONTEXT_LIMIT``.

    Lines that start with ``#`` are comments; units are in the column names (s, tokens, w).

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    table = text_table.read_small(path, COLUMNS, optional=(CONTEXT_LIMIT, *KNOT_COLUMNS))
    leaves: dict[str, Any] = {
        field: text_table.leaf(table, field, allowed) for field, allowed in ALLOWED.items()
    }
    knots = read_knots(table, {name: leaves[name] for name in KNOTS_REPLACE})
    profile = FleetProfile(**leaves, decode_knots=knots, context_limit_tokens=_read_limits(table))
    fleet = Fleet(tuple(table.columns["expert"]), profile)
    _check_rows(fleet, table)
    return fleet


def write_fleet(path: Path, fleet: Fleet, comments: Sequence[str] = ()) -> None:
    """Write ``fleet`` as CSV so that :func:`read_fleet` gives back the very same numbers.

    Raises:
      InputError: the fleet is not valid.
    """
    validate_fleet(fleet)
    cells = {field: [str(value) for value in np.asarray(getattr(fleet.profile, field))] for field in ALLOWED}
    cells |= optional_cells(fleet.profile)
    write_csv(path, ("expert", *cells), zip(fleet.names, *cells.values(), strict=True), comments)


def optional_cells(profile: FleetProfile) -> dict[str, list[str]]:
    """Return the columns that a file of this profile has besides ``COLUMNS``, as text [N] each."""
    cells = {}
    if profile.context_limit_tokens is not None:
        limits = np.asarray(profile.context_limit_tokens).tolist()
        cells[CONTEXT_LIMIT] = ["" if limit == NO_LIMIT else str(limit) for limit in limits]
    return cells | dict(zip(KNOT_COLUMNS, knot_cells(profile), strict=False))


def validate_fleet(fleet: Fleet) -> None:
    """Raise InputError unless every rule of :class:`Fleet`, ``ALLOWED`` and ``OPTIONAL`` holds."""
    present = {
        name: allowed for name, allowed in OPTIONAL.items() if getattr(fleet.profile, name) is not None
    }
    for field, allowed in (ALLOWED | present).items():
        values = np.asarray(getattr(fleet.profile, field))
        if values.shape != (fleet.num_experts,):
            fault = f"has shape {values.shape} for {fleet.num_experts} experts"
            raise input_error(fault, field=field, remedy="give one value per expert")
        for value in values.tolist():
            if value not in allowed:
                raise input_error(f"{value} is out of range", field=field, remedy=f"give {allowed}")
    check_knots(fleet.profile, fleet.num_experts)
    _check_rows(fleet)


def take(fleet: Fleet, indices: Sequence[int]) -> Fleet:
    """Return the fleet of the experts at ``indices``, in that order; repeats get ``#2``, ``#3``, ... names.

    Raises:
      InputError: no index, or one outside [0, N).
    """
    for index in indices:
        if not 0 <= index < fleet.num_experts:
            raise input_error(
                f"expert index {index} is outside 0..{fleet.num_experts - 1}", remedy="choose another"
            )
    names: list[str] = []
    for index in indices:
        base, count = fleet.names[index], 2
        name = base
        while name in names:
            name, count = f"{base}#{count}", count + 1
        names.append(name)
    chosen = np.asarray(indices, dtype=np.int64)
    taken = Fleet(tuple(names), jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], fleet.profile))
    validate_fleet(taken)
    return taken


def _read_limits(table: TextTable) -> Any:
    """Return the context limits of a fleet's file, [N] int32; None if no expert has one."""
    cells = table.columns.get(CONTEXT_LIMIT, ())
    if not any(cells):
        return None
    filled = {CONTEXT_LIMIT: [cell or str(NO_LIMIT) for cell in cells]}
    return text_table.integers(
        dataclasses.replace(table, columns=filled), CONTEXT_LIMIT, OPTIONAL[CONTEXT_LIMIT]
    )


def _check_rows(fleet: Fleet, table: TextTable | None = None) -> None:
    """Check names and the rules that join columns; with a table, errors name its file and row."""
    file = None if table is None else table.file
    if not fleet.names:
        raise input_error("has no expert", file=file, remedy="give at least one row")
    p = fleet.profile

    def error(i: int, field: str, fault: str, remedy: str) -> InputError:
        row = None if table is None else table.line[i]
        return input_error(fault, file=file, row=row, field=field, remedy=remedy)

    for i, name in enumerate(fleet.names):
        if not name:
            raise error(i, "expert", "is empty", "name every expert")
        if name.casefold() == DROP_NAME:
            raise error(i, "expert", f"{name!r} is reserved for refusing a request", "choose another name")
        if name in fleet.names[:i]:
            raise error(i, "expert", f"{name!r} appears twice", "give every expert its own name")
        if p.max_batched_tokens[i] < p.max_running[i]:
            fault = f"{p.max_batched_tokens[i]} is below max_running {p.max_running[i]}"
            raise error(i, "max_batched_tokens", fault, "give at least one token per running request")
        if p.busy_power_w[i] < p.idle_power_w[i]:
            fault = f"{p.busy_power_w[i]} is below idle_power_w {p.idle_power_w[i]}"
            raise error(i, "busy_power_w", fault, "give busy >= idle")
