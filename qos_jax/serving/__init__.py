"""How an LLM server works through its requests: continuous batching in closed form."""

from qos_jax.serving.advance import Progress, advance
from qos_jax.serving.arrive import Placement, arrive, evict, insert, place
from qos_jax.serving.profile import FleetProfile
from qos_jax.serving.state import SCHEDULERS, ServingConfig, ServingState, empty_state

__all__ = [
    "SCHEDULERS",
    "FleetProfile",
    "Placement",
    "Progress",
    "ServingConfig",
    "ServingState",
    "advance",
    "arrive",
    "empty_state",
    "evict",
    "insert",
    "place",
]
