"""How an LLM server works through its requests: continuous batching in closed form."""

from qos_jax.serving.advance import Progress, advance
from qos_jax.serving.arrive import SlotAssignment, assign_slot, enqueue, evicted_content, insert
from qos_jax.serving.context_limit import cut_at_limit, served_output_tokens, with_context_limit
from qos_jax.serving.limits import LIMITS, ServiceLimits, as_limits
from qos_jax.serving.prefix import PrefixHit, enqueue_prefix, forget, recall
from qos_jax.serving.profile import DecodeKnot, FleetProfile, slowed
from qos_jax.serving.state import (
    SCHEDULERS,
    PrefixLevel,
    PrefixTable,
    ServingConfig,
    ServingState,
    empty_state,
    empty_table,
)

__all__ = [
    "ServingConfig",
    "ServingState",
    "FleetProfile",
    "DecodeKnot",
    "slowed",
    "ServiceLimits",
    "LIMITS",
    "as_limits",
    "empty_state",
    "advance",
    "Progress",
    "assign_slot",
    "SlotAssignment",
    "enqueue",
    "insert",
    "evicted_content",
    "with_context_limit",
    "served_output_tokens",
    "cut_at_limit",
    "recall",
    "enqueue_prefix",
    "forget",
    "PrefixHit",
    "PrefixLevel",
    "PrefixTable",
    "empty_table",
    "SCHEDULERS",
]
