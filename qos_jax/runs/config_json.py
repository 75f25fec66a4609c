"""Convert configurations to JSON and back, and name the fields in which two differ."""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

_Config = TypeVar("_Config")
_ABSENT = object()


def config_dict(config: Any) -> Any:
    """Return a configuration in plain JSON types.

    Args:
      config: dataclasses, mappings, tuples and lists, nested; strings, booleans, numbers, None, paths and
        NumPy numbers in them.

    Returns:
      The same as dicts and lists. A float that is not finite becomes "inf", "-inf" or "nan".

    Raises:
      ValueError: if it holds anything else, e.g. a function.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        names = (field.name for field in dataclasses.fields(config))
        return {name: config_dict(getattr(config, name)) for name in names}
    if isinstance(config, Mapping):
        return {str(name): config_dict(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [config_dict(value) for value in config]
    if isinstance(config, np.generic):
        return config_dict(config.item())
    if isinstance(config, float) and not math.isfinite(config):
        return str(config)
    if isinstance(config, os.PathLike):
        return os.fspath(config)
    if config is None or isinstance(config, str | bool | int | float):
        return config
    raise ValueError(f"a configuration cannot hold a {type(config).__name__}: {config!r}")


def config_from_dict(kind: type[_Config], stored: Any) -> _Config:
    """Rebuild a dataclass from what :func:`config_dict` made of it.

    Args:
      kind: the dataclass. Its fields may be dataclasses, tuples of plain values, numbers, strings, booleans.
      stored: the dict. A field it lacks takes its default: it was added since, with the old meaning.

    Raises:
      ValueError: if ``stored`` is no dict, has a field that ``kind`` lacks, lacks one without a default,
        or ``kind`` refuses the values.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"{kind.__name__} is not a group of fields")
    # The typing of a dataclass as a class with fields is not expressible for a TypeVar.
    fields = {field.name for field in dataclasses.fields(typing.cast(Any, kind)) if field.init}
    unknown = sorted(stored.keys() - fields)
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}")
    types = typing.get_type_hints(kind)
    try:
        return kind(**{name: _revive(types[name], value) for name, value in stored.items()})
    except TypeError as error:
        raise ValueError(str(error)) from error


def config_differences(stored: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Name the fields in which two results of :func:`config_dict` differ.

    Returns:
      One per field, by dotted name: ``"network.hidden: 64 in the checkpoint, 32 asked for"``.
    """
    if isinstance(stored, dict) and isinstance(wanted, dict):
        found = []
        for name in sorted(stored.keys() | wanted.keys()):
            dotted = f"{prefix}.{name}" if prefix else name
            found += config_differences(stored.get(name, _ABSENT), wanted.get(name, _ABSENT), dotted)
        return found
    # JSON has no type of its own for whole numbers: 1 and 1.0 are the same setting, True is not.
    if stored == wanted and isinstance(stored, bool) == isinstance(wanted, bool):
        return []
    return [f"{prefix or 'config'}: {_text(stored)} in the checkpoint, {_text(wanted)} asked for"]


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _revive(kind: Any, value: Any) -> Any:
    """Return a JSON value as what a field of the given type holds."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return config_from_dict(kind, value)
    for option in typing.get_args(kind):  # of a union such as ``HANConfig | None``
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return _revive(option, value)
    if isinstance(value, list):
        return tuple(_revive(None, item) for item in value)
    if kind is float and isinstance(value, str):
        return float(value)
    return value
