"""Register the environment's pytrees with ``jax.export``, so that exported steps can be written to files."""

from __future__ import annotations

import json

from jax import export

from qos_jax.routing.belief import Belief
from qos_jax.routing.demand import Demand
from qos_jax.routing.environment import EnvState, StepInfo, TimeStep
from qos_jax.routing.faults import Faults, FaultState
from qos_jax.routing.fleet_state import FleetState, Outcome, Passed, Request, Routed
from qos_jax.routing.newcomers import Newcomer
from qos_jax.routing.observation import BeliefNotes, KnownFleet, Observation, TrueObservation
from qos_jax.routing.params import EnvParams, Episode
from qos_jax.routing.routers import Routers
from qos_jax.routing.telemetry import Telemetry
from qos_jax.routing.world_environment import EnvWorld
from qos_jax.routing.world_step import AtHand, Retries
from qos_jax.serving import DecodeKnot, FleetProfile, ServiceLimits, ServingState
from qos_jax.workload.arrivals import ArrivalProcess, ArrivalState, Recording
from qos_jax.workload.request_table import RequestTable

_STATES = (EnvState, FleetState, ServingState, Demand, Request, ArrivalState, FaultState)
_WORLDS = (EnvWorld, Routers, Belief, Newcomer, Retries, AtHand, BeliefNotes)
_FLEETS = (FleetProfile, DecodeKnot, ServiceLimits, Faults, Telemetry)
_PARAMETERS = (EnvParams, RequestTable, ArrivalProcess, Recording, Episode)
_RESULTS = (TimeStep, StepInfo, Routed, Passed, Outcome, Observation, TrueObservation, KnownFleet)

# Static fields are numbers and None, which JSON keeps. Names are stored in files: without the module.
for _kind in (*_STATES, *_WORLDS, *_FLEETS, *_PARAMETERS, *_RESULTS):
    export.register_pytree_node_serialization(
        _kind,
        serialized_name=f"qos_jax.{_kind.__name__}",
        serialize_auxdata=lambda static: json.dumps(static).encode(),
        deserialize_auxdata=lambda stored: tuple(json.loads(bytes(stored))),
    )
