"""The device placement of a learner's state: environments sharded, all else replicated."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qos_jax.devices import LANES
from qos_jax.learning.rollout import EnvLanes


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Return the sharding of each leaf of a learner's state.

    Leaves of :class:`EnvLanes` with a leading axis [B] are sharded over it. Parameters, optimiser, keys and
    what is kept of earlier updates are replicated.

    Args:
      state: arrays or their shapes.
      mesh: with the axis ``LANES``.

    Raises:
      ValueError: the devices do not divide B.
    """

    def of_part(part: Any) -> Any:
        if not isinstance(part, EnvLanes):
            return NamedSharding(mesh, PartitionSpec())
        count = part.overdue.shape[0]
        if count % mesh.size:
            raise ValueError(f"{count} environments cannot be shared out evenly to {mesh.size} devices")

        lanes, whole = NamedSharding(mesh, PartitionSpec(LANES)), NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: lanes if leaf.shape[:1] == (count,) else whole, part)

    return jax.tree.map(of_part, state, is_leaf=lambda part: isinstance(part, EnvLanes))
