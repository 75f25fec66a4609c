#!/usr/bin/env bash
# stoa-env 0.1.2: what parameters the second episode has under AutoResetWrapper.
#
# A good guess: `env.step(state, action, env_params)` plays every episode by the parameters it is given.
# Instead: the wrapper steps with env_params but resets without them, so from the second episode on the start is
# drawn from the environment's default parameters, without a warning: whatever a reset derives from parameters
# (a fleet, a load, a start position) silently returns to the default. CachedAutoResetWrapper keeps the given
# start, but the same one for ever. Bind the parameters into the environment instead.
# Source: stoa/core_wrappers/auto_reset.py (_auto_reset calls reset with a key alone).
#
# Seen:
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 stoa-env==0.1.2 gymnax==0.0.9 six==1.17.0
observe <<'PROGRAM'
import gymnax
import jax
import jax.numpy as jnp
from finding import shown, versions
from flax import struct
from gymnax.environments import environment, spaces
from stoa.core_wrappers.auto_reset import AutoResetWrapper, CachedAutoResetWrapper
from stoa.env_adapters.gymnax import GymnaxToStoa

versions("stoa-env", "gymnax", "jax")


@struct.dataclass
class State(environment.EnvState):
    load: jax.Array


@struct.dataclass
class Params(environment.EnvParams):
    load: float = 0.5
    max_steps_in_episode: int = 2


class Loaded(environment.Environment):
    """Two steps at a load that the reset reads from the parameters."""

    @property
    def default_params(self):
        return Params()

    def reset_env(self, key, params):
        state = State(time=jnp.int32(0), load=jnp.float32(params.load))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        done = state.time >= params.max_steps_in_episode
        return self.get_obs(state), state, jnp.float32(0), done, {"discount": 1.0 - done}

    def get_obs(self, state, params=None, key=None):
        return state.load[None]

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Box(0.0, 1.0, (1,))


for wrapper, stated in ((AutoResetWrapper, 0.5), (CachedAutoResetWrapper, 0.9)):
    env, given = wrapper(GymnaxToStoa(Loaded(), Params())), Params(load=0.9)
    state, timestep = env.reset(jax.random.key(0), given)
    loads = [float(timestep.observation[0])]
    for _ in range(2):
        state, timestep = env.step(state, jnp.int32(0), given)
        loads.append(float(timestep.observation[0]))
    loads = [round(load, 3) for load in loads]
    shown(f"{wrapper.__name__}: observed load, the last one after the restart", loads, loads == [0.9, 0.9, stated])
PROGRAM
