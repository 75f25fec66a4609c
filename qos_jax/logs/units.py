"""Names with units: what ``THEIRS:unit`` means in a layout and in ``--column=OURS=THEIRS:unit``."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from qos_jax.errors import input_error, near_match

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # per second
ISO = "iso"  # a time stamp such as 2023-11-16 18:15:46.6805900

STAMPS = ("arrival_s", "scheduled_s", "first_token_s", "last_token_s")  # on one clock
SPANS = ("ttft_s", "latency_s")  # from the arrival to the first and to the last token
TOKENS = ("prompt_tokens", "output_tokens")
TIMES = (*STAMPS[1:], *SPANS)  # what a log has and a trace has not
KNOWN = (*STAMPS, *SPANS, *TOKENS)  # the quantities of a request


def split_unit(name: str) -> tuple[str, str]:
    """Return the field and the unit of ``THEIRS`` or ``THEIRS:unit``; "" for a unit that is not given."""
    field, colon, unit = name.rpartition(":")
    return (field, unit) if colon and unit in (*UNITS, ISO) else (name, "")


def _unit_of(field: str, aliases: Mapping[str, str]) -> str:
    """Return the unit of a field that is mapped without one: the layout's, by its ending, or seconds."""
    known = dict(split_unit(alias) for alias in aliases)
    ending = field.rpartition("_")[2]
    return known.get(field) or (ending if ending in UNITS else "s")


def our_names(
    file: str,
    given: Collection[str],
    columns: Mapping[str, str],
    known: Collection[str],
    aliases: Mapping[str, str],
) -> dict[str, tuple[str, str]]:
    """Return the file's name and the unit of each of our columns that it has: mapped, else ours, else alias.

    Args:
      file: for errors.
      given: the names in the file.
      columns: the file's name by ours, as the user maps them, with or without ``:unit``; without it the unit
        is the alias's, or that of the name's ending, such as ``_ms``, or seconds.
      known: our names.
      aliases: our name by the file's, with or without ``:unit``; of several present, the first counts.

    Raises:
      InputError: a mapping to a column that the file does not have, or of a name that is none of ours.
    """
    found: dict[str, tuple[str, str]] = {}
    for ours, theirs in columns.items():
        if ours not in known:
            fault = f"no column {ours!r} is read{near_match(ours, known)}"
            raise input_error(fault, field="column", remedy=f"map some of {', '.join(known)}")
        field, unit = (theirs, "") if theirs in given else split_unit(theirs)
        if field not in given:
            fault = f"the file has no column {field!r}{near_match(field, given)}"
            remedy = f"map it to one of {listed(given, 12)}"
            column, _, ending = field.rpartition(":")
            if column in given:
                fault, remedy = f"{ending!r} is no unit", f"write {ours}={column}:unit, of {', '.join(UNITS)}"
            raise input_error(fault, file=file, field=ours, remedy=remedy)
        if not ours.endswith("_s"):
            if unit:
                raise input_error(f"{unit!r} is no unit of it", field=ours, remedy=f"write {ours}={field}")
            unit = "s"  # that of counts, which are not scaled
        found[ours] = field, unit or _unit_of(field, aliases)
    for name in given:
        if name in known:
            found.setdefault(name, (name, "s"))
    for alias, ours in aliases.items():
        theirs, unit = split_unit(alias)
        if theirs in given:
            found.setdefault(ours, (theirs, unit or "s"))
    return found


def listed(names: Collection[str], at_most: int) -> str:
    """Return names separated by commas, the rest of them counted."""
    shown = ", ".join(list(names)[:at_most])
    return f"{shown} and {len(names) - at_most} more" if len(names) > at_most else shown
