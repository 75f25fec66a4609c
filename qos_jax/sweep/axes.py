"""The axes of a sweep: read from text, checked, and multiplied out to a grid of cells."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from qos_jax.checks import NON_NEGATIVE, POSITIVE, Interval
from qos_jax.errors import InputError, input_error, near_match
from qos_jax.policies.greedy_params import NUMBERS
from qos_jax.serving import LIMITS
from qos_jax.simulation.world_config import WORLD_NUMBERS
from qos_jax.workload.fleet import COLUMNS, INTEGER_COLUMNS, OPTIONAL

FIELD = "sweep"
PROFILE = "profile."
ROUTER_SHARE = "router_shares."  # before the number of a router, counted from 1
MAX_CELLS = 10_000_000


# Every parameter with one number per cell; those of the fleet's profile come on top.
SCALARS = {
    **dict.fromkeys(("load", "arrival_rate", *LIMITS, "gap_cv"), POSITIVE),
    **dict.fromkeys(("burst_factor", "burst_mean_s", "calm_mean_s"), POSITIVE),
    "diurnal_swing": Interval(0.0, 1.0, below=True),
    "error_level": NON_NEGATIVE,
    "quality_bias": Interval(-1.0, 1.0),
    "length_bias_log": Interval(-10.0, 10.0),
    **{name: number.allowed for name, number in NUMBERS.items()},
    **WORLD_NUMBERS,
}
RENAMED = {"length_log_bias": "length_bias_log"}  # parameters, old name to new
# Settings of conversations, which are drawn once for all cells; so they are no axes.
CONVERSATIONS = (
    "conversation_turns",
    "open_conversations",
    "conversation_limit_tokens",
    "system_prompts",
    "system_prompt_tokens",
    "system_prompt_skew",
)
ALIKE = ("prefix_entries", *CONVERSATIONS)  # in all cells: caches have one size, too
PROFILE_FIELDS = (*COLUMNS[1:], *OPTIONAL)
SWEEP_HELP = (
    "NAME=VALUES: an axis of the grid; values with commas (of a limit also inf, which is none), or "
    "FROM:TO:COUNT, or FROM:TO:COUNT:log; NAME is "
    f"one of {', '.join(SCALARS)}, {ROUTER_SHARE}K, the share of router K from 1, or a field of the fleet's "
    "profile: profile.FIELD of all experts, profile.EXPERT.FIELD of one, with a * behind it to scale it"
)


@dataclasses.dataclass(frozen=True)
class Axis:
    """A parameter and the values it takes, as given."""

    name: str  # as given, such as "arrival_rate", "profile.decode_base_s*" or "profile.A100.max_running"
    values: tuple[float, ...]

    @property
    def is_scale(self) -> bool:
        """Whether the values multiply what the fleet's file says."""
        return self.name.endswith("*")

    @property
    def profile_field(self) -> str | None:
        """The field of the fleet's profile that it is about; None for a scalar."""
        return self._profile_parts()[1] if self.name.startswith(PROFILE) else None

    @property
    def expert(self) -> str | None:
        """The one expert that it is about; None = all."""
        return self._profile_parts()[0] if self.name.startswith(PROFILE) else None

    def _profile_parts(self) -> tuple[str | None, str]:
        rest = self.name.removeprefix(PROFILE).removesuffix("*")
        expert, dot, field = rest.rpartition(".")  # an expert's name may have dots
        return (expert if dot else None), field


def parse_axis(text: str) -> Axis:
    """Read ``NAME=VALUES``: a list with commas, ``a:b:n`` evenly from a to b, or ``a:b:n:log``.

    A limit in a list may be ``inf``: without it.

    Raises:
      InputError: naming the parameter, the fault and the remedy.
    """
    name, equals, rest = text.partition("=")
    name = name.strip()
    if not equals or not name:
        remedy = "give e.g. --sweep=arrival_rate=2:20:10 or --sweep=latency_limit_s=0.02,0.05"
        raise input_error(f"{text!r} is not NAME=VALUES", field=FIELD, remedy=remedy)
    axis = Axis(name, _values(name, rest.strip()))
    _check_name(axis)
    _check_values(axis)
    return axis


def check_axes(axes: Sequence[Axis]) -> None:
    """Check that axes do not contradict each other.

    Raises:
      InputError: a parameter twice, or two that say the same, or more than ``MAX_CELLS`` cells.
    """
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise input_error("is swept twice", field=name, remedy="give its values in one --sweep")
    if {"load", "arrival_rate"} <= set(names):
        raise input_error("contradicts arrival_rate", field="load", remedy="sweep one of the two")
    for axis in axes:
        for other in axes:
            same = axis.profile_field is not None and axis.profile_field == other.profile_field
            if same and axis is not other and other.expert in (None, axis.expert):
                raise input_error(
                    f"contradicts {other.name!r}", field=axis.name, remedy="sweep a field in one way only"
                )
    cells = math.prod(len(axis.values) for axis in axes)
    if cells > MAX_CELLS:
        raise input_error(f"makes {cells:,} cells", field=FIELD, remedy=f"stay below {MAX_CELLS:,}")


