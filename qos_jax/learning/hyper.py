"""Hyper-parameters as traced numbers: many settings of a training run in one program, by ``jax.vmap``."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from qos_jax.errors import InputError, input_error
from qos_jax.learning.train_config import TrainConfig
from qos_jax.workload.text_table import near_match

FIELD = "vmap"
_GROUPS = ("search", "distil", "ppo", "sac", "network")


def numbers_of(config: TrainConfig) -> dict[str, float]:
    """The hyper-parameters that may be traced, by dotted name: those with a fraction, of what trains.

    Whole numbers are sizes and counts, which shape the program.
    """
    groups = [name for name in _GROUPS if name in ("network", config.agent)]
    groups += [name for name in ("search", "distil") if getattr(config, name).updates > 0]
    found = {"impact_weight": config.impact_weight}
    for group in sorted(groups):
        part = getattr(config, group)
        kinds = typing.get_type_hints(type(part))
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, float) and float in (kinds[field.name], *typing.get_args(kinds[field.name])):
                found[f"{group}.{field.name}"] = value
    return found


def grid(config: TrainConfig, axes: Sequence[str]) -> list[dict[str, float]]:
    """Every combination of the axes' values, the last axis fastest; one empty setting of no axes.

    Args:
      config: the run whose numbers are replaced.
      axes: ``NAME=VALUE,VALUE,...`` each.

    Raises:
      InputError: an axis that is not so written, an unknown name, or a value that the run refuses.
    """
    values: dict[str, list[float]] = {}
    known = numbers_of(config)
    for axis in axes:
        name, equals, text = axis.partition("=")
        if not equals or not text.strip():
            raise input_error(f"{axis!r} is not NAME=VALUE,VALUE,...", field=FIELD, remedy="write it so")
        if name not in known:
            raise input_error(
                f"{name!r} is no number of this run that can be traced{near_match(name, known)}",
                field=FIELD,
                remedy=f"use one of {', '.join(known)}",
            )
        if name in values:
            raise input_error(f"names {name!r} twice", field=FIELD, remedy="give its values in one axis")
        try:
            values[name] = [float(part) for part in text.split(",")]
        except ValueError:
            raise input_error(f"{text!r} are not numbers", field=FIELD, remedy="separate by commas") from None
        if len(set(values[name])) < len(values[name]):
            raise input_error(f"{axis!r} repeats a value", field=FIELD, remedy="give each once")
    settings = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    for setting in settings:
        checked(config, setting)
    return settings


def checked(config: TrainConfig, setting: Mapping[str, float]) -> TrainConfig:
    """The run with the numbers of a setting.

    Raises:
      InputError: what the configuration refuses, naming the field.
    """
    for name, value in setting.items():
        group, _, field = name.rpartition(".")
        change: dict[str, Any] = {field: value}
        try:
            if group:
                change = {group: dataclasses.replace(getattr(config, group), **change)}
            config = dataclasses.replace(config, **change)
        except (InputError, ValueError) as error:
            raise input_error(
                f"{name} = {value:g} is refused ({error})", field=FIELD, remedy="mend it"
            ) from None
    return config


def traced(config: TrainConfig, setting: Mapping[str, Any]) -> TrainConfig:
    """The same with numbers that are traced, [] float32 each, which no check can look at; see :func:`grid`.

    It must not leave the function that traces: it is no key of a cache, and two of them do not compare.
    """
    config = _unchecked(config, {})
    for name, value in setting.items():
        group, _, field = name.rpartition(".")
        change = {group: _unchecked(getattr(config, group), {field: value})} if group else {field: value}
        config = _unchecked(config, change)
    return config


def _unchecked(part: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a frozen dataclass with other values, without its checks, which need known numbers."""
    new = copy.copy(part)
    for name, value in changes.items():
        object.__setattr__(new, name, value)
    return new
