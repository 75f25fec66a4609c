"""The environment under other libraries' interfaces: gymnax before and since 1.0, and Stoa."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.errors import input_error
from qos_jax.routing.environment import EnvState, RoutingEnvironment, TimeStep
from qos_jax.routing.graph import graph_features
from qos_jax.routing.impact import projected_impact
from qos_jax.routing.observation import Observation
from qos_jax.routing.params import EnvParams

# Std of log latency per token for what the projection cannot know, as that of the greedy routers.
_MARGIN = 0.3
Info = dict[str, jax.Array]


def flat_observation(seen: Observation, with_slots: bool = False) -> jax.Array:
    """What a router sees as one row of finite numbers about 1 in size, [F] float32.

    The columns of ``graph.py``: of the request, of each expert, of each pair, and with ``with_slots`` those
    of each request in flight (0 where there is none) and whether it runs.
    """
    graph = graph_features(seen, projected_impact(seen, jnp.float32(_MARGIN)))
    parts = [graph.arrived, graph.expert, graph.pair]
    if with_slots:
        parts += [graph.slot, graph.running_mask.astype(jnp.float32)]
    return jnp.concatenate([part.reshape(-1) for part in parts])


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers 0..n-1: gymnax's space of that name, where gymnax is not installed."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = jnp.int32

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw one evenly."""
        return jax.random.randint(key, self.shape, 0, self.n, self.dtype)

    def contains(self, value: Any) -> jax.Array:
        """Whether ``value`` is one of them, [] bool."""
        return jnp.all((jnp.asarray(value) >= 0) & (jnp.asarray(value) < self.n))


