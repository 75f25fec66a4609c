"""Train rejax's PPO on ``GymnaxEnv``, unmodified; rejax is in no extra, see ``.ci/run``."""

import jax
import jax.numpy as jnp
from rejax import PPO

import qos_jax

env, params = qos_jax.make("paper3", load=0.75, max_steps=8, num_requests=64)
wrapped = qos_jax.GymnaxEnv(env, params)
ppo = PPO.create(
    env=wrapped,
    total_timesteps=32,
    eval_freq=16,
    num_envs=2,
    num_steps=8,
    num_epochs=1,
    num_minibatches=1,
    skip_initial_evaluation=True,
)
state, (lengths, returns) = jax.jit(ppo.train)(jax.random.key(0))
assert bool(jnp.all(lengths == 8)), lengths
assert bool(jnp.all(jnp.isfinite(returns))), returns
print(f"returns {returns.mean(axis=-1)} after {int(state.global_step)} decisions")
