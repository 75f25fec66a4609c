"""A router ahead-of-time compiled for service: from an observation on the host to the chosen expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qos_jax.policies.types import Policy
from qos_jax.routing.observation import Observation

# An observation with NumPy (or JAX) leaves of the shapes and dtypes of the example -> 0..N-1, or N to drop.
Decide = Callable[[Observation], int]


def compile_router(policy: Policy, example: Observation, seed: int = 0) -> Decide:
    """Compile a router for observations like ``example``.

    Parameters are put on the device once; each call transfers an observation there and waits for the action.
    With a checkpoint's weights: ``compile_router(learned_policy("mine", config, load_policy(folder)[0]),
    example)``.

    Args:
      policy: a router, not an oracle.
      example: an observation, for its shapes and dtypes.
      seed: of the router's own draws, together with the observation's step.

    Returns:
      The function. It raises TypeError on an observation of other shapes or dtypes.

    Raises:
      ValueError: an oracle, which sees what no server knows.
    """
    router = policy.router
    if router is None:
        raise ValueError(f"{policy.name!r} is an oracle: no server knows what it sees")

    def route(params: Any, seen: Observation) -> jax.Array:
        return router(params, jax.random.fold_in(jax.random.key(seed), seen.step), seen)

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), example)
    program = jax.jit(route).lower(policy.params, shapes).compile()
    params = jax.device_put(policy.params)
    return lambda seen: int(program(params, seen))
