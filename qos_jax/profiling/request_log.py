"""Read a request log of one server: when each request arrived and got its first and its last token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qos_jax.errors import input_error
from qos_jax.files import Path
from qos_jax.logs import TIMES, Logged, columns_of, read_logged
from qos_jax.logs.units import UNITS

MAX_TPOT_S = 10.0  # a median above it is taken for another unit
MAX_PREFILL_S = 1.0  # likewise of the fastest prompt, seconds per token
_LIKELY_S = 0.5  # seconds per token that the likely unit has to make of it


@dataclasses.dataclass(frozen=True, eq=False)
class RequestLog:
    """T answered requests of one server in order of arrival; arrays [T], times in seconds."""

    arrival_s: npt.NDArray[np.float64]  # since the first arrival
    start_s: npt.NDArray[np.float64]  # first scheduling, where the log says; else the arrival
    first_token_s: npt.NDArray[np.float64]  # on the same clock
    last_token_s: npt.NDArray[np.float64]  # likewise
    prompt_tokens: npt.NDArray[np.int64]  # >= 1
    output_tokens: npt.NDArray[np.int64]  # >= 1
    file: str  # its path, for errors
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # requests not among them, by cause
    notes: tuple[str, ...] = ()  # remarks on how the file was read, for the user

    @property
    def num_requests(self) -> int:
        """Number of requests T."""
        return len(self.arrival_s)

    @property
    def ttft_s(self) -> npt.NDArray[np.float64]:
        """[T] seconds from arrival to first token."""
        return self.first_token_s - self.arrival_s

    @property
    def latency_s(self) -> npt.NDArray[np.float64]:
        """[T] seconds from arrival to last token, at the server."""
        return self.last_token_s - self.arrival_s


def read_request_logs(paths: Sequence[Path], columns: Mapping[str, str]) -> tuple[RequestLog, ...]:
    """Read request logs that different tools may have left; a column is mapped in each log that has it.

    Args:
      paths: see :func:`read_request_log`.
      columns: see :func:`read_request_log`; each name of theirs must be in one of the logs at least.

    Raises:
      InputError: as :func:`read_request_log` does.
    """
    each = [columns_of(path, columns) for path in paths]
    lacking = {name: columns[name] for name in columns if all(name not in mapped for mapped in each)}
    if each:
        each[0] |= lacking  # which it is refused for
    return tuple(read_request_log(path, mapped) for path, mapped in zip(paths, each, strict=True))


def read_request_log(path: Path, columns: Mapping[str, str] | None = None) -> RequestLog:
    """Read a request log of any layout of :mod:`qos_jax.logs` that has times of first and last tokens.

    In the generic layout: ``arrival_s``, ``prompt_tokens``, ``output_tokens``, the stamp ``first_token_s`` on
    the clock of ``arrival_s`` or the span ``ttft_s`` since it, the stamp ``last_token_s`` or the span
    ``latency_s``, and optionally ``scheduled_s``; rows may be in any order. Every request that loaded the
    server must be there: what is left out, as ``left_out`` counts it, is load that a fit does not see. A
    request aborted after its first token is kept as one that asked for the tokens it got.

    Args:
      path: CSV, JSON lines or a JSON document, gzipped if its name ends in ``.gz``.
      columns: the file's own name of a column, with or without ``:unit`` (s, ms, us, ns), by the name above.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    logged = read_logged(path, columns or {})
    first = logged.joined("first_token_s", "ttft_s")
    last = logged.joined("last_token_s", "latency_s")
    if not any(name in logged.values for name in TIMES):
        fault = f"holds no times of tokens, as a trace does not ({logged.layout})"
        remedy = "give a request log, or map its columns by --column=ttft_s=THEIRS:ms and the like"
        raise input_error(fault, file=path, field="first_token_s", remedy=remedy)
    needs = ("arrival_s", first, last, "prompt_tokens", "output_tokens")
    remedy = f"give {', '.join(needs)}, or map your own with --column={{name}}=YOURS:unit"
    logged.require(needs, remedy)
    values = logged.values
    arrival_s = values["arrival_s"]
    data = {
        "arrival_s": arrival_s,
        "start_s": values.get("scheduled_s", arrival_s),
        "first_token_s": values[first] if first == "first_token_s" else arrival_s + values[first],
        "last_token_s": values[last] if last == "last_token_s" else arrival_s + values[last],
    }
    data["start_s"] = np.where(np.isnan(data["start_s"]), arrival_s, data["start_s"])
    kept = logged.is_answered
    if not kept.any():
        causes = ", ".join(f"{count} {cause}" for cause, count in logged.left_out.items()) or "none logged"
        raise input_error(f"holds no answered request ({causes})", file=path, remedy="give at least one")
    _check_units(logged, data, first, last)
    _check_order(logged, data, first, last)
    order = np.flatnonzero(kept)[np.argsort(arrival_s[kept], kind="stable")]
    first_s = arrival_s[order[0]]
    return RequestLog(
        **{name: column[order] - first_s for name, column in data.items()},
        prompt_tokens=values["prompt_tokens"][order].astype(np.int64),
        output_tokens=values["output_tokens"][order].astype(np.int64),
        file=str(path),
        left_out=logged.left_out,
        notes=logged.all_notes(),
    )


def _check_units(logged: Logged, data: Mapping[str, np.ndarray], first: str, last: str) -> None:
    """Refuse times that no server takes for a token, and name the unit that they are likely in."""
    kept = logged.is_answered
    output_tokens, prompt_tokens = logged.values["output_tokens"][kept], logged.values["prompt_tokens"][kept]
    first_s, last_s = data["first_token_s"][kept], data["last_token_s"][kept]
    many = output_tokens > 1
    tpot_s = float(np.median((last_s - first_s)[many] / (output_tokens[many] - 1))) if many.any() else 0.0
    prefill_s = float(np.min((first_s - data["start_s"][kept]) / prompt_tokens))
    for name, value, limit, what in (
        (last, tpot_s, MAX_TPOT_S, "a median of {:.3g} s per output token"),
        (first, prefill_s, MAX_PREFILL_S, "at least {:.3g} s per prompt token"),
    ):
        if value > limit:
            unit = next((u for u, per_s in UNITS.items() if value / per_s <= _LIKELY_S), "ns")
            field, given = logged.fields.get(name, (name, "s"))
            fault = f"{what.format(value)} is implausible: its times are likely in {unit}, not {given}"
            remedy = f"map each time with its unit, such as --column={name}={field}:{unit}"
            raise input_error(fault, file=logged.file, field=field, remedy=remedy)


def _check_order(logged: Logged, data: Mapping[str, np.ndarray], first: str, last: str) -> None:
    """Refuse stamps that run backwards, which no one clock gives."""
    begin, start, first_s, last_s = (
        data[name] for name in ("arrival_s", "start_s", "first_token_s", "last_token_s")
    )
    one_clock = "measure all on one clock, or map the right column with --column"
    rules = (
        (start < begin, "scheduled_s", "is before the arrival", one_clock),
        (first_s <= begin, first, "is not after the arrival", one_clock),
        (first_s <= start, first, "is not after the scheduling", one_clock),
        (last_s < first_s, last, "is before the first token", one_clock),
        (
            (logged.values["output_tokens"] > 1) & (last_s == first_s),
            last,
            "is the first token's, yet there are more tokens",
            "give the time of the last one",
        ),
    )
    for bad, name, fault, remedy in rules:
        logged.refuse(name, bad, fault, remedy)
