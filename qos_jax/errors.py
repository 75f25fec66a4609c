"""The one error for bad input: it names the file, row and field, the fault, and what to do instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from a user: one line that names the place, the fault and the remedy.

    Launchers print it as it is and exit with code 2; libraries may catch it as a ``ValueError``.
    Build it with :func:`input_error` where a file, row or field is known.
    """


def input_error(
    fault: str,
    *,
    remedy: str,
    file: object | None = None,
    row: int | None = None,
    field: str | None = None,
) -> InputError:
    """Return an :class:`InputError` that reads ``file, row N, field F: fault; remedy``.

    Args:
      fault: what is wrong, with the offending value.
      remedy: what to do about it.
      file: path of the file at fault, if one is.
      row: line number in that file, counted from 1 with the header as line 1.
      field: column, flag or parameter name.
    """
    place = [str(file)] if file is not None else []
    if row is not None:
        place.append(f"row {row}")
    if field is not None:
        place.append(f"field {field!r}")
    where = ", ".join(place)
    return InputError(f"{where}: {fault}; {remedy}" if where else f"{fault}; {remedy}")


def near_match(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ``" (did you mean 'X'?)"`` for the known name nearest to ``name``, or ``""``.

    Args:
      name: the name given.
      known: the names to compare it with.
      cutoff: likeness in [0, 1] below which none is suggested.
    """
    folded = {k.casefold(): k for k in known}
    found = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=cutoff)
    return f" (did you mean {folded[found[0]]!r}?)" if found else ""
