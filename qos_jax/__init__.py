"""QoS-aware routing of requests among LLM servers at the network edge, in JAX.

Names are imported when they are first used, so that ``import qos_jax`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qos_jax.evaluation.comparison import evaluate as evaluate
    from qos_jax.policies import saved
    from qos_jax.policies.compiled import compile_router as compile_router
    from qos_jax.policies.han import HANConfig as HANConfig
    from qos_jax.policies.han import HANEncoder as HANEncoder
    from qos_jax.policies.han import HANLayer as HANLayer
    from qos_jax.policies.registry import policy as policy
    from qos_jax.routing.adapters import GymnaxEnv as GymnaxEnv
    from qos_jax.routing.adapters import GymnaxEnvV1 as GymnaxEnvV1
    from qos_jax.routing.adapters import stoa_environment as stoa_environment
    from qos_jax.routing.environment import RoutingEnvironment as RoutingEnvironment
    from qos_jax.routing.make import make as make
    from qos_jax.routing.params import EnvConfig as EnvConfig
    from qos_jax.routing.params import EnvParams as EnvParams
    from qos_jax.training.plan import make_train as make_train
    from qos_jax.training.train_config import TrainConfig as TrainConfig
    from qos_jax.workload.fleet import read_fleet as read_fleet
    from qos_jax.workload.profiles import registered_fleets as registered_fleets
    from qos_jax.workload.trace import read_trace as read_trace

    load_router = saved.trained_router

__version__ = "0.1.0"

# Name -> module, and the name there if it is another; by importance.
_WHERE = {
    "make": "routing.make",
    "registered_fleets": "workload.profiles",
    "policy": "policies.registry",
    "load_router": "policies.saved:trained_router",
    "evaluate": "evaluation.comparison",
    "make_train": "training.plan",
    "TrainConfig": "training.train_config",
    "compile_router": "policies.compiled",
    "RoutingEnvironment": "routing.environment",
    "EnvConfig": "routing.params",
    "EnvParams": "routing.params",
    "GymnaxEnv": "routing.adapters",
    "GymnaxEnvV1": "routing.adapters",
    "stoa_environment": "routing.adapters",
    "HANEncoder": "policies.han",
    "HANLayer": "policies.han",
    "HANConfig": "policies.han",
    "read_fleet": "workload.fleet",
    "read_trace": "workload.trace",
}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _WHERE[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), there or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__]
