"""Shipped figures of public traces (rate profiles, length histograms, limits): load, sample, derive."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import struct

from qos_jax import text_table
from qos_jax.checks import NON_NEGATIVE, POSITIVE
from qos_jax.errors import input_error, near_match
from qos_jax.files import Path, data_folder
from qos_jax.text_table import TOKENS, TextTable
from qos_jax.workload import arrivals
from qos_jax.workload.synthetic_params import SyntheticParams, load_params
from qos_jax.workload.trace import Trace

BIN_CHOICES_S = (60.0, 30.0, 10.0, 5.0)  # of a rate profile, coarse first
MAX_GAP_CV = 1.5  # gamma gaps of a higher CV pile up at one instant, as real arrivals do not
BINS_PER_OCTAVE = 4  # of a length histogram
SUMMARY_COLUMNS = ("name", "requests", "mean_rate_per_s", "bin_s", "gap_cv")
RATE_COLUMNS = ("bin", "relative_rate")
LENGTH_COLUMNS = ("prompt_low", "prompt_high", "output_low", "output_high", "count")
LIMIT_COLUMNS = ("fleet", "latency_limit_s", "reason")


@dataclasses.dataclass(frozen=True, eq=False)
class RateProfile:
    """Arrival rate of a trace over time."""

    name: str
    requests: int  # number of requests it was derived from
    mean_rate_per_s: float  # its native arrival rate
    relative_rate: npt.NDArray[np.float64]  # [P] rate per bin over the mean rate; mean 1
    bin_s: float  # seconds per bin
    gap_cv: float  # coefficient of variation of the gaps once the bins' rates are divided out


@struct.dataclass
class LengthHistogram:
    """Joint histogram of prompt and output tokens over C cells, each [low, high) in whole tokens."""

    low: jax.Array  # [C, 2] float32, tokens (prompt, output), inclusive
    high: jax.Array  # [C, 2] float32, tokens, exclusive
    log_weight: jax.Array  # [C] float32, log of the share of requests


def workload_names() -> tuple[str, ...]:
    """Return the names of the shipped workloads, such as ``azure_conv``."""
    return tuple(_summary().columns["name"])


def load_rate_profile(name: str) -> RateProfile:
    """Load a shipped rate profile.

    Raises:
      InputError: there is none of that name.
    """
    summary = _summary()
    row = _row_of(name, summary.columns["name"], "workload", "give a trace file")
    numbers = {c: float(text_table.floats(summary, c, POSITIVE)[row]) for c in SUMMARY_COLUMNS[1:]}
    table = text_table.read_small(data_folder() / "rates" / f"{name}.csv", RATE_COLUMNS)
    return RateProfile(
        name=name,
        requests=int(numbers["requests"]),
        mean_rate_per_s=numbers["mean_rate_per_s"],
        relative_rate=text_table.floats(table, "relative_rate", NON_NEGATIVE),
        bin_s=numbers["bin_s"],
        gap_cv=numbers["gap_cv"],
    )


def arrivals_like(
    profile: RateProfile, rate_per_s: float | jax.Array | None = None
) -> arrivals.ArrivalProcess:
    """Return a process with the profile's shape and gap CV, at ``rate_per_s`` or the native rate."""
    rate = profile.mean_rate_per_s if rate_per_s is None else rate_per_s
    return arrivals.diurnal(rate, profile.relative_rate, profile.bin_s, cv=profile.gap_cv)


def load_length_histogram(name: str) -> LengthHistogram:
    """Load a shipped length histogram.

    Raises:
      InputError: there is none of that name.
    """
    _row_of(name, workload_names(), "workload", "give a trace file")
    table = text_table.read_small(data_folder() / "lengths" / f"{name}.csv", LENGTH_COLUMNS)
    low, high = (
        np.stack([text_table.integers(table, f"{side}_{end}", TOKENS) for side in ("prompt", "output")], 1)
        for end in ("low", "high")
    )
    count = text_table.floats(table, "count", POSITIVE)
    return LengthHistogram(
        low=jnp.asarray(low, jnp.float32),
        high=jnp.asarray(high, jnp.float32),
        log_weight=jnp.asarray(np.log(count / count.sum()), jnp.float32),
    )