@dataclasses.dataclass(frozen=True)
class Box:
    """Arrays between two bounds: gymnax's space of that name, where gymnax is not installed."""

    low: float
    high: float
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw one evenly; the bounds must be finite."""
        return jax.random.uniform(key, self.shape, self.dtype, self.low, self.high)

    def contains(self, value: Any) -> jax.Array:
        """Whether all of ``value`` lies between the bounds, [] bool."""
        return jnp.all((jnp.asarray(value) >= self.low) & (jnp.asarray(value) <= self.high))


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed by identity: jit takes it as static
class GymnaxEnv:
    """The interface of gymnax before 1.0, five values a step; auto-resetting, the observation one flat row.

    Nothing of gymnax is needed, so trainers written for it (purejaxrl, rejax) take it as it is; where it is
    installed, spaces are its own.

    - Observation: [F] float32, :func:`flat_observation`.
    - Action: int32 in 0..num_actions-1.
    - Reward: float32, of the environment's kind.
    - End: ``done`` is terminated or truncated. The state and observation returned are then those of a new
      episode; ``info`` has ``terminated``, ``truncated``, ``discount`` (0 if terminated, else 1),
      ``final_observation`` (of the state reached, whether it is final or not) and ``qos`` (completed in it).
    """

    env: RoutingEnvironment
    default_params: EnvParams  # used where a call gives none
    with_slots: bool = False  # as of ``flat_observation``

    @property
    def name(self) -> str:
        """The environment's name."""
        return "qos_routing"

    @property
    def num_actions(self) -> int:
        """N experts, and one more to drop if allowed."""
        return self.env.config.num_actions

    def reset(self, key: jax.Array, params: EnvParams | None = None) -> tuple[jax.Array, EnvState]:
        """Return the observation and the state at the first arrival of a new episode."""
        return self.reset_env(key, self._or_default(params))

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, EnvState]:
        """As :meth:`reset`."""
        state, seen = self.env.reset(key, params)
        return flat_observation(seen, self.with_slots), state

    def step(
        self, key: jax.Array, state: EnvState, action: jax.Array, params: EnvParams | None = None
    ) -> Any:
        """Return observation, state, reward, done, info; those of a new episode where one has ended."""
        observation, reached, reward, terminated, truncated, info = self._auto_reset_step(
            key, state, action, self._or_default(params)
        )
        return observation, reached, reward, terminated | truncated, info

    def step_env(self, key: jax.Array, state: EnvState, action: jax.Array, params: EnvParams) -> Any:
        """As :meth:`step`, without the reset."""
        reached, result = self.env.step(key, state, action, params)
        observation, info = self._told(result)
        return observation, reached, result.reward, result.terminated | result.truncated, info

    def get_obs(
        self, state: EnvState, params: EnvParams | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """The observation of a state, [F] float32."""
        seen = self.env.observation(self._or_default(params), state)
        return flat_observation(seen, self.with_slots)

    def is_terminal(self, state: EnvState, params: EnvParams) -> jax.Array:
        """Whether the episode has ended at ``state``, [] bool."""
        return self._is_terminated(state, params) | (state.step >= self.env.config.max_steps)

    def discount(self, state: EnvState, params: EnvParams) -> jax.Array:
        """What is to come counts: 0 if the episode has ended at ``state``, else 1."""
        return jnp.where(self.is_terminal(state, params), jnp.float32(0.0), 1.0)

    def action_space(self, params: EnvParams | None = None) -> Any:
        """The actions."""
        return _gymnax_space("Discrete", Discrete)(self.num_actions)

    def observation_space(self, params: EnvParams | None = None) -> Any:
        """Rows of as many numbers as an observation has."""
        params = self._or_default(params)
        shape = jax.eval_shape(lambda: self.reset(jax.random.key(0), params)[0]).shape
        return _gymnax_space("Box", Box)(-jnp.inf, jnp.inf, shape, jnp.float32)

    def _or_default(self, params: EnvParams | None) -> EnvParams:
        return self.default_params if params is None else params

    def _is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array:
        if params.episode is None:
            return jnp.bool_(False)
        return state.step >= params.episode.row.shape[0]

    def _told(self, result: TimeStep) -> tuple[jax.Array, Info]:
        observation = flat_observation(result.observation, self.with_slots)
        return observation, {
            "discount": jnp.where(result.terminated, jnp.float32(0.0), 1.0),
            "terminated": result.terminated,
            "truncated": result.truncated,
            "final_observation": observation,
            "qos": jnp.sum(result.info.passed.qos),
        }

    def _auto_reset_step(self, key: jax.Array, state: EnvState, action: jax.Array, params: EnvParams) -> Any:
        step_key, reset_key = jax.random.split(key)
        reached, result = self.env.step(step_key, state, action, params)
        observation, info = self._told(result)
        done = result.terminated | result.truncated
        fresh = self.reset_env(reset_key, params)
        observation, reached = jax.tree.map(
            lambda new, old: jnp.where(done, new, old), fresh, (observation, reached)
        )
        return observation, reached, result.reward, result.terminated, result.truncated, info


class GymnaxEnvV1(GymnaxEnv):
    """The interface of gymnax since 1.0, six values a step; all else as of :class:`GymnaxEnv`."""

    def step(
        self, key: jax.Array, state: EnvState, action: jax.Array, params: EnvParams | None = None
    ) -> Any:
        """Return observation, state, reward, terminated, truncated, info."""
        return self._auto_reset_step(key, state, action, self._or_default(params))

    def step_env(self, key: jax.Array, state: EnvState, action: jax.Array, params: EnvParams) -> Any:
        """Return observation, state, reward, terminated, info; :meth:`is_truncated` is asked of the state."""
        reached, result = self.env.step(key, state, action, params)
        observation, info = self._told(result)
        return observation, reached, result.reward, result.terminated, info

    def is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array:
        """Whether the trace has ended at ``state``, [] bool."""
        return self._is_terminated(state, params)

    def is_terminal(self, state: EnvState, params: EnvParams) -> jax.Array:
        """The same: since 1.0 a time limit is no terminal state."""
        return self._is_terminated(state, params)

    def is_truncated(self, state: EnvState, params: EnvParams) -> jax.Array:
        """Whether the time limit, and not the trace's end, ended the episode at ``state``, [] bool."""
        return (state.step >= self.env.config.max_steps) & ~self._is_terminated(state, params)


@struct.dataclass
class StoaState:
    """A state with the key of its future, as Stoa's environments keep it."""

    env_state: EnvState
    rng_key: jax.Array  # [] key


def stoa_environment(env: RoutingEnvironment, default_params: EnvParams, with_slots: bool = False) -> Any:
    """Return the environment as a ``stoa.Environment``. It does not reset itself: ``AutoResetWrapper`` does.

    Args:
      env: the environment.
      default_params: used where a call gives none.
      with_slots: as of :func:`flat_observation`.

    Raises:
      InputError: Stoa is not installed.
    """
    try:
        stoa = importlib.import_module("stoa")
    except ImportError as error:
        raise input_error("Stoa is not installed", remedy="pip install 'qos_jax[stoa]'") from error
    inner = GymnaxEnv(env, default_params, with_slots)

    class StoaEnv(stoa.Environment):  # type: ignore[name-defined]
        """Routing of requests, one decision a step, the observation one flat row."""

        def reset(self, rng_key: jax.Array, env_params: EnvParams | None = None) -> tuple[StoaState, Any]:
            """Return the state at the first arrival, and its time step."""
            reset_key, own_key = jax.random.split(rng_key)
            observation, state = inner.reset(reset_key, env_params)
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
            params = default_params if env_params is None else env_params
            observation, reached, reward, _, info = inner.step_env(step_key, state.env_state, action, params)
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
            return stoa.ArraySpace(inner.observation_space(env_params).shape, jnp.float32, "observation")

        def action_space(self, env_params: EnvParams | None = None) -> Any:
            """The experts, and one more to drop if allowed."""
            return stoa.DiscreteSpace(inner.num_actions, jnp.int32, "action")

        def state_space(self, env_params: EnvParams | None = None) -> Any:
            """Not described: a state is a pytree of arrays."""
            raise NotImplementedError("a routing state is a pytree of arrays, which Stoa has no space for")

    return StoaEnv()


def _gymnax_space(name: str, own: type) -> type:
    """The space of gymnax, where it is installed: its wrappers ask for the type."""
    try:
        return cast(type, getattr(importlib.import_module("gymnax.environments.spaces"), name))
    except ImportError:
        return own
