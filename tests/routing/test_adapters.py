"""Tests of the environment under gymnax's and Stoa's interfaces, against the environment itself."""

import copy
import dataclasses
import functools
import pickle
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stoa

from qos_jax.errors import InputError
from qos_jax.routing import EnvConfig, GymnaxEnv, GymnaxEnvV1, RoutingEnvironment, stoa_environment
from qos_jax.routing.adapters import flat_observation
from qos_jax.routing.graph import ARRIVED_FEATURES, EXPERT_FEATURES, PAIR_FEATURES, SLOT_FEATURES
from qos_jax.routing.spaces import Box, Discrete
from qos_jax.serving import ServiceLimits
from qos_jax.workload import poisson
from tests.routing.scenes import EXPERTS, SERVING, process_params, random_actions, replay_params

T = 12
# The trace ends first, the time limit does, both at once; and arrivals without end.
ENDS = {"trace": (T, 100), "limit": (100, T), "both": (T, T), "process": (None, T)}
SERVER = SERVING["prefill_first"]
FEATURES = len(ARRIVED_FEATURES) + EXPERTS * (len(EXPERT_FEATURES) + len(PAIR_FEATURES))


def scene(end):
    length, limit = ENDS[end]
    params = process_params(poisson(20.0)) if length is None else replay_params(0, length)
    return RoutingEnvironment(EnvConfig(SERVER, max_steps=limit, allow_drop=False)), params


@pytest.fixture(scope="module", params=["trace", "process"])
def courses(request):
    """One episode to its end and a step of the next, by itself and since gymnax 1.0; its last step."""
    env, params = scene(request.param)
    actions, keys = random_actions(1, T + 1), jax.random.split(jax.random.key(3), T + 2)
    new = GymnaxEnvV1(env, params)
    step, core_step = jax.jit(new.step), jax.jit(env.step)
    first, start = jax.jit(new.reset)(keys[-1], params)
    state = core_state = start
    steps, core_steps = [], []
    for t in range(T + 1):
        observation, reached, *rest = step(keys[t], state, actions[t], params)
        steps.append((observation, reached, *rest))
        if t < T:
            core_state, result = core_step(jax.random.split(keys[t])[0], core_state, actions[t], params)
            core_steps.append(result)
        if t == T - 1:
            last = (keys[t], state, actions[t], params)
        state = reached
    stacked, core = (jax.tree.map(lambda *x: np.stack(x), *x) for x in (steps, core_steps))
    return request.param, first, stacked, core, last


