"""Run in a process of two devices: each learner's updates on one and on both, from the same state."""

import dataclasses

import jax
import numpy as np

from qos_jax import devices as devices_module
from qos_jax.devices import lane_mesh
from qos_jax.learning.distil import DistilConfig, make_distil
from qos_jax.learning.ppo import PPOConfig, make_ppo
from qos_jax.learning.sac import make_sac
from qos_jax.learning.sac_config import SACConfig
from qos_jax.learning.search import SearchConfig, make_search
from qos_jax.learning.spread import state_shardings
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.types import PREDICTIONS
from qos_jax.routing import make_params
from qos_jax.workload import poisson
from tests.routing.scenes import LENGTH_LOG_STD, environment, profile, table

PPO = PPOConfig(num_envs=8, rollout_steps=8, epochs=1, minibatches=2, learning_rate=1e-2, average=0.5)
SAC = SACConfig(
    num_envs=8,
    steps_per_update=4,
    gradient_steps=2,
    batch_size=8,
    replay_capacity=128,
    warmup_decisions=32,
    critic_only_steps=0,
    actor_learning_rate=1e-2,
    critic_learning_rate=1e-2,
    half_precision_replay=False,
)
DISTIL = DistilConfig(
    num_envs=8, steps=2, horizon=2, capacity=64, batch_size=8, quality_rows=8, learning_rate=1e-2, average=0.5
)
SEARCH = SearchConfig(candidates=4, num_envs=8, steps=16)
NETWORK = NetworkConfig(encoder="sets", hidden=8)
# Without profiles nothing is projected: programs are ready sooner.
BLIND = dataclasses.replace(NETWORK, information=PREDICTIONS, residual=False)


def sample_params(key):
    rate_per_s = 5.0 + 20.0 * jax.random.uniform(key)
    return make_params(profile(), table(0, 32), 0.08, LENGTH_LOG_STD, process=poisson(rate_per_s))


def check(make, config, network) -> None:
    """Three updates on one device and on two end alike, and the lanes lie on as many."""
    env = environment(max_steps=16, measures=network.information == PREDICTIONS)
    learner = make(env, sample_params, network, config)
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
        learned = jax.device_get(learner.params(state))
        # Adding to all scores changes nothing, so this has no gradient but rounding, which Adam blows up.
        del learned["params"]["actor"]["score"]["bias"]
        ends.append((learned, jax.device_get((metrics, dataclasses.replace(state.lanes, key=None)))))
    before = jax.device_get(learner.params(start))
    del before["params"]["actor"]["score"]["bias"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, ends[0][0])
    assert max(jax.tree.leaves(moved)) > 1e-3, make
    (ours, told), (theirs, told_too) = ends
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), told, told_too)
    # Where a weight's gradient is near rounding Adam moves it by that, so arrays are judged as wholes.
    far = jax.tree.map(
        lambda a, b, start: np.linalg.norm(a - b) / (np.linalg.norm(a - start) + 1e-3), ours, theirs, before
    )
    assert max(jax.tree.leaves(far)) < 0.01, far


def check_search() -> None:
    """Its episodes are shared out, in turn on each device, and the candidates rank alike."""
    joined, devices_module.small_loops_joined = devices_module.small_loops_joined, lambda: True
    learner = make_search(environment(max_steps=16), sample_params, NETWORK, SEARCH)
    start = jax.jit(learner.init)(jax.random.key(0), None)
    ends = []
    for devices in (1, 2):
        mesh = lane_mesh(devices)
        state = jax.device_put(start, state_shardings(start, mesh))
        with jax.set_mesh(mesh):
            update = jax.jit(learner.update)
            for _ in range(3):
                state, metrics = update(state)
        ends.append(jax.device_get((state.centre, state.log_spread, metrics)))
    devices_module.small_loops_joined = joined
    assert np.abs(ends[0][0]).max() > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)


def main() -> None:
    check_search()
    for make, config, network in (
        (make_ppo, PPO, BLIND),
        (make_sac, SAC, BLIND),
        (make_distil, DISTIL, NETWORK),
    ):
        check(make, config, network)
    print("equal")


if __name__ == "__main__":
    main()
