"""Policies: from what a router may see to the expert it picks."""

from qos_jax.policies.oracles import upper_bound
from qos_jax.policies.registry import BOUNDS, HEURISTICS, ORACLES, REPLAYS, policy
from qos_jax.policies.types import Oracle, Policy, Router

__all__ = [
    "BOUNDS",
    "HEURISTICS",
    "ORACLES",
    "REPLAYS",
    "Oracle",
    "Policy",
    "Router",
    "policy",
    "upper_bound",
]
