"""Hyper-parameters as traced numbers: many settings of a training run in one program, by ``jax.vmap``."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qos_jax.errors import input_error, near_match
from qos_jax.training.train_config import TrainConfig

FIELD = "vmap"
_GROUPS = ("search", "distil", "ppo", "sac")
Setting = Mapping[str, float]  # numbers by dotted name


@dataclasses.dataclass(frozen=True)
class Together:
    """Routers that are trained at once: R, one of each setting and seed, settings outermost."""

    seeds: int  # S; seed s draws the same in every setting
    settings: tuple[Setting, ...] = ({},)

    @property
    def count(self) -> int:
        """Number of routers, R."""
        return self.seeds * len(self.settings)

    @property
    def names(self) -> tuple[str, ...]:
        """Hyper-parameters that differ between settings."""
        return tuple(self.settings[0])

    def setting(self, router: int) -> Setting:
        """Return the setting of a router."""
        return self.settings[router // self.seeds]

    def label(self, router: int) -> str:
        """Return the name of a router's folder: its seed, below its setting where there are several."""
        seed = str(router % self.seeds)
        return f"{label(self.setting(router))}/{seed}" if self.names else seed

    def record(self) -> dict[str, Any]:
        """Return the entries of a checkpoint's configuration."""
        settings = {"vmap": [dict(setting) for setting in self.settings]} if self.names else {}
        return {"vmap_seeds": self.seeds, **settings}


def label(setting: Setting) -> str:
    """Return a setting as text, ``ppo.clip=0.1,ppo.gamma=0.99``."""
    return ",".join(f"{name}={value:g}" for name, value in setting.items())


def numbers_of(config: TrainConfig) -> dict[str, float]:
    """Return the hyper-parameters that may be traced, by dotted name: floats, of the phases that train.

    Whole numbers are sizes and counts, which shape the program; those of the network are what its weights are
    for.
    """
    trains = {"search": config.search.updates > 0, "distil": config.distil.updates > 0, config.agent: True}
    found = {"impact_weight": config.impact_weight}
    for group in (name for name in _GROUPS if trains.get(name)):
        part = getattr(config, group)
        kinds = typing.get_type_hints(type(part))
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, float) and float in (kinds[field.name], *typing.get_args(kinds[field.name])):
                found[f"{group}.{field.name}"] = value
    return found


def grid(config: TrainConfig, axes: Sequence[str]) -> tuple[Setting, ...]:
    """Return every combination of the axes' values, the last axis fastest; without axes one empty setting.

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
            fault = f"{name!r} is no number of this run that can be traced{near_match(name, known)}"
            raise input_error(fault, field=FIELD, remedy=f"use one of {', '.join(known)}")
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
    return tuple(settings)


def checked(config: TrainConfig, setting: Setting) -> TrainConfig:
    """Return the run with the numbers of a setting.

    Raises:
      InputError: what the configuration refuses, naming the field.
    """
    for name, value in setting.items():
        try:
            config = _with_number(config, name, value, dataclasses.replace)
        except ValueError as error:
            fault = f"{name} = {value:g} is refused ({error})"
            raise input_error(fault, field=FIELD, remedy="give a value that the run takes") from None
    return config


def unchecked(config: TrainConfig, setting: Mapping[str, Any]) -> TrainConfig:
    """Return the run with traced numbers, [] float32 each, which the configuration's checks cannot look at.

    With those it must not leave the function that traces: it is no key of a cache, and two do not compare.
    """
    for name, value in setting.items():
        config = _with_number(config, name, value, _unchecked_replace)
    return config


def _with_number(config: TrainConfig, name: str, value: Any, replace: Callable[..., Any]) -> TrainConfig:
    group, _, field = name.rpartition(".")
    part = replace(getattr(config, group) if group else config, **{field: value})
    return replace(config, **{group: part}) if group else part


def _unchecked_replace(part: Any, **changes: Any) -> Any:
    """Return a copy of a frozen dataclass with other values, without its checks, which need known numbers."""
    new = copy.copy(part)
    for name, value in changes.items():
        object.__setattr__(new, name, value)
    return new
