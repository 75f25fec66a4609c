"""The worlds of a sweep's cells: what routers know and how servers err, with numbers of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from qos_jax.errors import input_error
from qos_jax.routing.telemetry import TelemetryConfig
from qos_jax.simulation.reality import Reality
from qos_jax.simulation.world_config import DEFAULT_VIEWS, DOWN, FAULTY, WORLD_NUMBERS, WorldConfig
from qos_jax.sweep.axes import ROUTER_SHARE, Axis

# Axes that one of these must be set for, or swept: else every cell would be the same.
_NEEDS = {
    "drift_time_s": ("drift_log_std",),
    "slowdown_length_s": ("slowdown_per_s",),
    "slowdown_pace": ("slowdown_per_s",),
    "outage_length_s": ("outage_per_s",),
    "detection_delay_s": ("outage_per_s",),
    "failure_delay_s": ("outage_per_s",),
}
_OF_SCRAPES = ("scrape_period_s", "scrape_jitter", "scrape_failure")


@dataclasses.dataclass(frozen=True)
class SweptWorlds:
    """The worlds that policies run in: one for each view, and in each the numbers of every cell."""

    config: WorldConfig  # with the numbers of what is not swept
    axes: tuple[Axis, ...]  # of the worlds' numbers alone
    views: tuple[str, ...]

    @property
    def choices(self) -> dict[str, TelemetryConfig]:
        """What routers know, by view."""
        return {view: self.config.choices(view) for view in self.views}

    @property
    def has_faults(self) -> bool:
        """Whether servers err in any cell: then all cells share a program in which they may."""
        return self.config.has_faults or any(axis.name in FAULTY for axis in self.axes)

    def realities(self, names: Sequence[str], axes: Sequence[Axis], points: np.ndarray) -> Reality:
        """Return telemetry and faults of each cell of a fleet, NumPy leaves [C, ...].

        Args:
          names: of its N experts.
          axes: all of the sweep.
          points: [C, A], their values.

        Raises:
          InputError: a scripted event that names no expert of the fleet.
        """
        mine = [index for index, axis in enumerate(axes) if axis in self.axes]
        distinct, row = np.zeros((1, 0)), np.zeros(len(points), np.int64)
        if mine:
            distinct, row = np.unique(points[:, mine], axis=0, return_inverse=True)
        each = [
            self._at([axes[index].name for index in mine], values).reality(names, has_faults=self.has_faults)
            for values in distinct.tolist()
        ]
        stacked: Reality = jax.tree.map(lambda *leaves: np.stack(leaves), *map(jax.device_get, each))
        return jax.tree.map(lambda leaf: leaf[row.reshape(-1)], stacked)

    def _at(self, names: Sequence[str], values: Sequence[float]) -> WorldConfig:
        """Return the configuration with those numbers of a cell that are swept."""
        numbers: dict[str, Any] = dict(zip(names, values, strict=True))
        shares = list(self.config.router_shares or (1.0,) * self.config.num_routers)
        for name in [name for name in numbers if name.startswith(ROUTER_SHARE)]:
            shares[int(name.removeprefix(ROUTER_SHARE)) - 1] = numbers.pop(name)
        return dataclasses.replace(self.config, router_shares=tuple(shares), **numbers)


def swept_worlds(config: WorldConfig, axes: Sequence[Axis]) -> SweptWorlds | None:
    """Return the worlds of a sweep; None where routers see everything and servers have no faults.

    Raises:
      InputError: an axis of a world that nothing in the sweep reads.
    """
    mine = tuple(axis for axis in axes if axis.name in WORLD_NUMBERS or axis.name.startswith(ROUTER_SHARE))
    views = config.views or (DEFAULT_VIEWS if config.is_set or mine else ())
    if not views:
        return None
    worlds = SweptWorlds(config, mine, views)
    _check_readers(worlds)
    return worlds


def _check_readers(worlds: SweptWorlds) -> None:
    config, given = worlds.config, {axis.name for axis in worlds.axes}
    scripted_outage = any(event.endswith(f":{DOWN}") for event in config.fault)
    for name in sorted(given):
        if name.startswith(ROUTER_SHARE):
            number = int(name.removeprefix(ROUTER_SHARE))
            if number > config.num_routers or config.num_routers == 1:
                fault = f"there is no router {number} beside others: {config.num_routers} share the fleet"
                raise input_error(fault, field=name, remedy=f"give --routers={max(number, 2)} or more")
        needs = _NEEDS.get(name, ())
        met = any(getattr(config, need) > 0 or need in given for need in needs)
        if needs and not met and not (needs == ("outage_per_s",) and scripted_outage):
            fault, remedy = f"matters only with {needs[0]}", f"give --{needs[0]}, or sweep it"
            raise input_error(fault, field=name, remedy=remedy)
        if name in _OF_SCRAPES and not any(choices.scrapes for choices in worlds.choices.values()):
            fault = f"is read by views that scrape alone, and there are {', '.join(worlds.views)}"
            raise input_error(fault, field=name, remedy="give --views=twin")
        if name in _OF_SCRAPES[1:] and not (config.scrape_period_s > 0 or "scrape_period_s" in given):
            fault, remedy = "matters only where scrapes are not live", "give --scrape_period_s, or sweep it"
            raise input_error(fault, field=name, remedy=remedy)
