"""What became of every request of a run, and its CSV file."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qos_jax.files import atomic_write
from qos_jax.routing.fleet_state import Outcome
from qos_jax.serving.limits import ServiceLimits, all_kept, as_limits, limits_kept
from qos_jax.workload.request_table import RequestTable

COMPLETED, REJECTED, DROPPED, REJECTED_TOO_LONG, FAILED = 0, 1, 2, 3, 4
STATUS_NAMES = ("completed", "rejected", "dropped", "rejected_too_long", "failed")
# The real line has no end, and slots are arrays of a fixed size (see serving/README.md, rule 19).
WOULD_WAIT = (
    "requests met a full queue, and a llama.cpp server would have let them wait: raise max_waiting in the "
    "fleet's file until none is rejected"
)

CSV_COLUMNS = (
    "request_id",
    "arrival_s",
    "expert",
    "status",
    "prompt_tokens",
    "output_tokens",
    "ttft_s",
    "latency_s",
    "preemptions",
    "latency_per_token_s",
    "quality",
    "qos",
)
OPTIONAL = ("cached_tokens", "session", "turn")  # fields and columns; the first of prefix caching


def network_rtt_of(xp: ModuleType, network_rtt_s: Any, expert: Any) -> Any:
    """Return the network round trip of each request's expert, [..., T] seconds; the first's where dropped.

    Args:
      xp: ``numpy`` or ``jax.numpy``.
      network_rtt_s: [..., N] seconds, or [1] where all experts have the same.
      expert: [..., T] index of the expert, -1 where dropped.
    """
    shape = (*expert.shape[:-1], network_rtt_s.shape[-1])
    index = xp.clip(expert, 0, network_rtt_s.shape[-1] - 1)
    return xp.take_along_axis(xp.broadcast_to(network_rtt_s, shape), index, axis=-1)


@dataclasses.dataclass(frozen=True)
class RequestRecords:
    """The fate of T requests of one or many runs; leading axes ``...`` are, say, [rates, seeds].

    Arrays are converted to the stated dtype. Evaluation drains, so no request is left in flight.

    Raises:
      ValueError: if the shapes differ.
    """

    status: np.ndarray  # [..., T] int8: an index into STATUS_NAMES
    expert: np.ndarray  # [..., T] int32: index of the expert chosen; -1 where dropped
    arrival_s: np.ndarray  # [..., T] float64: seconds since the start of the run
    prompt_tokens: np.ndarray  # [..., T] int32
    output_tokens: np.ndarray  # [..., T] int32: by the expert chosen, >= 1 where completed
    ttft_s: np.ndarray  # [..., T] float32: arrival to first token at the server; NaN where not completed
    latency_s: np.ndarray  # [..., T] float32: E2E with the network round trip; NaN where not completed
    preemptions: np.ndarray  # [..., T] int32: times the request was preempted
    quality: np.ndarray  # [..., T] float32 in [0, 1]: true quality of the expert chosen; NaN where dropped
    # [..., T] int32: prompt tokens found in the prefix cache; None without prefix caching
    cached_tokens: np.ndarray | None = None
    session: np.ndarray | None = None  # [..., T] int32: whose turn each request is; None without sessions
    turn: np.ndarray | None = None  # [..., T] int32: of the session, from 0

    def __post_init__(self) -> None:
        whole = dict.fromkeys(("expert", "prompt_tokens", "output_tokens", "preemptions"), np.int32)
        real = dict.fromkeys(("ttft_s", "latency_s", "quality"), np.float32)
        _convert(self, status=np.int8, arrival_s=np.float64, **whole, **real)
        for name in OPTIONAL:
            if getattr(self, name) is not None:
                _convert(self, **{name: np.int32})
        shapes = {name: values.shape for name, values in vars(self).items() if values is not None}
        if len(set(shapes.values())) > 1 or self.status.ndim == 0:
            raise ValueError(f"request records need one common shape [..., T], got {shapes}")

    def at(self, *index: int | slice) -> RequestRecords:
        """Return the records at ``index`` of the leading axes, e.g. ``at(rate, seed)`` of shape [T]."""
        if len(index) >= self.status.ndim:
            raise ValueError(f"{len(index)} indices for {self.status.ndim - 1} leading axes")
        held = {name: values[index] for name, values in vars(self).items() if values is not None}
        return RequestRecords(**held)

    def latency_per_token_s(self) -> np.ndarray:
        """Return E2E latency / output tokens, [..., T] float64 s/token; NaN where not completed."""
        return self.latency_s.astype(np.float64) / np.maximum(self.output_tokens, 1)

    def tpot_s(self, network_rtt_s: Any) -> np.ndarray:
        """Return the seconds per output token after the first, [..., T] float64, of those with several.

        Args:
          network_rtt_s: of each expert, [N] seconds.
        """
        rtt_s = network_rtt_of(np, np.atleast_1d(np.asarray(network_rtt_s, np.float64)), self.expert)
        decode_s = self.latency_s.astype(np.float64) - rtt_s - self.ttft_s.astype(np.float64)
        return np.asarray(decode_s / np.maximum(self.output_tokens - 1, 1))

    def kept(self, limits: ServiceLimits | Any, network_rtt_s: Any = 0.0) -> dict[str, np.ndarray]:
        """Return which requests completed within each limit that is set, by its name, [..., T] bool.

        Args:
          limits: the service levels, leaves [] or [...] as the leading axes; a number is L alone, s/token.
          network_rtt_s: of each expert, [N] seconds, which a limit on TPOT needs.
        """
        of_each = network_rtt_of(np, np.atleast_1d(np.asarray(network_rtt_s, np.float64)), self.expert)
        kept = limits_kept(
            jax.tree.map(lambda limit_s: np.asarray(limit_s, np.float64)[..., None], as_limits(limits)),
            self.latency_s.astype(np.float64),
            self.ttft_s.astype(np.float64),
            np.maximum(self.output_tokens, 1).astype(np.float64),
            of_each,
            np,
        )
        return {name: (self.status == COMPLETED) & within for name, within in kept.items()}

    def within_limit(self, limits: ServiceLimits | Any, network_rtt_s: Any = 0.0) -> np.ndarray:
        """Return which requests completed within every limit that is set, [..., T] bool; see :meth:`kept`."""
        return np.asarray(all_kept(self.kept(limits, network_rtt_s)))

    def qos(self, limits: ServiceLimits | Any, network_rtt_s: Any = 0.0) -> np.ndarray:
        """Return each request's QoS, [..., T] float64: its quality if within the limits, else 0."""
        return np.where(self.within_limit(limits, network_rtt_s), self.quality, 0.0).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class RunTotals:
    """What N experts did over one or many drained runs; leading axes as in :class:`RequestRecords`."""

    busy_s: np.ndarray  # [..., N] float64: seconds in which an iteration ran
    kv_token_s: np.ndarray  # [..., N] float64 token seconds: tokens in the KV cache, integrated over time
    makespan_s: np.ndarray  # [...] float64: seconds from the first arrival to the last completion or arrival

    def __post_init__(self) -> None:
        _convert(self, busy_s=np.float64, kv_token_s=np.float64, makespan_s=np.float64)
        if self.busy_s.shape != self.kv_token_s.shape or self.busy_s.shape[:-1] != self.makespan_s.shape:
            raise ValueError(
                "run totals need busy_s [..., N], kv_token_s [..., N] and makespan_s [...], got "
                f"{self.busy_s.shape}, {self.kv_token_s.shape} and {self.makespan_s.shape}"
            )


