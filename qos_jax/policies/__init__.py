"""Policies: from an observation to the expert that serves the request."""

from qos_jax.policies.compiled import compile_router
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.greedy_params import GreedyParams, greedy_params, load_aware_params
from qos_jax.policies.han import HANConfig, HANEncoder
from qos_jax.policies.learned import learned_policy
from qos_jax.policies.oracles import upper_bound
from qos_jax.policies.registry import BOUNDS, HEURISTICS, ORACLES, REPLAYS, policy
from qos_jax.policies.types import Oracle, Policy, Router

__all__ = [
    "policy",
    "Policy",
    "Router",
    "Oracle",
    "HEURISTICS",
    "ORACLES",
    "BOUNDS",
    "REPLAYS",
    "learned_policy",
    "NetworkConfig",
    "HANConfig",
    "HANEncoder",
    "compile_router",
    "GreedyParams",
    "greedy_params",
    "load_aware_params",
    "upper_bound",
]
