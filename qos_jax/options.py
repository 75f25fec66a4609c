"""Declare what a field of a configuration may be: its known names, its help, how its flag is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from qos_jax.checks import check_one_of


@dataclasses.dataclass(frozen=True)
class Option:
    """What a field says of itself beside its type, its default and the comment behind it."""

    known: tuple[str, ...] = ()  # the names that it, or each item of a tuple, may be; () = any
    help: str = ""  # for its flag, where it is too long for a comment behind the field
    repeatable: bool = False  # a tuple of which each item has a flag of its own, not commas between them
    flat: bool = False  # a dataclass whose fields are flags without its name before theirs


def option(
    default: Any = dataclasses.MISSING,
    *,
    known: Iterable[str] = (),
    help: str = "",
    repeatable: bool = False,
    flat: bool = False,
) -> Any:
    """Return a dataclass field with an :class:`Option`.

    Args:
      default: its default value, or a callable that makes one; without it the field is required.
      known: see :class:`Option`, as the others; checked by :func:`check_options`.
      help: see there.
      repeatable: see there.
      flat: see there.
    """
    metadata = {"option": Option(tuple(known), help, repeatable, flat)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def option_of(field: dataclasses.Field[Any]) -> Option:
    """Return what a field was declared with."""
    return field.metadata.get("option", Option())


def check_options(config: Any) -> None:
    """Check every field of a dataclass that was declared with known names; None passes.

    Raises:
      InputError: an unknown name, with the nearest known one.
    """
    for field in dataclasses.fields(config):
        known, value = option_of(field).known, getattr(config, field.name)
        for name in value if isinstance(value, tuple) else (value,):
            if known and name is not None:
                check_one_of(field.name, name, known)
