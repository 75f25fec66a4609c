"""The environment under what users wrap around it: shard_map, 64-bit defaults, an un-jitted call, export."""

from __future__ import annotations

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from qos_jax.routing import EnvConfig, GymnaxEnv, RoutingEnvironment
from qos_jax.serving import ServingConfig
from qos_jax.workload import diurnal, gamma, mmpp, poisson, with_recording
from tests.routing.scenes import EXPERTS, SERVING, environment, process_params, replay_params, rollout

KEY = jax.random.key(0)
WIDE = ServingConfig(EXPERTS, 32, 16, scheduler="chunked_prefill")  # stepped at several widths


def env_step(env, key, state, action, params):
    reached, result = env.step(key, state, action, params)
    return reached, result.reward


def gymnax_step(env, key, state, action, params):
    _, reached, reward, *_ = env.step(key, state, action, params)
    return reached, reward


@pytest.mark.parametrize("sizes", [SERVING["prefill_first"], WIDE])
@pytest.mark.parametrize("wrapped", [False, True])
def test_scans_of_steps_trace_in_a_shard_map(sizes, wrapped):
    env = RoutingEnvironment(EnvConfig(sizes, reward="potential", max_steps=3))
    mesh = jax.make_mesh((1,), ("lanes",), axis_types=(jax.sharding.AxisType.Auto,))
    params = process_params(mmpp(10.0, 4.0, 1.0, 2.0))
    step, used = (gymnax_step, GymnaxEnv(env, params)) if wrapped else (env_step, env)

    def lane(keys, params):
        state = env.reset(keys[0], params)[0]
        return jax.lax.scan(lambda state, key: step(used, key, state, 0, params), state, keys)[1]

    spec = PartitionSpec("lanes")
    sharded = jax.shard_map(lane, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    assert jax.eval_shape(sharded, jax.random.split(KEY, 4), params).shape == (4,)


PROCESSES = {
    "poisson": poisson(12.0),
    "gamma": gamma(5.0, 2.0),
    "mmpp": mmpp(10.0, 4.0, 1.0, 2.0),
    "diurnal": diurnal(10.0, [1.0, 2.0], 3.0),
    "recording": with_recording(poisson(10.0), [1.0, 2.0, 1.5]),
}


@pytest.mark.parametrize("kind", [*PROCESSES, "replay"])
def test_no_number_has_64_bits_where_jax_keeps_them(kind):
    with jax.enable_x64(True):
        params = replay_params(0, 4) if kind == "replay" else process_params(PROCESSES[kind])
        env = environment(reward="potential")
        state, seen = jax.eval_shape(env.reset, KEY, params)
        stepped = jax.eval_shape(env.step, KEY, state, jnp.int32(0), params)
        wrapped = jax.eval_shape(GymnaxEnv(env, params).step, KEY, state, jnp.int32(0))
    leaves = jax.tree.leaves((params, state, seen, stepped, wrapped))
    assert not [leaf for leaf in leaves if leaf.dtype in (np.float64, np.int64)]
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, stepped[0])


def test_results_are_the_same_where_jax_keeps_64_bits():
    env, actions = environment(), np.arange(6, dtype=np.int32) % EXPERTS
    usual = rollout(env, KEY, process_params(poisson(12.0)), actions)
    with jax.enable_x64(True):
        wide = rollout(env, KEY, process_params(poisson(12.0)), actions)
    jax.tree.map(np.testing.assert_array_equal, usual, wide)


def test_an_unjitted_step_takes_a_python_int():
    env, params = environment(), replay_params(0, 2)
    state, _ = env.reset(KEY, params)
    eager, by_int = env.step(KEY, state, 0, params)
    by_array = jax.jit(env.step)(KEY, state, jnp.int32(0), params)[1]
    assert int(eager.step) == 1
    np.testing.assert_array_equal(by_int.reward, by_array.reward)
    np.testing.assert_array_equal(by_int.observation.live, by_array.observation.live)


def test_an_exported_step_is_written_read_and_equal_to_the_bit():
    pytest.importorskip("flatbuffers", reason="which jax.export writes with: pip install 'qos_jax[test]'")
    env, params = environment(), process_params(poisson(12.0))
    state, _ = jax.jit(env.reset)(KEY, params)
    step = jax.jit(lambda seed, state, action, params: env.step(jax.random.key(seed), state, action, params))
    given = (np.uint32(3), state, np.int32(1), params)
    stored = jax.export.export(step)(*given).serialize()
    jax.tree.map(np.testing.assert_array_equal, jax.export.deserialize(stored).call(*given), step(*given))
