"""The environment under other libraries' interfaces: gymnax before and since 1.0, and Stoa."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
from collections.abc import Hashable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.errors import input_error
from qos_jax.routing.environment import EnvState, RoutingEnvironment, TimeStep
from qos_jax.routing.graph import graph_features
from qos_jax.routing.impact import projected_impact
from qos_jax.routing.observation import Observation
from qos_jax.routing.params import EnvParams
from qos_jax.routing.spaces import LARGEST, Box, Discrete, Tree, tree_space

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
    if seen.belief is not None:
        notes = seen.belief
        known = [jnp.log1p(notes.scrape_age_s), jnp.log1p(notes.foreign_load)]
        parts += [jnp.stack(known), jnp.log(notes.pace), notes.up.astype(jnp.float32)]
    return jnp.concatenate([part.reshape(-1) for part in parts])


@dataclasses.dataclass(frozen=True, eq=False)
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

    def __post_init__(self) -> None:
        limited = dataclasses.replace(
            self.default_params, max_steps_in_episode=self.env.max_steps(self.default_params)
        )
        object.__setattr__(self, "default_params", limited)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GymnaxEnv) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @functools.cached_property
    def _identity(self) -> Hashable:
        """What equal ones share, so that ``jax.jit`` takes them for one static argument.

        The default parameters count by value, read once; traced ones have none, and count as themselves.
        """
        leaves, treedef = jax.tree.flatten(self.default_params)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return id(self)
        digest = hashlib.sha256()
        for leaf in map(np.asarray, leaves):
            digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
        return type(self), self.env, self.with_slots, treedef, digest.digest()

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
        observation, info = self._reported(result)
        return observation, reached, result.reward, result.terminated | result.truncated, info

    def get_obs(
        self, state: EnvState, params: EnvParams | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """The observation of a state, [F] float32."""
        seen = self.env.observation(self._or_default(params), state)
        return flat_observation(seen, self.with_slots)

    def is_terminal(self, state: EnvState, params: EnvParams) -> jax.Array:
        """Whether the episode has ended at ``state``, [] bool."""
        return self._is_terminated(state, params) | (state.step >= self.env.max_steps(params))

    def discount(self, state: EnvState, params: EnvParams) -> jax.Array:
        """What is to come counts: 0 if the episode has ended at ``state``, else 1."""
        return jnp.where(self.is_terminal(state, params), jnp.float32(0.0), 1.0)

    def action_space(self, params: EnvParams | None = None) -> Any:
        """The actions."""
        return _gymnax_space("Discrete", Discrete)(self.num_actions)

    def observation_space(self, params: EnvParams | None = None) -> Any:
        """Rows of as many numbers as an observation has."""
        _, seen = jax.eval_shape(self.env.reset, jax.random.key(0), self._or_default(params))
        shape = jax.eval_shape(lambda seen: flat_observation(seen, self.with_slots), seen).shape
        return _gymnax_space("Box", Box)(-LARGEST, LARGEST, shape, jnp.float32)

    def state_space(self, params: EnvParams | None = None) -> Tree:
        """Return the space of states: a pytree like one, of bounded arrays."""
        return tree_space(jax.eval_shape(self.env.reset, jax.random.key(0), self._or_default(params))[0])

    def _or_default(self, params: EnvParams | None) -> EnvParams:
        return self.default_params if params is None else params

    def _is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array:
        return self.env.is_over(params, state)

    def _reported(self, result: TimeStep) -> tuple[jax.Array, Info]:
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
        observation, info = self._reported(result)
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
        observation, info = self._reported(result)
        return observation, reached, result.reward, result.terminated, info

    def observe(
        self, key: jax.Array, state: EnvState, action: jax.Array | int | None, params: EnvParams
    ) -> jax.Array:
        """Return the observation of a state, [F] float32; it depends on neither key nor action."""
        return self.get_obs(state, params)

    def is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array:
        """Whether the trace has ended at ``state``, [] bool."""
        return self._is_terminated(state, params)

    is_terminal = is_terminated  # since 1.0 a time limit is no terminal state

    def is_truncated(self, state: EnvState, params: EnvParams) -> jax.Array:
        """Whether the time limit, and not the trace's end, ended the episode at ``state``, [] bool."""
        return (state.step >= self.env.max_steps(params)) & ~self._is_terminated(state, params)


def stoa_environment(env: RoutingEnvironment, default_params: EnvParams, with_slots: bool = False) -> Any:
    """Return the environment as a ``stoa.Environment``. It does not reset itself: ``AutoResetWrapper`` does.

    That wrapper begins each new episode with ``default_params``, whatever ``env_params`` its ``step`` got:
    bind the parameters here and give none to the calls, or every episode but the first runs on others.

    Args:
      env: the environment.
      default_params: used where a call gives none.
      with_slots: as of :func:`flat_observation`.

    Raises:
      InputError: Stoa is not installed.
    """
    try:
        importlib.import_module("stoa")
    except ImportError as error:
        raise input_error("Stoa is not installed", remedy="pip install 'qos_jax[stoa]'") from error
    from qos_jax.routing.stoa_adapter import StoaEnvironment

    return StoaEnvironment(GymnaxEnv(env, default_params, with_slots))


def _gymnax_space(name: str, own: type) -> type:
    """The space of gymnax, where it is installed: its wrappers ask for the type."""
    try:
        return cast(type, getattr(importlib.import_module("gymnax.environments.spaces"), name))
    except ImportError:
        return own
