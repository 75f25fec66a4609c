"""Run in a process of two devices: PPO's updates on one and on both, from the same state."""

import dataclasses

import jax
import numpy as np

from qos_jax.devices import lane_mesh
from qos_jax.learning.ppo import PPOConfig, make_ppo
from qos_jax.learning.spread import state_shardings
from qos_jax.policies.actor_critic import NetworkConfig
from qos_jax.routing import make_params
from qos_jax.workload import poisson
from tests.routing.scenes import LENGTH_LOG_STD, environment, profile, table

CONFIG = PPOConfig(num_envs=8, rollout_steps=8, epochs=1, minibatches=2, learning_rate=1e-2)
NETWORK = NetworkConfig(encoder="sets", hidden=8)


def sample_params(key):
    rate_per_s = 5.0 + 20.0 * jax.random.uniform(key)
    return make_params(profile(), table(0, 32), 0.08, LENGTH_LOG_STD, process=poisson(rate_per_s))


def main() -> None:
    learner = make_ppo(environment(max_steps=16), sample_params, NETWORK, CONFIG)
    start = jax.jit(learner.init)(jax.random.key(0), None)
    ends = []
    for devices in (1, 2):
        mesh = lane_mesh(devices)
        shardings = state_shardings(start, mesh)
        state = jax.device_put(start, shardings)
        with jax.set_mesh(mesh):
            update = jax.jit(learner.update, out_shardings=(shardings, None))
            for _ in range(3):
                state, metrics = update(state)
        assert state.lanes.overdue.sharding.num_devices == devices
        assert len({str(shard.index) for shard in state.lanes.overdue.addressable_shards}) == devices
        ends.append(jax.device_get((state.params, metrics, dataclasses.replace(state.lanes, key=None))))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(start.params), ends[0][0])
    assert max(jax.tree.leaves(moved)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *ends)
    print("equal")


if __name__ == "__main__":
    main()
