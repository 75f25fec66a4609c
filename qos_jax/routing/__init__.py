"""The decision process: route each arriving request to one of N experts."""

from qos_jax.routing.adapters import GymnaxEnv, GymnaxEnvV1, stoa_environment
from qos_jax.routing.environment import EnvState, RoutingEnvironment, StepInfo, TimeStep
from qos_jax.routing.fleet_state import FleetState, Outcome, Request
from qos_jax.routing.impact import Impact, paper_impact, projected_impact, qos_in_flight, true_impact
from qos_jax.routing.observation import KnownFleet, Observation, TrueObservation
from qos_jax.routing.params import EnvConfig, EnvParams, Episode, make_params

__all__ = [
    "EnvConfig",
    "EnvParams",
    "EnvState",
    "Episode",
    "FleetState",
    "GymnaxEnv",
    "GymnaxEnvV1",
    "Impact",
    "KnownFleet",
    "Observation",
    "Outcome",
    "Request",
    "RoutingEnvironment",
    "StepInfo",
    "TimeStep",
    "TrueObservation",
    "make_params",
    "paper_impact",
    "projected_impact",
    "qos_in_flight",
    "stoa_environment",
    "true_impact",
]
