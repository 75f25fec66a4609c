"""The environment under Stoa's interface; imported only where Stoa is installed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import stoa
from flax import struct

from qos_jax.routing.adapters import GymnaxEnv
from qos_jax.routing.environment import EnvState
from qos_jax.routing.params import EnvParams


@struct.dataclass
class StoaState:
    """A state with the key of its future, as Stoa's environments keep it."""

    env_state: EnvState
    rng_key: jax.Array  # [] key


class StoaEnvironment(stoa.Environment):
    """Routing of requests, one decision a step, the observation one flat row; see ``stoa_environment``."""

    def __init__(self, inner: GymnaxEnv) -> None:
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoaEnvironment) and self.inner == other.inner

    def __hash__(self) -> int:
        return hash((StoaEnvironment, self.inner))

    def reset(self, rng_key: jax.Array, env_params: EnvParams | None = None) -> tuple[StoaState, Any]:
        """Return the state at the first arrival, and its time step."""
        reset_key, own_key = jax.random.split(rng_key)
        observation, state = self.inner.reset(reset_key, env_params)
        first = stoa.TimeStep(
            step_type=stoa.StepType.FIRST,
            reward=jnp.float32(0.0),
            discount=jnp.float32(1.0),
            observation=observation,
            extras={"qos": jnp.float32(0.0)},
        )
        return StoaState(state, own_key), first

    def step(
        self, state: StoaState, action: jax.Array, env_params: EnvParams | None = None
    ) -> tuple[StoaState, Any]:
        """Return the state reached, and its time step."""
        step_key, own_key = jax.random.split(state.rng_key)
        params = self.inner.default_params if env_params is None else env_params
        observation, reached, reward, _, info = self.inner.step_env(step_key, state.env_state, action, params)
        ended = jnp.where(info["truncated"], stoa.StepType.TRUNCATED, stoa.StepType.MID)
        reached_step = stoa.TimeStep(
            step_type=jnp.where(info["terminated"], stoa.StepType.TERMINATED, ended),
            reward=reward,
            discount=info["discount"],
            observation=observation,
            extras={"qos": info["qos"]},
        )
        return StoaState(reached, own_key), reached_step

    def observation_space(self, env_params: EnvParams | None = None) -> Any:
        """Rows of as many numbers as an observation has."""
        return stoa.ArraySpace(self.inner.observation_space(env_params).shape, jnp.float32, "observation")

    def action_space(self, env_params: EnvParams | None = None) -> Any:
        """The experts, and one more to drop if allowed."""
        return stoa.DiscreteSpace(self.inner.num_actions, jnp.int32, "action")

    def state_space(self, env_params: EnvParams | None = None) -> Any:
        """Not described: a state is a pytree of arrays."""
        raise NotImplementedError("a routing state is a pytree of arrays, which Stoa has no space for")
