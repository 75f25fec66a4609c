"""From axes and fleets to the numbers of every cell, in groups of equal static shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.errors import InputError, input_error, near_match
from qos_jax.policies.greedy_params import GreedyParams
from qos_jax.routing.observation import KnownFleet
from qos_jax.serving import FleetProfile, ServiceLimits, ServingConfig, with_context_limit
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import conversations_of
from qos_jax.simulation.reality import Reality
from qos_jax.sweep.axes import Axis, multiply_out
from qos_jax.sweep.lane import CellNumbers, Conversations, LaneSource
from qos_jax.sweep.worlds import SweptWorlds
from qos_jax.workload import (
    Fleet,
    NamedTable,
    RequestTable,
    SyntheticParams,
    load_length_histogram,
    load_rate_profile,
    validate_fleet,
)
from qos_jax.workload.capacity import capacity_per_s
from qos_jax.workload.decode_knots import KNOT_COLUMNS, KNOTS_REPLACE
from qos_jax.workload.drawn_requests import Source, as_replicas, draw_contents, known_length_log_std
from qos_jax.workload.fleet import INTEGER_COLUMNS, NO_LIMIT
from qos_jax.workload.named import CONVERSATION, RECORDED
from qos_jax.workload.request_table import without_prefixes
from qos_jax.workload.setting import Setting

# Parameters of the arrivals that one workload alone reads.
OF_WORKLOAD = {
    **dict.fromkeys(("burst_factor", "burst_mean_s", "calm_mean_s"), "mmpp"),
    "gap_cv": "gamma",
    "diurnal_swing": "diurnal",
}
DEFAULT_LOAD = 0.75  # where neither load nor arrival rate is given, and the workload has no rate of its own


@dataclasses.dataclass(frozen=True, eq=False)
class CellGroup:
    """The cells of one program: their fleets have equally many experts and slots."""

    serving: ServingConfig
    source: LaneSource
    cell: np.ndarray  # [C] int64, numbers of the cells in the whole grid, in the order they are run
    numbers: CellNumbers  # NumPy leaves [C] and [C, N]


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """All cells: every fleet at every combination of the axes' values, fleets slowest."""

    fleets: tuple[Setting, ...]
    axes: tuple[Axis, ...]
    values: np.ndarray  # [C, A] float64, by cell and axis
    fleet: np.ndarray  # [C] int64, index of the cell's fleet
    arrival_rate_per_s: np.ndarray  # [C] float64, as swept, or from the load
    capacity_per_s: np.ndarray  # [C] float64, requests / s, of the cell's fleet on its own requests
    limits: ServiceLimits  # leaves [C] float64
    groups: tuple[CellGroup, ...]

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return len(self.fleet)