def multiply_out(axes: Sequence[Axis]) -> np.ndarray:
    """Return every combination of the axes' values, the last axis fastest: [C, A] float64."""
    if not axes:
        return np.zeros((1, 0))
    grids = np.meshgrid(*(np.asarray(axis.values, np.float64) for axis in axes), indexing="ij")
    return np.stack([grid.reshape(-1) for grid in grids], axis=1)


def _values(name: str, text: str) -> tuple[float, ...]:
    def refuse(fault: str, remedy: str) -> InputError:
        return input_error(fault, field=name, remedy=remedy)

    def number(part: str) -> float:
        try:
            value = float(part)
        except ValueError:
            raise refuse(f"{part!r} is not a number", "give numbers, such as 2:20:10 or 0.02,0.05") from None
        if not math.isfinite(value) and not (without and value == math.inf):
            raise refuse(f"{part!r} is not finite", "give finite numbers")
        return value

    without = name in LIMITS and ":" not in text  # inf = without that limit
    if ":" not in text:
        if not text:
            raise refuse("has no values", f"give --{FIELD}={name}=VALUES")
        return tuple(number(part) for part in text.split(","))
    parts = text.split(":")
    if len(parts) not in (3, 4) or (len(parts) == 4 and parts[3] not in ("log", "linear")):
        raise refuse(f"{text!r} is no range", "give FROM:TO:COUNT or FROM:TO:COUNT:log")
    first, last = number(parts[0]), number(parts[1])
    if not parts[2].strip().isdigit() or int(parts[2]) < 1:
        raise refuse(f"the count {parts[2]!r} is not a whole number from 1", "give FROM:TO:COUNT")
    count = int(parts[2])
    if count == 1 and first != last:
        raise refuse(f"{text!r} has two ends and one value", "give a count from 2, or the value alone")
    if parts[-1] == "log":
        if first <= 0 or last <= 0:
            raise refuse(f"{text!r} has an end that has no logarithm", "give ends above 0, or leave out :log")
        return tuple(float(value) for value in np.geomspace(first, last, count))
    return tuple(float(value) for value in np.linspace(first, last, count))


def _check_name(axis: Axis) -> None:
    field = axis.profile_field
    if field is None:
        if axis.name in SCALARS or re.fullmatch(re.escape(ROUTER_SHARE) + "[1-9][0-9]{0,8}", axis.name):
            return
        if axis.name in RENAMED:
            new = RENAMED[axis.name]
            raise input_error(
                f"{axis.name!r} has a new name", field=FIELD, remedy=f"give --{FIELD}={new}=VALUES"
            )
        if axis.name in ALIKE:
            remedy = f"give --{axis.name}=VALUE, and a sweep for each; profile.kv_capacity_tokens is an axis"
            raise input_error("is the same in all cells", field=axis.name, remedy=remedy)
        hint = near_match(axis.name, [*SCALARS, *(PROFILE + name for name in PROFILE_FIELDS)])
        if axis.name.removesuffix("*") in SCALARS:
            hint = " (only a field of the profile is scaled)"
        remedy = f"use one of {', '.join(SCALARS)}, profile.FIELD, profile.FIELD* or profile.EXPERT.FIELD"
        raise input_error(f"parameter {axis.name!r} is unknown{hint}", field=FIELD, remedy=remedy)
    if field not in PROFILE_FIELDS:
        fault = f"a profile has no field {field!r}{near_match(field, PROFILE_FIELDS)}"
        raise input_error(fault, field=axis.name, remedy=f"use one of {', '.join(PROFILE_FIELDS)}")


def _check_values(axis: Axis) -> None:
    field = axis.profile_field
    allowed = NON_NEGATIVE if field else SCALARS.get(axis.name, POSITIVE)
    if field and (axis.is_scale or field == "decode_base_s"):
        allowed = POSITIVE
    for value in axis.values:
        if value not in allowed and not (axis.name in LIMITS and value == math.inf):
            raise input_error(f"{value:g} is out of range", field=axis.name, remedy=f"give {allowed} each")
        if field in INTEGER_COLUMNS and not axis.is_scale and not (value.is_integer() and value < 2**31):
            raise input_error(
                f"{value:g} is not a whole number", field=axis.name, remedy="give whole numbers"
            )
    if len(set(axis.values)) < len(axis.values):
        raise input_error("has a value twice", field=axis.name, remedy="give each once")
