"""How an LLM server works through its requests: continuous batching in closed form."""

from qos_jax.serving.advance import Progress, advance
from qos_jax.serving.arrive import SlotAssignment, assign_slot, enqueue, evicted_content, insert
from qos_jax.serving.profile import FleetProfile
from qos_jax.serving.state import SCHEDULERS, ServingConfig, ServingState, empty_state

__all__ = [
    "FleetProfile",
    "ServingConfig",
    "ServingState",
    "SCHEDULERS",
    "empty_state",
    "assign_slot",
    "enqueue",
    "advance",
    "Progress",
    "SlotAssignment",
    "insert",
    "evicted_content",
]