@struct.dataclass
class TracedRecords:
    """The fates of T requests of one run as :class:`RequestRecords`, within a program."""

    status: jax.Array  # [T] int32: index into STATUS_NAMES
    expert: jax.Array  # [T] int32
    output_tokens: jax.Array  # [T] int32
    quality: jax.Array  # [T] float32
    ttft_s: jax.Array  # [T] float32, NaN where not completed
    latency_s: jax.Array  # [T] float32, NaN where not completed
    preemptions: jax.Array  # [T] int32
    prompt_tokens: jax.Array | None = None  # [T] int32, with prefix caching
    cached_tokens: jax.Array | None = None  # [T] int32, likewise


@struct.dataclass
class TracedTotals:
    """What N experts did in one run as :class:`RunTotals`, within a program."""

    busy_s: jax.Array  # [N] float32
    kv_token_s: jax.Array  # [N] float32
    makespan_s: jax.Array  # [] float32


def traced_records(
    table: RequestTable, expert: jax.Array, status: jax.Array, evicted: Outcome, remaining: Outcome
) -> tuple[TracedRecords, jax.Array]:
    """Join the outcomes of a drained run to its requests, within a program.

    Args:
      table: T requests.
      expert: [T] int32, the actions; where a request has an outcome, the expert of that counts.
      status: [T] int32; COMPLETED = accepted.
      evicted: leaves [E], outcomes that left their slots on the way; ``request_id`` -1 = none.
      remaining: leaves [N, K], outcomes still in their slots.

    Returns:
      records: of all requests.
      unaccounted: [] int32, requests without exactly one end: a defect if above 0.
    """
    outcome: Outcome = jax.tree.map(
        lambda early, late: jnp.concatenate([early, late.reshape(-1)]), evicted, remaining
    )
    count = status.shape[0]
    index = jnp.where(outcome.request_id >= 0, outcome.request_id, count)  # past the end: dropped

    def enter(start: float | int, values: jax.Array) -> jax.Array:
        return jnp.full((count,), start, values.dtype).at[index].set(values, mode="drop")

    ends = jnp.zeros((count,), jnp.int32).at[index].add(1, mode="drop")
    accepted = status == COMPLETED
    latency_s = enter(jnp.nan, outcome.latency_s)
    failed = latency_s < 0.0
    expert = expert.at[index].set(outcome.expert, mode="drop")
    chosen = jnp.where(status == DROPPED, 0, expert)[:, None]
    records = TracedRecords(
        status=jnp.where(failed, FAILED, status),
        expert=expert,
        output_tokens=jnp.take_along_axis(table.output_tokens, chosen, axis=-1)[:, 0],
        quality=jnp.take_along_axis(table.quality, chosen, axis=-1)[:, 0],
        ttft_s=jnp.where(failed, jnp.nan, enter(jnp.nan, outcome.ttft_s)),
        latency_s=jnp.where(failed, jnp.nan, latency_s),
        preemptions=enter(0, outcome.preemptions),
        prompt_tokens=None if outcome.cached_tokens is None else table.prompt_tokens,
        cached_tokens=None if outcome.cached_tokens is None else enter(0, outcome.cached_tokens),
    )
    return records, jnp.sum(ends != accepted.astype(jnp.int32), dtype=jnp.int32)


