"""Fleets: names and profiles of the experts, read from and written to CSV, validated, subset."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from qos_jax.errors import InputError, input_error
from qos_jax.files import atomic_write
from qos_jax.serving import FleetProfile, ServingConfig
from qos_jax.workload import text_table
from qos_jax.workload.text_table import Path

INTEGER_COLUMNS = ("max_running", "max_waiting", "max_batched_tokens", "kv_capacity_tokens")
FLOAT_COLUMNS = (
    "prefill_base_s",
    "prefill_per_token_s",
    "prefill_per_token_sq_s",
    "decode_base_s",
    "decode_per_seq_s",
    "decode_per_context_token_s",
    "network_rtt_s",
    "busy_power_w",
    "idle_power_w",
)
COLUMNS = ("expert", *INTEGER_COLUMNS, *FLOAT_COLUMNS)
DROP_NAME = "drop"  # the action of refusing a request; no expert may be called so
MIN_KV_CAPACITY_TOKENS = 2  # one prompt token and one output token


@dataclasses.dataclass(frozen=True, eq=False)
class Fleet:
    """N experts.

    Attributes:
      names: N unique names, none empty or ``"drop"``.
      profile: limits, iteration times and power, NumPy leaves [N], int32 or float32.
    """

    names: tuple[str, ...]
    profile: FleetProfile

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

    def serving(self, scheduler: str) -> ServingConfig:
        """Return the static sizes of the fleet under a scheduler, one of ``SCHEDULERS``."""
        return ServingConfig(self.num_experts, self.running_slots, self.waiting_slots, scheduler)


def read_fleet(path: Path) -> Fleet:
    """Read a fleet from a CSV file with exactly the columns ``COLUMNS``, one row per expert.

    Lines that start with ``#`` are comments; units are in the column names (s, tokens, w).

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    parts = list(text_table.read_chunks(path))
    text_table.check_columns(parts[0], COLUMNS)
    names = [name for part in parts for name in part.columns["expert"]]
    lines = [line for part in parts for line in part.line]
    leaves: dict[str, Any] = {}
    for field in INTEGER_COLUMNS:
        minimum = 1 if field.startswith("max_") else MIN_KV_CAPACITY_TOKENS
        leaves[field] = np.concatenate([text_table.integers(p, field, minimum=minimum) for p in parts])
    for field in FLOAT_COLUMNS:
        above = 0.0 if field == "decode_base_s" else -np.inf
        columns = [text_table.floats(p, field, minimum=0.0, maximum=1e30, above=above) for p in parts]
        leaves[field] = np.concatenate(columns).astype(np.float32)
    fleet = Fleet(tuple(names), FleetProfile(**leaves))
    _check(fleet, file=str(path), lines=lines)
    return fleet


def write_fleet(path: Path, fleet: Fleet, comments: Sequence[str] = ()) -> None:
    """Write ``fleet`` as CSV so that :func:`read_fleet` gives back the very same numbers.

    Args:
      path: the file to write, whole or not at all.
      fleet: a valid fleet.
      comments: lines to put first, each behind ``# ``.

    Raises:
      InputError: the fleet is not valid.
    """
    validate_fleet(fleet)
    with atomic_write(path) as stream:
        stream.writelines(f"# {comment}\n" for comment in comments)
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for i, name in enumerate(fleet.names):
            numbers = [str(np.asarray(getattr(fleet.profile, field))[i]) for field in COLUMNS[1:]]
            writer.writerow([name, *numbers])


def validate_fleet(fleet: Fleet) -> None:
    """Raise InputError unless every rule of :class:`Fleet` and of the columns holds."""
    for field in COLUMNS[1:]:
        values = np.asarray(getattr(fleet.profile, field))
        if values.shape != (fleet.num_experts,):
            raise input_error(
                f"has shape {values.shape} for {fleet.num_experts} experts",
                field=field,
                remedy="give one value per expert",
            )
        if not np.all(np.isfinite(values)) or np.any(values < 0):
            raise input_error("is negative or not finite", field=field, remedy="give finite values >= 0")
    _check(fleet, file=None, lines=None)


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
    leaves: dict[str, Any] = {
        field: np.asarray(getattr(fleet.profile, field))[chosen] for field in COLUMNS[1:]
    }
    taken = Fleet(tuple(names), FleetProfile(**leaves))
    validate_fleet(taken)
    return taken


def _check(fleet: Fleet, *, file: str | None, lines: list[int] | None) -> None:
    """Check names and the rules that join columns."""
    if not fleet.names:
        raise input_error("has no expert", file=file, remedy="give at least one row")
    p = fleet.profile

    def error(i: int, field: str, fault: str, remedy: str) -> InputError:
        return input_error(fault, file=file, row=lines[i] if lines else None, field=field, remedy=remedy)

    for i, name in enumerate(fleet.names):
        if not name:
            raise error(i, "expert", "is empty", "name every expert")
        if name.casefold() == DROP_NAME:
            raise error(i, "expert", f"{name!r} is reserved for refusing a request", "choose another name")
        if name in fleet.names[:i]:
            raise error(i, "expert", f"{name!r} appears twice", "give every expert its own name")
        for field in ("max_running", "max_waiting"):
            if getattr(p, field)[i] < 1:
                raise error(i, field, f"{getattr(p, field)[i]} is below 1", "give at least 1")
        if p.max_batched_tokens[i] < p.max_running[i]:
            raise error(
                i,
                "max_batched_tokens",
                f"{p.max_batched_tokens[i]} is below max_running {p.max_running[i]}",
                "give at least one token per running request",
            )
        if p.kv_capacity_tokens[i] < MIN_KV_CAPACITY_TOKENS:
            raise error(
                i, "kv_capacity_tokens", f"{p.kv_capacity_tokens[i]} holds no request", "give at least 2"
            )
        if p.decode_base_s[i] <= 0:
            raise error(i, "decode_base_s", f"{p.decode_base_s[i]} is not above 0", "give a time > 0")
        if p.busy_power_w[i] < p.idle_power_w[i]:
            raise error(
                i,
                "busy_power_w",
                f"{p.busy_power_w[i]} is below idle_power_w {p.idle_power_w[i]}",
                "give busy >= idle",
            )
