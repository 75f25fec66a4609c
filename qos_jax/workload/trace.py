"""A trace: arrival times and lengths of recorded requests; read, cut and scale one."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import numpy.typing as npt
from absl import logging

from qos_jax.errors import input_error
from qos_jax.files import Path
from qos_jax.logs import GENERIC, TIMES, TIMES_NOTE, read_logged
from qos_jax.workload.prefix_paths import PrefixPaths, block_tokens_of, prefix_paths

_TICKS_PER_S = 2.0**24


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """T recorded requests, in order of arrival."""

    arrival_s: npt.NDArray[np.float64]  # [T] float64, seconds since the first arrival, non-decreasing
    prompt_tokens: npt.NDArray[np.int32]  # [T] int32, >= 1
    output_tokens: npt.NDArray[np.int32]  # [T] int32, >= 1
    name: str  # of its source, for tables and plots
    skipped_rows: int = 0  # requests of the source left out, such as failed ones
    notes: tuple[str, ...] = ()  # remarks on how the file was read, for the user
    prefixes: PrefixPaths | None = None  # [T], what the requests share, where the source says so

    @property
    def num_requests(self) -> int:
        """Number of requests T."""
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last arrival."""
        return float(self.arrival_s[-1])

    @property
    def rate_per_s(self) -> float:
        """Mean arrival rate: gaps / duration; infinite if all arrive at once."""
        return (self.num_requests - 1) / self.duration_s if self.duration_s > 0 else float("inf")


def read_trace(path: Path) -> Trace:
    """Read a trace from a file of any layout of :mod:`qos_jax.logs`: a public trace, or a request log.

    Requests that cannot be served, such as failed ones without an output token, are left out and counted, and
    requests out of order are sorted. The generic layout without times of tokens, which people write by hand,
    is refused for either. Remarks on how the file was read are logged.

    Returns:
      The trace, named by the file's name without its ending.

    Raises:
      InputError: no known layout, or naming file, row, field and remedy of the first fault found.
    """
    logged = read_logged(path)
    logged.require(("arrival_s", "prompt_tokens", "output_tokens"), "give it, as {name}")
    arrival_s = logged.values["arrival_s"]
    if logged.layout == GENERIC.name and not any(name in logged.values for name in TIMES):
        early = np.diff(arrival_s, prepend=-np.inf) < 0
        logged.refuse("arrival_s", early, "is before the arrival above it", "sort the rows by arrival")
    kept = logged.is_answered
    notes = tuple(note for note in logged.all_notes() if not note.startswith(TIMES_NOTE))
    for note in notes:
        logging.warning("%s: %s", path, note)
    if not kept.any():
        raise input_error("holds no request that can be served", file=path, remedy="give at least one row")
    order = np.flatnonzero(kept)[np.argsort(arrival_s[kept], kind="stable")]
    lengths = (logged.values[name][order] for name in ("prompt_tokens", "output_tokens"))
    prompt_tokens, output_tokens = (tokens.astype(np.int32) for tokens in lengths)
    hash_ids = [logged.hash_ids[row] for row in order] if logged.hash_ids else []
    block_tokens = block_tokens_of(hash_ids, prompt_tokens) if hash_ids else None
    if hash_ids and block_tokens is None:
        fault = "no one size of a block explains how many there are of each prompt"
        notes += (f"shared prefixes are not known: hash_ids are not read, as {fault}",)
        logging.warning("%s: %s", path, notes[-1])
    return Trace(
        arrival_s=arrival_s[order] - arrival_s[order[0]],
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        name=os.path.splitext(os.path.basename(path).removesuffix(".gz"))[0],
        skipped_rows=int(np.sum(~kept)),
        notes=notes,
        prefixes=prefix_paths(hash_ids, prompt_tokens, block_tokens) if block_tokens else None,
    )


def known_rate_per_s(trace: Trace) -> float:
    """Return the mean arrival rate of a trace that has one.

    Raises:
      InputError: its requests arrive at one instant.
    """
    if not np.isfinite(trace.rate_per_s):
        fault = f"its {trace.num_requests} requests arrive at one instant, so it has no rate"
        raise input_error(fault, file=trace.name, remedy="give a trace, or a window of it, that lasts")
    return trace.rate_per_s


def warn_of_prefixes(trace: Trace, prefix_entries: int, *, rows_of_a_table: bool = False) -> None:
    """Log the share of a trace's prompt tokens that a cache could spare, where they are not simulated.

    Args:
      trace: what arrives.
      prefix_entries: of each expert; 0 = no cache.
      rows_of_a_table: whether the requests are a table's, which share nothing, and only arrive as these.
    """
    if trace.prefixes is None or (prefix_entries and not rows_of_a_table):
        return
    share = float(trace.prefixes.repeated_tokens.sum() / trace.prompt_tokens.sum())
    logging.warning(
        "%s: shared prefixes, %.3g%% of the prompt tokens, are simulated with %s alone",
        trace.name,
        100 * share,
        "the trace's own requests, not a table's rows," if rows_of_a_table else "prefix_entries",
    )


def window(trace: Trace, start_s: float, end_s: float) -> Trace:
    """Return the requests that arrive in [start_s, end_s), their clock restarted at the first of them.

    Raises:
      InputError: the window holds no request.
    """
    low, high = np.searchsorted(trace.arrival_s, [start_s, end_s], side="left")
    if high <= low:
        fault = f"no request arrives in [{start_s:g} s, {end_s:g} s)"
        raise input_error(fault, file=trace.name, remedy=f"choose a window within 0..{trace.duration_s:g} s")
    return _cut(trace, int(low), int(high))


def scale_rate(trace: Trace, factor: float) -> Trace:
    """Return the trace played ``factor`` times as fast: same requests, same order, rate x factor.

    Raises:
      InputError: factor is not finite or not above 0.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise input_error(f"{factor} is out of range", field="factor", remedy="give a finite number above 0")
    return dataclasses.replace(trace, arrival_s=trace.arrival_s / factor)


def split(trace: Trace, fraction: float) -> tuple[Trace, Trace]:
    """Split by time order into the first ``fraction`` of the requests and the rest, both from 0 s.

    Raises:
      InputError: a part would be empty.
    """
    at = round(trace.num_requests * fraction) if np.isfinite(fraction) else 0
    if not 0 < at < trace.num_requests:
        fault = f"a split of {trace.num_requests} requests at {fraction} leaves a part empty"
        raise input_error(fault, file=trace.name, remedy="choose a fraction between 0 and 1")
    return _cut(trace, 0, at), _cut(trace, at, trace.num_requests)


def _cut(trace: Trace, low: int, high: int) -> Trace:
    return dataclasses.replace(
        trace,
        arrival_s=trace.arrival_s[low:high] - trace.arrival_s[low],
        prompt_tokens=trace.prompt_tokens[low:high],
        output_tokens=trace.output_tokens[low:high],
        prefixes=trace.prefixes and trace.prefixes.at(slice(low, high)),
    )


def gaps_s(earlier_s: npt.NDArray[np.float64], later_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the seconds from earlier to later instants as float32, without drift however long the trace.

    Instants are first rounded to 2^-24 s (0.06 microseconds): gaps below a second are then exact in
    float32, so the gaps of a week add up to the week. Longer gaps round by 1 part in 10^7 at most.

    Args:
      earlier_s: [...] float64, seconds.
      later_s: [...] float64, seconds, not before ``earlier_s``.
    """
    return (
        np.round(later_s * _TICKS_PER_S) / _TICKS_PER_S - np.round(earlier_s * _TICKS_PER_S) / _TICKS_PER_S
    ).astype(np.float32)
