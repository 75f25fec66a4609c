"""The requests of a file in one form for all layouts: seconds, tokens, and why some are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qos_jax.errors import InputError, input_error, near_match
from qos_jax.logs.units import UNITS
from qos_jax.text_table import MAX_INT32

ANSWERED = ""  # the cause of a request that is not left out
TIMES_NOTE = "times: "  # how notes begin that a trace has no use for


@dataclasses.dataclass(frozen=True, eq=False)
class Logged:
    """R requests as a layout's reader found them; what a file does not say of a request is NaN."""

    file: str  # its path, for errors
    layout: str  # name of the layout
    row: npt.NDArray[np.int64]  # [R] line in the file, or index in its list, from 1
    values: Mapping[str, npt.NDArray[np.float64]]  # by ``units.KNOWN``, [R] each, seconds or tokens
    cause: npt.NDArray[np.object_]  # [R] why a request is left out, such as "failed"; ``ANSWERED`` if not
    notes: tuple[str, ...] = ()  # remarks on how it was read, for the user
    fields: Mapping[str, tuple[str, str]] = dataclasses.field(
        default_factory=dict
    )  # file's name, unit, by ours
    unread: tuple[str, ...] = ()  # columns of the file that are not read
    # R, hashes of each prompt's blocks, each with all before it; () = not given
    hash_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def is_answered(self) -> npt.NDArray[np.bool_]:
        """[R], whether a request is kept."""
        return self.cause == ANSWERED

    @property
    def left_out(self) -> dict[str, int]:
        """How many requests are left out, by cause."""
        causes, counts = np.unique(self.cause[~self.is_answered].astype(str), return_counts=True)
        return dict(zip(causes.tolist(), counts.tolist(), strict=True))

    def all_notes(self) -> tuple[str, ...]:
        """Return the remarks, with those on requests left out and on columns not read."""
        notes = list(self.notes)
        if self.left_out:
            counts = ", ".join(f"{count} {cause}" for cause, count in self.left_out.items())
            notes.append(f"left out of {len(self.row)} requests: {counts}")
        if self.unread:
            shown = ", ".join(self.unread[:8])
            rest = f" and {len(self.unread) - 8} more" if len(self.unread) > 8 else ""
            notes.append(f"columns not read: {shown}{rest}")
        return tuple(notes)

    def require(self, names: Sequence[str], remedy: str) -> None:
        """Check that every answered request has each of these quantities.

        Args:
          names: of ``units.KNOWN``.
          remedy: for a quantity that the file lacks; ``{name}`` in it stands for the quantity.

        Raises:
          InputError: a quantity that is missing, or that a request lacks, naming its row.
        """
        for name in names:
            if name not in self.values:
                fault = "column is missing" + near_match(name, self.unread, cutoff=0.7)
                raise input_error(fault, file=self.file, field=name, remedy=remedy.format(name=name))
        for name in names:
            values = self.values[name]
            self.refuse(name, np.isnan(values), None, "give it, or remove the request")
            self.refuse(name, np.isinf(values), "is not finite", "write a finite number")
            if name.endswith("tokens"):
                bad = (values < 1) | (values > MAX_INT32) | (values != np.round(values))
                self.refuse(name, bad, "is out of range", f"give a whole number from 1 to {MAX_INT32}")

    def refuse(self, name: str, bad: npt.NDArray[np.bool_], fault: str | None, remedy: str) -> None:
        """Raise InputError naming the first answered request where ``bad`` [R] holds, if it holds anywhere.

        Args:
          name: the quantity at fault, of ``units.KNOWN``.
          bad: [R], where the fault is.
          fault: what is wrong with the value, which is put before it; None: there is no value.
          remedy: what to do about it.
        """
        bad = bad & self.is_answered
        if bad.any():
            raise self.error(name, int(np.argmax(bad)), fault, remedy)

    def error(self, name: str, at: int, fault: str | None, remedy: str) -> InputError:
        """Return the error for a quantity of request ``at``, from 0; the arguments are those of `refuse`."""
        field, unit = self.fields.get(name, (name, "s"))
        value = self.values[name][at] * UNITS.get(unit, 1.0) if name in self.values else np.nan
        text = "is empty" if fault is None else f"'{value:.10g}' {fault}"
        return input_error(text, file=self.file, row=int(self.row[at]), field=field, remedy=remedy)

    def joined(self, name: str, span: str) -> str:
        """Return which of a stamp and the span that stands for it the file has."""
        return span if name not in self.values and span in self.values else name
