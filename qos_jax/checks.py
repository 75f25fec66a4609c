"""Check settings: each check raises one error that names the field, the value and what to give instead."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from qos_jax.errors import input_error, near_match


@dataclasses.dataclass(frozen=True)
class Interval:
    """The numbers from ``low`` to ``high``, both included unless ``above`` or ``below`` says otherwise."""

    low: float = -math.inf
    high: float = math.inf  # infinity itself is never included
    above: bool = False  # low itself is excluded
    below: bool = False  # high itself is excluded
    whole: bool = False  # whole numbers alone

    def __contains__(self, value: object) -> bool:
        """Return whether ``value`` is a finite number of the interval; True and False are no numbers."""
        kinds = int if self.whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
            return False
        after_low = value > self.low if self.above else value >= self.low
        before_high = value < self.high if self.below else value <= self.high
        return after_low and before_high

    def __str__(self) -> str:
        """Return the interval in words, such as ``a whole number from 1``."""
        text = "a whole number" if self.whole else "a finite number"
        if self.low > -math.inf:
            text += f" {'above' if self.above else 'from'} {self.low:.10g}"
        if self.high < math.inf:
            text += f" {'to below' if self.below else 'to'} {self.high:.10g}"
        return text


COUNT = Interval(1, 2**31 - 1, whole=True)
COUNT_OR_ZERO = Interval(0, 2**31 - 1, whole=True)
SEED = Interval(0, 2**32 - 1, whole=True)
POSITIVE = Interval(0, above=True)
NON_NEGATIVE = Interval(0)
SHARE = Interval(0, 1)
DISCOUNT = Interval(0, 1, below=True)


def check_range(config: Any, fields: Iterable[str], interval: Interval) -> None:
    """Check numbers of a dataclass; those of a tuple each; None, where a field may be None, passes.

    Args:
      config: the dataclass.
      fields: names of its fields.
      interval: what they must lie in.

    Raises:
      InputError: naming the first field out of range.
    """
    for field in fields:
        value = getattr(config, field)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and number not in interval:
                raise input_error(f"{number!r} is out of range", field=field, remedy=f"give {interval}")


def check_one_of(field: str, value: str, known: Collection[str]) -> None:
    """Check a name against those known.

    Raises:
      InputError: an unknown name, with the nearest known one.
    """
    if value not in known:
        fault = f"{value!r} is unknown{near_match(value, known)}"
        raise input_error(fault, field=field, remedy=f"use one of {', '.join(known)}")


def check_some_of(field: str, values: Sequence[str], known: Collection[str]) -> None:
    """Check a list of names: at least one, each known, each once.

    Raises:
      InputError: an empty list, an unknown or a repeated name.
    """
    if not values:
        raise input_error("is empty", field=field, remedy=f"give some of {', '.join(known)}")
    for value in values:
        check_one_of(field, value, known)
    check_distinct(field, values)


def check_distinct(field: str, values: Sequence[Any]) -> None:
    """Check that no value is given twice.

    Raises:
      InputError: naming the field and the first repeated value.
    """
    for index, value in enumerate(values):
        if value in values[:index]:
            raise input_error(f"{value!r} is given twice", field=field, remedy="give each once")


def check_names(field: str, names: Sequence[Any], *, file: object | None = None, reserved: str = "") -> None:
    """Check the names of experts: at least one, each a printable text of its own.

    Args:
      field: what holds the names, for the error.
      names: the names.
      file: where they come from, for the error.
      reserved: a name that none may have, in whatever case; "" = no such name.

    Raises:
      InputError: naming the first name at fault and its index.
    """
    if isinstance(names, str) or not len(names):
        raise input_error("is no list of names", file=file, field=field, remedy="give at least one name")
    for index, name in enumerate(names):
        text = name if isinstance(name, str) else ""
        faults = {
            "is empty": not text.strip(),
            "is not printable": not text.isprintable(),
            "is reserved": text.casefold() == reserved,
            "appears twice": name in names[:index],
        }
        if any(faults.values()):
            fault = next(fault for fault, found in faults.items() if found)
            fault = f"name {name!r} at {field}[{index}] {fault}"
            raise input_error(fault, file=file, field=field, remedy="give every expert a name of its own")