def build_grid(
    fleets: Sequence[Setting],
    axes: Sequence[Axis],
    scheduler: str,
    draws: CaseConfig,
    worlds: SweptWorlds | None = None,
    prefix_entries: int = 0,
) -> Grid:
    """Work out the numbers of every cell; requests are not drawn but for what is known of their lengths.

    Args:
      fleets: one or more, each with its limit for where it is not swept.
      axes: checked by ``check_axes``.
      scheduler: of all experts.
      draws: one workload, the seeds, and the numbers of what is not swept.
      worlds: what routers know and how servers err; None = everything, and not at all.
      prefix_entries: of every expert's prefix cache; with one the workload is "conversation"; 0 = no cache.

    Raises:
      InputError: an expert that a fleet does not have, a profile that no fleet may have.
    """
    points = multiply_out(axes)
    turns = [_conversations(fleet.source, draws, cached=prefix_entries > 0) for fleet in fleets]
    parts = [
        _numbers_of(place, fleet, axes, points, scheduler, draws, turns[place])
        for place, fleet in enumerate(fleets)
    ]
    if worlds is not None:
        realities = [worlds.realities(fleet.fleet.names, axes, points) for fleet in fleets]
        parts = [part.in_reality(reality) for part, reality in zip(parts, realities, strict=True)]
    count, nested = len(points), max(len(each.prefix_path or ()) if each else 0 for each in turns)
    by_shape: dict[tuple[ServingConfig, Any], list[int]] = {}
    for place, part in enumerate(parts):
        profile = part.numbers.known.profile
        shape = ServingConfig(
            fleets[place].fleet.num_experts,
            int(np.max(profile.max_running)),
            int(np.max(profile.max_waiting)),
            scheduler,
            prefix_entries,
            nested,
        )
        by_shape.setdefault((shape, jax.tree.structure(profile)), []).append(place)
    groups = []
    for (serving, _), places in by_shape.items():
        numbers = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[parts[p].numbers for p in places])
        numbers = dataclasses.replace(numbers, fleet=np.repeat(np.arange(len(places), dtype=np.int32), count))
        cell = np.concatenate([np.arange(count) + place * count for place in places])
        # Neighbours share a block, whose event loop waits for the most crowded of them.
        crowded = np.concatenate([parts[p].rate_per_s / parts[p].capacity_per_s for p in places])
        order = np.lexsort((crowded, numbers.fleet))
        source = _joined_source([fleets[p].source for p in places], draws.workloads[0])
        talk = [each for each in (turns[p] for p in places) if each is not None]
        if talk:
            joined = jax.tree.map(lambda *leaves: np.stack(leaves), *talk)
            source = dataclasses.replace(source, conversations=joined)
        groups.append(
            CellGroup(serving, source, cell[order], jax.tree.map(lambda leaf, o=order: leaf[o], numbers))
        )
    levels = [part.numbers.known.limits for part in parts]
    limits = jax.tree.map(lambda *leaves: np.concatenate(leaves).astype(np.float64), *levels)
    return Grid(
        fleets=tuple(fleets),
        axes=tuple(axes),
        values=np.tile(points, (len(fleets), 1)),
        fleet=np.repeat(np.arange(len(fleets)), count),
        arrival_rate_per_s=np.concatenate([part.rate_per_s for part in parts]),
        capacity_per_s=np.concatenate([part.capacity_per_s for part in parts]),
        limits=limits,
        groups=tuple(groups),
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    """The cells of one fleet."""

    numbers: CellNumbers
    rate_per_s: np.ndarray  # [C] float64
    capacity_per_s: np.ndarray  # [C] float64

    def in_reality(self, reality: Reality) -> _Part:
        """Return the cells with telemetry and faults, leaves [C, ...]."""
        return dataclasses.replace(self, numbers=dataclasses.replace(self.numbers, reality=reality))


def _numbers_of(
    place: int,
    swept: Setting,
    axes: Sequence[Axis],
    points: np.ndarray,
    scheduler: str,
    draws: CaseConfig,
    turns: Conversations | None,
) -> _Part:
    count = len(points)
    column = {axis.name: points[:, index] for index, axis in enumerate(axes)}

    def scalar(name: str, default: float | None) -> Any:
        return np.asarray(column.get(name, np.full(count, default)), np.float32)

    profile = with_context_limit(scheduler, _profiles(swept, axes, points), np)
    error_level = scalar("error_level", draws.error_level)
    length_log_std: Any = np.zeros((count, swept.fleet.num_experts), np.float32)
    capacity = np.zeros(count)
    for level in np.unique(error_level):
        mine = np.flatnonzero(error_level == level)
        contents = _contents(swept.source, draws, float(level))
        if turns is not None:
            contents = turns.put_into(contents)
        known = known_length_log_std(_at_level(swept.source, float(level)), contents)
        length_log_std[mine] = known[:1] if draws.replicas else known
        capacity[mine] = _capacities(jax.tree.map(lambda leaf, m=mine: leaf[m], profile), contents)
    rate: Any = column.get("arrival_rate")
    if rate is None:
        load = column.get("load")
        workload = draws.workloads[0]
        if load is None and workload in RECORDED:
            rate = np.full(count, load_rate_profile(workload).mean_rate_per_s)
        else:
            rate = (DEFAULT_LOAD if load is None else load) * capacity
    levels: dict[str, Any] = {
        name: None if name not in column and default_s is None else scalar(name, default_s)
        for name, default_s in vars(swept.limits).items()
    }
    numbers = CellNumbers(
        fleet=scalar("fleet", place).astype(np.int32),
        known=KnownFleet(profile, ServiceLimits(**levels), length_log_std),
        arrival_rate_per_s=rate.astype(np.float32),
        **{name: scalar(name, getattr(draws, name)) for name in OF_WORKLOAD},
        error_level=error_level,
        quality_bias=scalar("quality_bias", 0.0),
        length_bias_log=scalar("length_bias_log", 0.0),
        greedy=GreedyParams(**{name: scalar(name, np.nan) for name in GreedyParams.__dataclass_fields__}),
    )
    return _Part(numbers, np.asarray(rate, np.float64), capacity)


def _profiles(swept: Setting, axes: Sequence[Axis], points: np.ndarray) -> FleetProfile:
    """Return the profile of each cell, leaves [C, N], each checked as a fleet's file is."""
    fleet, count = swept.fleet, len(points)
    leaves = vars(
        jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], count, axis=0), fleet.profile)
    ).copy()
    about = [index for index, axis in enumerate(axes) if axis.profile_field is not None]
    for index in about:
        axis, values = axes[index], points[:, index, None]
        field = axis.profile_field
        assert field is not None
        if fleet.profile.decode_knots and field in KNOTS_REPLACE:
            fault = (
                f"the decode times of fleet {swept.name} are given by batch size, which {field} is no part of"
            )
            remedy = f"sweep another field, or remove the columns {', '.join(KNOT_COLUMNS)} from its file"
            raise input_error(fault, field=axis.name, remedy=remedy)
        if axis.expert is None:
            experts: Any = slice(None)
        elif axis.expert in fleet.names:
            experts = [fleet.names.index(axis.expert)]
        else:
            fault = f"fleet {swept.name} has no expert {axis.expert!r}{near_match(axis.expert, fleet.names)}"
            raise input_error(fault, field=axis.name, remedy=f"use one of {', '.join(fleet.names)}")
        was = leaves[field]
        if was is None:  # an optional column that the fleet's file does not have
            was = leaves[field] = np.full((count, fleet.num_experts), NO_LIMIT, np.int32)
        if axis.is_scale and np.any(was[:, experts] == NO_LIMIT):
            fault, remedy = f"fleet {swept.name} has no {field} to scale", "give values, without the *"
            raise input_error(fault, field=axis.name, remedy=remedy)
        new = was[:, experts] * values if axis.is_scale else np.broadcast_to(values, was[:, experts].shape)
        was[:, experts] = np.rint(new) if field in INTEGER_COLUMNS else new
    swept_profile = FleetProfile(**leaves)
    distinct, first = np.unique(points[:, about], axis=0, return_index=True)
    for values, cell in zip(distinct, first, strict=True):
        try:
            validate_fleet(Fleet(fleet.names, jax.tree.map(lambda leaf, c=cell: leaf[c], swept_profile)))
        except InputError as error:
            at = ", ".join(f"{axes[i].name} = {value:g}" for i, value in zip(about, values, strict=True))
            raise InputError(f"fleet {swept.name} at {at or 'its own profile'}: {error}") from None
    return swept_profile


