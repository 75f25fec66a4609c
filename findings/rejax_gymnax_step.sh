#!/usr/bin/env bash
# rejax 0.1.3 beside the gymnax that pip installs with it (1.0.1).
#
# A good guess: rejax asks for gymnax>=0.0.9, pip resolves that to 1.0.1, so `PPO.create(env="CartPole-v1")`,
# the first example of anyone, trains.
# Instead: rejax unpacks five values from `env.step`, gymnax 1.0 returns six (done became terminated and
# truncated), and training ends in "too many values to unpack" while tracing. gymnax's own LegacyStepAPIWrapper,
# made for such callers, does not help: rejax deep-copies its configuration, and the copy of a wrapper whose
# __getattr__ reads self._env ends in RecursionError. A five-value environment of one's own trains, if its
# parameters have `max_steps_in_episode`, which rejax reads to evaluate and no interface of gymnax demands.
# Source: rejax/algos/ppo.py (collect_trajectories), rejax/evaluate.py and rejax/algos/algorithm.py
# (eval_callback); gymnax/environments/environment.py (step), gymnax/wrappers/compat.py.
#
# Seen:
#   rejax 0.1.3, gymnax 1.0.1, jax 0.10.2
#   PPO on CartPole-v1: ValueError: too many values to unpack (expected 5)
#   PPO through LegacyStepAPIWrapper: RecursionError: maximum recursion depth exceeded
#   PPO on a five-value subclass, evaluated episodes: (2, 128)
#   PPO without a step limit in the parameters: AttributeError: 'Unlimited' object has no attribute 'max_steps_in_episode'
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 rejax==0.1.3 gymnax==1.0.1 six==1.17.0
observe <<'PROGRAM'
import gymnax
import jax
from finding import error_of, shown, versions
from flax import struct
from gymnax.environments.classic_control.cartpole import CartPole
from gymnax.wrappers.compat import LegacyStepAPIWrapper
from rejax import PPO

versions("rejax", "gymnax", "jax")
small = dict(num_envs=2, num_steps=8, num_minibatches=2, num_epochs=1, total_timesteps=64, eval_freq=64)


def train(env, **more):
    return jax.block_until_ready(PPO.create(env=env, **small, **more).train(jax.random.key(0)))


class FiveValues(CartPole):
    """CartPole with the step of gymnax 0.0.9; equal to its copies, as a static argument must be."""

    def step(self, key, state, action, params=None):
        obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
        return obs, state, reward, terminated | truncated, info


error = error_of(lambda: train("CartPole-v1"))
shown("PPO on CartPole-v1", error, error is not None and "too many values to unpack" in error)
env, params = gymnax.make("CartPole-v1")
error = error_of(lambda: train(LegacyStepAPIWrapper(env), env_params=params))
shown("PPO through LegacyStepAPIWrapper", error, error is not None and error.startswith("RecursionError"))
state, (length, returns) = train(FiveValues(), env_params=params)
shown("PPO on a five-value subclass, evaluated episodes", length.shape, length.shape == (2, 128))
numbers = {name: value for name, value in vars(params).items() if name != "max_steps_in_episode"}
unlimited = struct.dataclass(type("Unlimited", (), {"__annotations__": dict.fromkeys(numbers, float), **numbers}))
error = error_of(lambda: train(FiveValues(), env_params=unlimited()))
shown("PPO without a step limit in the parameters", error, error is not None and "max_steps_in_episode" in error)
PROGRAM
