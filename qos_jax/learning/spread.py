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
      state: of a learner, arrays or their shapes.
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

        def of_leaf(leaf: Any) -> NamedSharding:
            lanes = leaf.ndim > 0 and leaf.shape[0] == count
            return NamedSharding(mesh, PartitionSpec(LANES) if lanes else PartitionSpec())

        return jax.tree.map(of_leaf, part)

    return jax.tree.map(of_part, state, is_leaf=lambda part: isinstance(part, EnvLanes))