def _contents(source: Source, draws: CaseConfig, level: float) -> RequestTable:
    """Return the requests of all seeds, as every cell of this error level draws them."""
    keys = jax.random.split(jax.random.key(draws.seed), draws.seeds)
    recorded = draws.workloads[0] in RECORDED and isinstance(source, SyntheticParams)
    histogram = load_length_histogram(draws.workloads[0]) if recorded else None
    drawn = draw_contents(keys, _at_level(source, level), histogram, draws.num_requests)
    return as_replicas(drawn) if draws.replicas else drawn


def _conversations(source: Source, draws: CaseConfig, *, cached: bool) -> Conversations | None:
    """Return the turns of all seeds, NumPy leaves [S, T]: the same in every cell, since lengths are."""
    if draws.workloads[0] != CONVERSATION:
        return None
    table = conversations_of(_contents(source, draws, draws.error_level), draws)
    table = table if cached else without_prefixes(table)
    return Conversations(**{name: getattr(table, name) for name in Conversations.__dataclass_fields__})


def _at_level(source: Source, level: float) -> Source:
    if isinstance(source, SyntheticParams):
        return dataclasses.replace(source, error_level=jnp.float32(level))
    return source


def _capacities(profile: FleetProfile, contents: RequestTable) -> np.ndarray:
    """Return the capacity of each cell's fleet, [C] requests / s; equal profiles are worked out once."""
    flat = np.concatenate([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(profile)], axis=1)
    _, first, which = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    each = [
        float(capacity_per_s(jax.tree.map(lambda leaf, c=cell: leaf[c], profile), contents).sum())
        for cell in first
    ]
    return np.array(each)[which.reshape(-1)]


def _joined_source(sources: Sequence[Source], workload: str) -> LaneSource:
    """Return the sources of fleets with equally many experts as one; their names are left out."""
    if isinstance(sources[0], NamedTable):
        tables = [source.table for source in sources if isinstance(source, NamedTable)]
        return LaneSource(None, jax.tree.map(lambda *leaves: np.stack(leaves), *tables), None)
    figures = [source for source in sources if isinstance(source, SyntheticParams)]
    nameless = tuple("" for _ in figures[0].expert_names)
    figures = [dataclasses.replace(each, expert_names=nameless) for each in figures]
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *figures)
    histogram = load_length_histogram(workload) if workload in RECORDED else None
    return LaneSource(stacked, None, histogram)


def axis_columns(grid: Grid) -> Mapping[str, np.ndarray]:
    """Return the value of every axis in each cell, [C], by the axis' name."""
    return {axis.name: grid.values[:, index] for index, axis in enumerate(grid.axes)}
