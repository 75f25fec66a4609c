"""What stays the same in a world of routers and faults: its static choices and all its traced numbers."""

from __future__ import annotations

from flax import struct

from qos_jax.routing.faults import Faults
from qos_jax.routing.observation import KnownFleet
from qos_jax.routing.telemetry import Telemetry, TelemetryConfig
from qos_jax.serving import ServingConfig


@struct.dataclass
class WorldParams:
    """A world as all its functions read it; leaves are traced, ``config`` and ``choices`` are static."""

    config: ServingConfig = struct.field(pytree_node=False)  # sizes and the scheduler
    choices: TelemetryConfig = struct.field(pytree_node=False)  # the view, and what routers know
    known: KnownFleet  # profile, limits and length error as known beforehand
    telemetry: Telemetry  # its numbers
    faults: Faults | None  # how servers err; None = not at all