def test_an_episode_is_that_of_the_environment_itself(courses):
    _, _, (_, _, reward, terminated, truncated, info), core, _ = courses
    np.testing.assert_array_equal(reward[:T], core.reward)
    observation = jax.jit(jax.vmap(flat_observation))(core.observation)
    np.testing.assert_allclose(info["final_observation"][:T], observation, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(terminated[:T], core.terminated)
    np.testing.assert_array_equal(truncated[:T], core.truncated)
    np.testing.assert_array_equal((terminated | truncated)[:T], np.arange(T) == T - 1)
    np.testing.assert_allclose(info["qos"][:T], core.info.passed.qos.sum(-1), rtol=1e-6)


def test_an_ended_episode_is_followed_by_a_new_one(courses):
    end, first, (observation, state, _, _, _, info), *_ = courses
    np.testing.assert_array_equal(state.step, [*range(1, T), 0, 1])
    assert not state.fleet.serving.live[T - 1].any()
    assert not np.array_equal(observation[T - 1], info["final_observation"][T - 1])
    np.testing.assert_array_equal(observation[: T - 1], info["final_observation"][: T - 1])
    if end == "trace":  # which starts with the same request each time
        np.testing.assert_allclose(observation[T - 1], first, rtol=1e-5, atol=1e-6)


def test_the_trace_and_the_time_limit_end_it_each_in_its_own_way(courses):
    end, _, (_, _, _, terminated, truncated, info), *_ = courses
    assert bool(terminated[T - 1]) == (end == "trace") == (not truncated[T - 1])
    assert float(info["discount"][T - 1]) == (0.0 if end == "trace" else 1.0)
    np.testing.assert_array_equal(info["discount"][: T - 1], 1.0)


def test_before_gymnax_1_it_is_the_same_in_five_values_and_only_step_resets(courses):
    end, _, steps, _, last = courses
    new = jax.tree.map(lambda leaf: leaf[T - 1], steps)
    env, since = GymnaxEnv(*scene(end)), GymnaxEnvV1(*scene(end))
    old, raw, raw_since = jax.jit(lambda *x: (env.step(*x), env.step_env(*x), since.step_env(*x)))(*last)
    jax.tree.map(np.testing.assert_array_equal, old[:3], new[:3])
    assert bool(old[3])
    assert bool(new[3] | new[4])
    jax.tree.map(np.testing.assert_array_equal, old[4], new[5])
    assert int(old[1].step) == 0
    assert int(raw[1].step) == T
    assert bool(raw[3])
    assert bool(raw_since[3]) == bool(new[3])
    jax.tree.map(np.testing.assert_array_equal, (*raw[:3], raw[4]), (*raw_since[:3], raw_since[4]))


@pytest.mark.parametrize("end", list(ENDS))
def test_a_state_tells_whether_it_is_final(end):
    env, params = scene(end)
    old, new = GymnaxEnv(env, params), GymnaxEnvV1(env, params)
    for step, ended in ((T - 1, False), (T, True)):
        at = types.SimpleNamespace(step=jnp.int32(step))  # all that is asked of it
        by_itself = ended and end in ("trace", "both")
        assert bool(old.is_terminal(at, params)) == ended
        assert float(old.discount(at, params)) == 1.0 - ended
        assert bool(new.is_terminated(at, params)) == bool(new.is_terminal(at, params)) == by_itself
        assert bool(new.is_truncated(at, params)) == (ended and not by_itself)


def test_lanes_with_parameters_of_their_own_train_as_trainers_do_it():
    """A rollout as purejaxrl writes it: vmap over keys and states, params given or by default."""
    env, params = scene("process")
    wrapped = GymnaxEnv(env, params)
    lanes = 4

    @jax.jit
    def rollout(key):
        observation, state = jax.vmap(wrapped.reset, in_axes=(0, None))(jax.random.split(key, lanes), params)

        def step(carry, key):
            state, observation = carry
            action = jnp.argmax(observation[:, : wrapped.num_actions], axis=-1)
            keys = jax.random.split(key, lanes)
            observation, state, reward, done, _ = jax.vmap(wrapped.step, in_axes=(0, 0, 0, None))(
                keys, state, action, params
            )
            return (state, observation), (reward, done)

        return jax.lax.scan(step, (state, observation), jax.random.split(key, 2 * T))[1]

    reward, done = rollout(jax.random.key(0))
    assert reward.shape == done.shape == (2 * T, lanes)
    assert int(done.sum()) == 2 * lanes
    assert float(reward.sum()) > 0.0


def test_observations_are_flat_finite_and_as_the_space_says():
    env, params = scene("process")
    for with_slots, size in (
        (False, FEATURES),
        (True, FEATURES + EXPERTS * SERVER.slots * (len(SLOT_FEATURES) + 1)),
    ):
        wrapped = GymnaxEnv(env, params, with_slots)
        observation, _ = jax.jit(wrapped.reset)(jax.random.key(0))
        space = wrapped.observation_space()
        assert observation.shape == space.shape == (size,)
        assert observation.dtype == space.dtype == jnp.float32
        assert bool(jnp.all(jnp.isfinite(observation)))
        assert bool(space.contains(observation))


def test_dropping_is_one_action_more():
    env, params = scene("process")
    allowed = RoutingEnvironment(dataclasses.replace(env.config, allow_drop=True))
    assert GymnaxEnv(env, params).num_actions == GymnaxEnv(env, params).action_space().n == EXPERTS
    assert GymnaxEnvV1(allowed, params).action_space(params).n == EXPERTS + 1


def test_spaces_draw_what_they_contain():
    actions, box = Discrete(3), Box(-1.0, 2.0, (5,))
    keys = jax.random.split(jax.random.key(0), 64)
    assert sorted(set(jax.vmap(actions.sample)(keys).tolist())) == [0, 1, 2]
    drawn = jax.vmap(box.sample)(keys)
    assert drawn.shape == (64, 5)
    assert bool(box.contains(drawn))
    assert -1.0 <= float(drawn.min()) < -0.8 < 1.8 < float(drawn.max()) <= 2.0
    assert not bool(box.contains(jnp.array([0.0, 3.0])))
    assert bool(actions.contains(2))
    assert not bool(actions.contains(3))


def test_spaces_are_gymnaxs_own_where_it_is_installed(monkeypatch):
    spaces = types.ModuleType("gymnax.environments.spaces")
    spaces.Discrete = type("Discrete", (), {"__init__": lambda self, n: setattr(self, "n", n)})
    for name in ("gymnax", "gymnax.environments"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "gymnax.environments.spaces", spaces)
    space = GymnaxEnv(*scene("process")).action_space()
    assert isinstance(space, spaces.Discrete)
    assert space.n == EXPERTS


def test_is_one_of_stoas_environments():
    env, params = scene("trace")
    wrapped = stoa_environment(env, params)
    assert isinstance(wrapped, stoa.Environment)
    state, first = jax.jit(wrapped.reset)(jax.random.key(0))
    assert bool(first.first())
    assert first.observation.shape == wrapped.observation_space().shape == (FEATURES,)
    assert wrapped.action_space().num_values == EXPERTS
    step = jax.jit(wrapped.step)
    state, middle = step(state, jnp.int32(0), params)
    assert bool(middle.mid())
    final = dataclasses.replace(state.env_state, step=jnp.int32(T - 1))
    reached, last = step(dataclasses.replace(state, env_state=final), jnp.int32(0), params)
    assert bool(last.terminated())
    assert bool(last.done())
    assert float(last.discount) == 0.0
    assert int(reached.env_state.step) == T
    assert not np.array_equal(jax.random.key_data(reached.rng_key), jax.random.key_data(state.rng_key))


def test_stoa_resets_and_vectorises_it():
    env, params = scene("process")
    wrapped = stoa.AutoResetWrapper(stoa_environment(env, params), next_obs_in_extras=True)

    @jax.jit
    def rollout(keys):
        state, _ = jax.vmap(wrapped.reset)(keys)

        def step(state, action):
            return jax.vmap(wrapped.step, (0, None))(state, action)

        return jax.lax.scan(step, state, random_actions(0, 2 * T))[1]

    steps = rollout(jax.random.split(jax.random.key(0), 3))
    np.testing.assert_array_equal(np.flatnonzero(steps.done().all(1)), [T - 1, 2 * T - 1])
    moved = np.any(np.asarray(steps.observation != steps.extras["next_obs"]), axis=-1)
    np.testing.assert_array_equal(moved, steps.done())
    np.testing.assert_array_equal(steps.truncated(), steps.done())
    np.testing.assert_array_equal(steps.discount, 1.0)


def test_without_stoa_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stoa", None)
    with pytest.raises(InputError, match=r"^Stoa is not installed; pip install 'qos_jax\[stoa\]'"):
        stoa_environment(*scene("process"))


def test_trainers_find_the_time_limit_in_the_parameters_and_may_set_it():
    env, params = scene("process")
    assert params.max_steps_in_episode is None
    for wrapped in (GymnaxEnv(env, params), GymnaxEnvV1(env, params)):
        assert wrapped.default_params.max_steps_in_episode == T
        shorter = wrapped.default_params.replace(max_steps_in_episode=3)
        at = types.SimpleNamespace(step=jnp.int32(3))
        assert not bool(wrapped.discount(at, shorter)) or isinstance(wrapped, GymnaxEnvV1)
    assert bool(wrapped.is_truncated(at, shorter))
    assert not bool(wrapped.is_truncated(at, params))


@pytest.mark.parametrize("make", [GymnaxEnv, GymnaxEnvV1, stoa_environment])
def test_equal_ones_are_equal_hash_alike_pickle_and_share_a_program(make):
    env, params = scene("process")
    one, same = make(env, params), make(copy.deepcopy(env), copy.deepcopy(params))
    assert one == same == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(same)
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def draw(env, key):
        traced.append(env)
        return jax.random.uniform(key)

    for used in (one, same):
        draw(used, jax.random.key(0))
    assert len(traced) == 1
    others = [
        make(env, dataclasses.replace(params, limits=ServiceLimits(jnp.float32(0.07)))),
        make(env, params, True),
        make(RoutingEnvironment(dataclasses.replace(env.config, reward="paper")), params),
    ]
    assert one not in others


def test_spaces_do_not_use_reset_which_wrappers_replace_and_draw_finite_numbers():
    env, params = scene("process")
    wrapped = GymnaxEnvV1(env, params)
    object.__setattr__(wrapped, "reset", None)
    space = wrapped.observation_space(params)
    assert bool(jnp.all(jnp.isfinite(space.sample(jax.random.key(0)))))
    state, seen = jax.jit(env.reset)(jax.random.key(0), params)
    for room, value in ((wrapped.state_space(params), state), (env.observation_space(params), seen)):
        assert bool(room.contains(value))
        drawn = room.sample(jax.random.key(1))
        assert bool(room.contains(drawn))
        chex.assert_trees_all_equal_shapes_and_dtypes(drawn, value)
    assert env.action_space(params).n == EXPERTS
    observed = jax.jit(wrapped.observe)(jax.random.key(0), state, 0, params)
    np.testing.assert_allclose(observed, flat_observation(seen), rtol=1e-5, atol=1e-6)