def write_records_csv(
    path: str | os.PathLike[str],
    records: RequestRecords | Iterable[RequestRecords],
    expert_names: Sequence[str],
    limits: ServiceLimits | float,
    network_rtt_s: Any = 0.0,
) -> int:
    """Write one run's records, whole or not at all, with the columns ``CSV_COLUMNS``.

    With prefix caching a column ``cached_tokens`` follows, with sessions ``session`` and ``turn``.
    Where another limit than L is set a column ``within_NAME`` follows for each, 1 if the request completed
    within it, else 0.

    The times and the quality of a request that did not complete are empty and its QoS is 0; a dropped
    one has no expert and no output tokens either. ``request_id`` counts rows from 0.

    Args:
      path: the file to write; missing parent folders are made.
      records: records of shape [T], or an iterable of such chunks in order (a generator streams them
        with one chunk in memory).
      expert_names: the N experts' names, by index.
      limits: the service levels of the run; a number is L alone, s/token.
      network_rtt_s: of each expert, [N] seconds, which a limit on TPOT needs.

    Returns:
      The number of rows written.

    Raises:
      ValueError: if a chunk has leading axes.
    """
    rows = 0
    chunks = iter((records,) if isinstance(records, RequestRecords) else records)
    first = next(chunks, None)
    optional = [name for name in OPTIONAL if first is not None and getattr(first, name) is not None]
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        plain = as_limits(limits).is_plain
        set_limits = [name for name, limit_s in vars(as_limits(limits)).items() if limit_s is not None]
        within = [] if plain else [f"within_{name.removesuffix('_limit_s')}" for name in set_limits]
        writer.writerow([*CSV_COLUMNS, *optional, *within])
        for chunk in () if first is None else itertools.chain([first], chunks):
            if chunk.status.ndim != 1:
                raise ValueError(f"a CSV file holds one run of shape [T], got {chunk.status.shape}")
            columns = _csv_columns(chunk, expert_names, chunk.qos(limits, network_rtt_s), rows)
            columns += [getattr(chunk, name).tolist() for name in optional]
            if not plain:
                columns += [kept.astype(int).tolist() for kept in chunk.kept(limits, network_rtt_s).values()]
            writer.writerows(zip(*columns, strict=True))
            rows += chunk.status.size
    return rows


def _csv_columns(
    chunk: RequestRecords, names: Sequence[str], qos: np.ndarray, first_id: int
) -> list[Iterable[Any]]:
    """Return the columns in the order of ``CSV_COLUMNS``, as values that ``csv`` writes as they are."""
    done = chunk.status == COMPLETED
    routed = chunk.status != DROPPED
    expert_names = np.array([*names, ""], dtype=object)
    return [
        range(first_id, first_id + chunk.status.size),
        chunk.arrival_s.tolist(),
        expert_names[np.where(routed, chunk.expert, len(names))].tolist(),
        np.array(STATUS_NAMES, dtype=object)[chunk.status].tolist(),
        chunk.prompt_tokens.tolist(),
        np.where(routed, chunk.output_tokens.astype(object), "").tolist(),
        _texts(chunk.ttft_s, done),
        _texts(chunk.latency_s, done),
        chunk.preemptions.tolist(),
        _texts(chunk.latency_per_token_s(), done),
        _texts(chunk.quality, done),
        _texts(qos, np.ones_like(done)),
    ]


def _texts(values: np.ndarray, shown: np.ndarray) -> list[str]:
    """Return the values with the 9 digits that carry a float32 whole, and "" where not shown."""
    return [f"{v:.9g}" if s else "" for v, s in zip(values.tolist(), shown.tolist(), strict=True)]


def _convert(target: Any, **dtypes: Any) -> None:
    """Convert the fields of a frozen dataclass to arrays of the given dtypes, in place (at construction)."""
    for name, dtype in dtypes.items():
        object.__setattr__(target, name, np.asarray(getattr(target, name), dtype))
