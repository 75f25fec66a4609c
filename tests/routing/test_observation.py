"""What a router may see: nothing true can be read out of it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies import HEURISTICS, policy
from qos_jax.routing import Observation, TrueObservation
from tests.routing.scenes import environment, profile, random_actions, replay_params, rollout
from tests.serving.replay import SHARED_MEMORY

T = 40


def hide_the_truth(key, state):
    """The same queues and predictions, every true length, quality and outcome replaced."""

    def other(x, number, low=0, high=99):
        drawn = jax.random.randint(jax.random.fold_in(key, number), x.shape, low, high)
        return drawn.astype(x.dtype)

    serving = dataclasses.replace(
        state.fleet.serving,
        left_tokens=other(state.fleet.serving.left_tokens, 0),
        ttft_s=jnp.where(
            state.fleet.serving.live, state.fleet.serving.ttft_s, other(state.fleet.serving.ttft_s, 1)
        ),
        latency_s=other(state.fleet.serving.latency_s, 2),
        preemptions=other(state.fleet.serving.preemptions, 3),
        request_id=other(state.fleet.serving.request_id, 4),
    )
    return dataclasses.replace(
        state,
        fleet=dataclasses.replace(
            state.fleet,
            serving=serving,
            output_tokens=other(state.fleet.output_tokens, 5, 1),
            quality=other(state.fleet.quality, 6, 0, 2),
        ),
        request=dataclasses.replace(
            state.request,
            output_tokens=other(state.request.output_tokens, 7, 1),
            quality=other(state.request.quality, 8, 0, 2),
        ),
    )


def reached_states(scheduler, seed):
    env, params = environment(scheduler), replay_params(seed, T, mean_gap_s=0.03)
    states, _, _ = rollout(env, jax.random.key(seed), params, random_actions(seed, T))
    hidden = jax.vmap(hide_the_truth)(jax.random.split(jax.random.key(9), T), states)
    return env, params, states, hidden


@pytest.mark.parametrize("scheduler", SHARED_MEMORY)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_truth_can_be_observed(scheduler, seed):
    env, params, states, hidden = reached_states(scheduler, seed)
    see = jax.vmap(lambda s: env.observation(params, s))
    chex.assert_trees_all_equal(see(states), see(hidden))


def test_the_truth_is_where_the_oracles_look():
    env, params, states, hidden = reached_states("prefill_first", 0)
    reveal = jax.vmap(lambda s: env.true_observation(params, s))
    a, b = reveal(states), reveal(hidden)
    chex.assert_trees_all_equal(a.seen, b.seen)
    for name in ("output_tokens", "quality", "slot_output_tokens", "slot_quality"):
        assert not np.array_equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("name", HEURISTICS)
def test_no_router_acts_on_the_truth(name):
    env, params, states, hidden = reached_states("prefill_first", 0)
    chosen = policy(name)
    act = chosen.act_function()

    @jax.jit
    def actions(states):
        def one(key, state):
            return act(chosen.params, key, env.true_observation(params, state))

        return jax.vmap(one)(jax.random.split(jax.random.key(0), T), states)

    np.testing.assert_array_equal(actions(states), actions(hidden))


def test_names_of_the_truth_are_not_in_the_observation():
    names = {field.name for field in dataclasses.fields(Observation)}
    for true in (
        "output_tokens",
        "quality",
        "slot_output_tokens",
        "slot_quality",
        "latency_s",
        "left_tokens",
    ):
        assert true not in names
    assert {f.name for f in dataclasses.fields(TrueObservation)} > {"seen", "output_tokens", "quality"}


def test_available_means_room_in_the_queue():
    env, params = environment(), replay_params(0, T, profile(max_waiting=[1, 1, 1]), mean_gap_s=0.005)
    states, results, _ = rollout(env, jax.random.key(0), params, random_actions(0, T))
    seen = jax.vmap(lambda s: env.observation(params, s))(states)
    actions = random_actions(0, T)
    room = seen.available[jnp.arange(T), actions]
    assert 0 < int(jnp.sum(room)) < T
    # A full queue rejects for sure; with room only what exceeds the KV cache is rejected (none here does).
    np.testing.assert_array_equal(results.info.routed.accepted, room)


def test_no_expert_is_available_to_a_prompt_beyond_its_memory():
    env = environment()
    capacity = profile(kv_capacity_tokens=[4000, 20, 5])
    params = replay_params(0, T, capacity, mean_gap_s=0.05)
    state, _ = env.reset(jax.random.key(0), params)
    for prompt, expected in ((19, [True, True, False]), (20, [True, False, False])):
        request = dataclasses.replace(state.request, prompt_tokens=jnp.int32(prompt))
        seen = env.observation(params, dataclasses.replace(state, request=request))
        assert seen.available.tolist() == expected
