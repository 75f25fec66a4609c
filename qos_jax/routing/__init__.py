"""The decision process: route each arriving request to one of N experts."""

from qos_jax.routing import exported as exported  # registers the pytrees
from qos_jax.routing.adapters import GymnaxEnv, GymnaxEnvV1, stoa_environment
from qos_jax.routing.environment import EnvState, RoutingEnvironment, StepInfo, TimeStep
from qos_jax.routing.fleet_state import FleetState, Outcome, Request
from qos_jax.routing.impact import Impact, paper_impact, projected_impact, qos_in_flight, true_impact
from qos_jax.routing.make import make
from qos_jax.routing.observation import KnownFleet, Observation, TrueObservation
from qos_jax.routing.params import EnvConfig, EnvParams, Episode, make_params

__all__ = [
    "make",
    "RoutingEnvironment",
    "EnvConfig",
    "EnvParams",
    "make_params",
    "Episode",
    "EnvState",
    "Observation",
    "TrueObservation",
    "KnownFleet",
    "TimeStep",
    "StepInfo",
    "FleetState",
    "Request",
    "Outcome",
    "GymnaxEnv",
    "GymnaxEnvV1",
    "stoa_environment",
    "Impact",
    "projected_impact",
    "paper_impact",
    "true_impact",
    "qos_in_flight",
]
