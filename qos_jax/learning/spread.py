"""Put a learner's state on several devices: environments shared out, all else a copy on each."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qos_jax.devices import LANES
from qos_jax.learning.rollout import EnvLanes


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Return where each leaf of a learner's state (or of its shapes) belongs.

    Leaves of :class:`EnvLanes` with a leading axis [B] are shared out, a part on each device. Parameters,
    optimiser, keys and what is kept of earlier updates are whole on each.

    Raises:
      ValueError: B does not divide evenly.
    """

    def of_part(part: Any) -> Any:
        if not isinstance(part, EnvLanes):
            return NamedSharding(mesh, PartitionSpec())
        count = part.overdue.shape[0]
        if count % mesh.size:
            raise ValueError(f"{count} environments cannot be shared out evenly to {mesh.size} devices")

        def of_leaf(leaf: Any) -> NamedSharding:
            lanes = leaf.ndim > 0 and leaf.shape[0] == count
            return NamedSharding(mesh, PartitionSpec(LANES) if lanes else PartitionSpec())

        return jax.tree.map(of_leaf, part)

    return jax.tree.map(of_part, state, is_leaf=lambda part: isinstance(part, EnvLanes))