def sample_lengths(key: jax.Array, histogram: LengthHistogram, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Draw prompt and output tokens jointly: two [M] int32; log-uniform within a cell."""
    cell_key, within_key = jax.random.split(key)
    cell = jax.random.categorical(cell_key, histogram.log_weight, shape=(num_rows,))
    low, high = histogram.low[cell], histogram.high[cell]  # [M, 2]
    within = jax.random.uniform(within_key, (num_rows, 2))
    drawn = jnp.floor(low * (high / low) ** within)
    tokens = jnp.clip(drawn, low, high - 1).astype(jnp.int32)
    return tokens[:, 0], tokens[:, 1]


def load_calibration() -> SyntheticParams:
    """Load the shipped parameters of synthetic request tables (six experts)."""
    return load_params(data_folder() / "calibration" / "lookahead6.json")


def registered_fleets() -> tuple[str, ...]:
    """Return the names of the shipped fleets, such as ``edge6``."""
    table = next(text_table.read_chunks(data_folder() / "fleets" / "limits.csv"))
    text_table.check_columns(table, LIMIT_COLUMNS)
    return tuple(table.columns["fleet"])


def fleet_path(name: str) -> pathlib.Path:
    """Return the path of a shipped fleet.

    Args:
      name: such as ``edge6``.

    Raises:
      InputError: there is none of that name.
    """
    _row_of(name, _limits().columns["fleet"], "fleet", "give a CSV file")
    return data_folder() / "fleets" / f"{name}.csv"


def default_latency_limit_s(fleet: Path) -> float:
    """Return the latency limit of a shipped fleet, seconds per output token.

    Args:
      fleet: its path or name.

    Raises:
      InputError: ``data/fleets/limits.csv`` states none for it.
    """
    table = _limits()
    name = os.path.basename(fleet).removesuffix(".csv")
    names = table.columns["fleet"]
    if name not in names:
        fault = f"no default latency limit for fleet {name!r}{near_match(name, names)}"
        remedy = "give --latency_limit_s=S, seconds per output token"
        raise input_error(fault, field="latency_limit_s", remedy=remedy)
    return float(text_table.floats(table, "latency_limit_s", POSITIVE)[names.index(name)])


def choose_bin_s(trace: Trace) -> float:
    """Return the coarsest bin of ``BIN_CHOICES_S`` whose gap CV is at most ``MAX_GAP_CV``, or the finest.

    A trace with silences (Azure code: minutes without a request) has a CV of gaps that no renewal process
    should carry: finer bins put the silences into the profile, where they belong.
    """
    for bin_s in BIN_CHOICES_S:
        if trace.duration_s >= bin_s and derive_rate_profile(trace, bin_s).gap_cv <= MAX_GAP_CV:
            return bin_s
    return BIN_CHOICES_S[-1]


def derive_rate_profile(trace: Trace, bin_s: float) -> RateProfile:
    """Derive a rate profile from a trace, over its whole bins.

    Raises:
      InputError: the trace is shorter than one bin.
    """
    bins = int(trace.duration_s // bin_s)
    if bins < 1:
        raise input_error("is shorter than one bin", file=trace.name, remedy=f"give at least {bin_s:g} s")
    at = trace.arrival_s[trace.arrival_s < bins * bin_s]
    counts = np.histogram(at, bins=np.arange(bins + 1) * bin_s)[0]
    edges = np.concatenate([[0.0], np.cumsum(counts)])
    gaps = np.diff(np.interp(at, np.arange(bins + 1) * bin_s, edges))  # operational time, mean 1
    return RateProfile(
        name=trace.name,
        requests=len(at),
        mean_rate_per_s=len(at) / (bins * bin_s),
        relative_rate=counts / counts.mean(),
        bin_s=bin_s,
        gap_cv=float(gaps.std() / gaps.mean()),
    )


def derive_length_cells(trace: Trace) -> npt.NDArray[np.int64]:
    """Return the non-empty cells of a trace's joint length histogram: [C, 5] as ``LENGTH_COLUMNS``."""
    sides = []
    for tokens in (trace.prompt_tokens, trace.output_tokens):
        octaves = int(np.ceil(np.log2(tokens.max() + 1)))
        edges = np.unique(np.ceil(2.0 ** (np.arange(octaves * BINS_PER_OCTAVE + 1) / BINS_PER_OCTAVE)))
        at = np.searchsorted(edges, tokens, side="right") - 1
        sides.append(np.stack([edges[at], edges[at + 1]], axis=1))
    cells, counts = np.unique(np.concatenate(sides, axis=1), axis=0, return_counts=True)
    return np.concatenate([cells, counts[:, None]], axis=1).astype(np.int64)


def _summary() -> TextTable:
    return text_table.read_small(data_folder() / "rates" / "summary.csv", SUMMARY_COLUMNS)


def _limits() -> TextTable:
    return text_table.read_small(data_folder() / "fleets" / "limits.csv", LIMIT_COLUMNS)


def _row_of(name: str, names: Sequence[str], field: str, or_else: str) -> int:
    """Return the index of a shipped fleet or workload, or refuse a name that is none."""
    if name not in names:
        fault = f"no {field} {name!r} is shipped{near_match(name, names)}"
        raise input_error(fault, field=field, remedy=f"use one of {', '.join(names)}, or {or_else}")
    return names.index(name)
