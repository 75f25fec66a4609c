"""The environment's contract: shapes, ends, accounts, randomness, and agreement with the reference."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing import EnvConfig, RoutingEnvironment, make_params
from qos_jax.routing.fleet_state import remaining_outcomes
from qos_jax.routing.outlook import predicted_outlook
from qos_jax.serving import SCHEDULERS, ServingConfig
from qos_jax.serving.reference import simulate_fleet
from qos_jax.workload import gamma, mmpp, poisson
from qos_jax.workload.conversations import draw_conversations
from qos_jax.workload.request_table import with_prefixes
from tests.routing.scenes import (
    EXPERTS,
    LENGTH_LOG_STD,
    SERVING,
    environment,
    episode,
    process_params,
    profile,
    random_actions,
    replay_params,
    rollout,
    roomy,
    table,
)
from tests.serving.replay import SHARED_MEMORY

T = 48
SMALL_MEMORY = profile(kv_capacity_tokens=[60, 200, 110])  # expert 0 cannot hold the longest requests
KEY = jax.random.key(0)
both_schedulers = pytest.mark.parametrize("scheduler", SHARED_MEMORY)

# As documented in Observation.
OBSERVATION = {
    "step": ((), np.int32),
    "prompt_tokens": ((), np.int32),
    "predicted_output_tokens": ((3,), np.float32),
    "predicted_quality": ((3,), np.float32),
    "length_log_std": ((3,), np.float32),
    "offered_load": ((2,), np.float32),
    "mean_gap_s": ((2,), np.float32),
    "mean_output_tokens": ((3,), np.float32),
    "mean_quality": ((3,), np.float32),
    "available": ((3,), np.bool_),
    "lead_s": ((3,), np.float32),
    "live": ((3, 8), np.bool_),
    "running": ((3, 8), np.bool_),
    "age_s": ((3, 8), np.float32),
    "slot_prompt_tokens": ((3, 8), np.int32),
    "slot_generated_tokens": ((3, 8), np.int32),
    "slot_prefill_left_tokens": ((3, 8), np.int32),
    "slot_predicted_output_tokens": ((3, 8), np.float32),
    "slot_predicted_quality": ((3, 8), np.float32),
    "slot_ttft_s": ((3, 8), np.float32),
}


def contract(tree):
    apart = ("profile", "limits", "belief", "measured", "prefix")
    return {k: (v.shape, v.dtype) for k, v in vars(tree).items() if k not in apart}


@pytest.mark.parametrize("kind", ["replay", "poisson", "gamma", "mmpp"])
@pytest.mark.parametrize("reward", ["qos", "paper", "potential"])
def test_shapes_and_dtypes_are_as_documented_and_steps_keep_them(kind, reward):
    env = environment(reward=reward)
    processes = {"poisson": poisson(3.0), "gamma": gamma(3.0, 2.0), "mmpp": mmpp(3.0, 4.0, 1.0, 2.0)}
    params = replay_params(0, T) if kind == "replay" else process_params(processes[kind])
    state, observation = jax.eval_shape(env.reset, KEY, params)
    assert contract(observation) == OBSERVATION
    reached, result = jax.eval_shape(env.step, KEY, state, jnp.int32(0), params)
    # The same tree of the same types, so that steps fit into scan and while_loop.
    assert jax.tree.structure(reached) == jax.tree.structure(state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(reached)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(state)
    ]
    assert contract(result.observation) == OBSERVATION
    assert (result.reward.shape, result.reward.dtype) == ((), np.float32)
    for flag in (result.terminated, result.truncated):
        assert (flag.shape, flag.dtype) == ((), np.bool_)


def test_reset_is_an_empty_edge_and_the_first_request():
    params = replay_params(0, T)
    state, seen = jax.jit(environment().reset)(KEY, params)
    assert int(state.in_flight) == int(state.step) == int(seen.step) == 0
    assert bool(jnp.all(seen.available))
    assert not bool(jnp.any(seen.live))
    assert int(seen.prompt_tokens) == int(params.table.prompt_tokens[0])
    np.testing.assert_array_equal(seen.predicted_quality, params.table.predicted_quality[0])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_replay_is_the_reference_and_every_request_is_paid_for(scheduler):
    env, params = environment(scheduler, allow_drop=True), replay_params(1, T, SMALL_MEMORY, mean_gap_s=0.03)
    actions = random_actions(1, T, EXPERTS + 1)  # the last drops
    states, results, last = jax.device_get(rollout(env, KEY, params, actions))
    requests, gap_s = jax.device_get((params.table, params.episode.gap_after_s))
    arrival_s = np.concatenate([[0.0], np.cumsum(gap_s[:-1].astype(np.float64))])
    expert = np.where(np.asarray(actions) == EXPERTS, -1, actions)
    outcomes, runs = simulate_fleet(
        SMALL_MEMORY, arrival_s, requests.prompt_tokens, requests.output_tokens, expert, scheduler
    )
    status = np.array([o.status for o in outcomes])
    assert {"completed", "rejected", "rejected_too_long", "dropped"} == set(status)
    assert any(o.preemptions for o in outcomes) == (scheduler != "llama_cpp")

    # Per decision: accepted, rejected or dropped.
    routed = results.info.routed
    np.testing.assert_array_equal(routed.accepted, status == "completed")
    np.testing.assert_array_equal(routed.rejected, status == "rejected")
    np.testing.assert_array_equal(routed.rejected_too_long, status == "rejected_too_long")
    np.testing.assert_array_equal(routed.dropped, status == "dropped")

    # Each outcome leaves once: evicted, or at the end.
    remaining = jax.device_get(remaining_outcomes(last.fleet))
    left = jax.tree.map(lambda a, b: np.concatenate([a, b.ravel()]), routed.evicted, remaining)
    real = left.request_id >= 0
    assert sorted(left.request_id[real]) == list(np.flatnonzero(status == "completed"))
    by_id = [outcomes[i] for i in left.request_id[real]]
    np.testing.assert_array_equal(left.expert[real], [o.expert for o in by_id])
    np.testing.assert_array_equal(left.preemptions[real], [o.preemptions for o in by_id])
    np.testing.assert_allclose(left.ttft_s[real], [o.ttft_s for o in by_id], rtol=1e-4)
    np.testing.assert_allclose(left.latency_s[real], [o.latency_s for o in by_id], rtol=1e-4)

    # QoS, paid in the step in which a request completes, the drain included.
    limit_s = 0.06
    qos, end_s = np.zeros(T), np.full(T, np.inf)
    for o in outcomes:
        if o.status == "completed":
            i, n = o.request_id, o.expert
            end_s[i] = arrival_s[i] + o.latency_s - float(params.profile.network_rtt_s[n])
            good = o.latency_s / o.output_tokens <= limit_s
            qos[i] = requests.quality[i, n] * good
    assert 0 < np.count_nonzero(qos) < np.sum(status == "completed")
    paid_in = np.searchsorted(arrival_s[1:], end_s[status == "completed"], side="left")
    expected = np.bincount(paid_in, weights=qos[status == "completed"], minlength=T)
    np.testing.assert_allclose(results.reward, expected, atol=1e-5)
    passed = results.info.passed
    np.testing.assert_allclose(passed.qos.sum(axis=1), expected, atol=1e-5)
    np.testing.assert_allclose(passed.busy_s.sum(axis=0), [r.busy_s for r in runs], rtol=1e-4)
    np.testing.assert_allclose(passed.kv_token_s.sum(axis=0), [r.kv_token_s for r in runs], rtol=1e-4)

    # The accounts of the state, after every step.
    after = np.append(states.completed[1:], last.completed)
    np.testing.assert_array_equal(after, passed.completed_count.sum(axis=1).cumsum())
    in_flight = np.append(states.fleet.serving.live[1:].sum(axis=(1, 2)), last.fleet.serving.live.sum())
    lost = ("rejected", "rejected_too_long", "dropped")
    lost_after = sum(np.append(getattr(states, name)[1:], getattr(last, name)) for name in lost)
    np.testing.assert_array_equal(after + lost_after + in_flight, np.arange(1, T + 1))

    # It ends once, by itself, drained.
    np.testing.assert_array_equal(results.terminated, np.arange(T) == T - 1)
    assert not results.truncated.any()
    assert in_flight[-1] == 0
    assert np.isinf(results.info.gap_s[-1])


def test_what_is_seen_of_a_request_ends_at_the_context_limit():
    env = environment("llama_cpp", allow_drop=True)
    params = replay_params(1, T, SMALL_MEMORY, mean_gap_s=0.03)
    states, results, _ = rollout(env, KEY, params, random_actions(1, T, EXPERTS + 1))
    seen, requests, rows = results.observation, states.request, params.table
    limits = SMALL_MEMORY.kv_capacity_tokens // SMALL_MEMORY.max_running
    np.testing.assert_array_equal(seen.profile.context_limit_tokens[0], limits)
    room = limits - np.asarray(requests.prompt_tokens)[:, None]
    for name in ("output_tokens", "predicted_output_tokens"):
        of_table = np.asarray(getattr(rows, name))[:T]
        cut = np.where(room > 0, np.minimum(of_table, room), of_table)
        np.testing.assert_array_equal(getattr(requests, name), cut)
        assert np.any(cut < of_table)
    assert not np.any(np.asarray(seen.available)[:-1] & (room[1:] < 1))
    # A request in flight is expected to end there too, however long it was predicted.
    one = jax.tree.map(lambda leaf: leaf[T // 2], seen)
    whole = np.asarray(predicted_outlook(one).output_tokens)
    most = limits[:, None] - np.asarray(one.slot_prompt_tokens)
    assert np.any(one.live)
    assert np.all((whole <= most) | ~one.live)


CACHES = dataclasses.replace(SERVING["chunked_prefill"], prefix_entries=8)


def conversations(rows):
    """Turns of one length at all experts, so that what was said is what any of them answered."""
    drawn = table(1, rows)
    drawn = dataclasses.replace(drawn, output_tokens=np.repeat(drawn.output_tokens[:, :1], EXPERTS, 1))
    return draw_conversations(
        jax.random.key(3), drawn, mean_turns=6.0, open_conversations=8, limit_tokens=900
    )


def test_with_caches_turns_come_in_order_and_are_served_as_the_reference_does():
    rows = conversations(T - 9)  # the first come again
    params = make_params(roomy(), rows, 0.06, LENGTH_LOG_STD, process=poisson(3.0))
    env, actions = RoutingEnvironment(EnvConfig(CACHES)), random_actions(1, T)
    states, results, last = jax.device_get(rollout(env, KEY, params, actions))
    requests = jax.tree.map(lambda leaf: np.asarray(leaf)[np.arange(T) % (T - 9)], rows)
    for name in ("prompt_tokens", "output_tokens", "quality", "prefix_group", "prefix_tokens"):
        np.testing.assert_array_equal(getattr(states.request, name), getattr(requests, name))
    arrival_s = np.concatenate([[0.0], np.cumsum(results.info.gap_s[:-1].astype(np.float64))])
    outcomes, _ = simulate_fleet(
        roomy(),
        arrival_s,
        requests.prompt_tokens,
        requests.output_tokens,
        actions,
        "chunked_prefill",
        prefix_group=requests.prefix_group,
        prefix_tokens=requests.prefix_tokens,
    )
    left = remaining_outcomes(last.fleet)
    ended = jax.tree.map(lambda a, b: np.concatenate([a, b.ravel()]), results.info.routed.evicted, left)
    ended = jax.tree.map(lambda leaf: leaf[ended.request_id >= 0], ended)
    assert ended.request_id.size == last.completed > T // 2
    by_id = [outcomes[i] for i in ended.request_id]
    np.testing.assert_array_equal(ended.cached_tokens, [o.cached_tokens for o in by_id])
    np.testing.assert_allclose(ended.latency_s, [o.latency_s for o in by_id], rtol=1e-4)
    # What a router expects of a cache is what an idle server then finds there.
    seen, at = results.observation.prefix, np.asarray(actions)[1:]
    expected = dict(enumerate(seen.cached_tokens[np.arange(T - 1), at].tolist(), start=1))
    same = [expected[i] == o.cached_tokens for i, o in zip(ended.request_id, by_id, strict=True) if i]
    assert np.mean(same) > 0.9
    assert np.sum(ended.cached_tokens) > 200


def test_caches_need_requests_that_say_what_they_share():
    env, rows = RoutingEnvironment(EnvConfig(CACHES)), conversations(8)
    params = process_params(poisson(1.0))
    with pytest.raises(ValueError, match=r"no prefix_group and prefix_tokens: .*with_prefixes"):
        jax.eval_shape(env.reset, KEY, params)
    nested = dataclasses.replace(params, table=with_prefixes(rows, 2))
    with pytest.raises(ValueError, match=r"set ServingConfig\.prefix_levels = 2"):
        jax.eval_shape(env.reset, KEY, nested)


@pytest.mark.parametrize(
    ("max_steps", "steps", "terminated", "truncated"),
    [(5, 5, False, True), (6, 6, True, False), (7, 6, True, False)],
)
def test_terminated_and_truncated_are_apart(max_steps, steps, terminated, truncated):
    """Cut short by the time limit; ended by itself at that very step; ended by itself before it."""
    env = environment(max_steps=max_steps)
    _, results, _ = rollout(env, KEY, replay_params(2, 6), random_actions(2, 6))
    ends = np.stack([results.terminated, results.truncated], axis=1)[:steps]
    assert not ends[:-1].any()
    assert ends[-1].tolist() == [terminated, truncated]


def test_the_final_observation_is_of_the_state_reached():
    env, params = environment(max_steps=8), process_params(poisson(12.0))
    _, results, last = rollout(env, KEY, params, random_actions(0, 8))
    assert bool(results.truncated[-1])
    assert not bool(results.terminated[-1])
    final = jax.tree.map(lambda x: x[-1], results.observation)
    chex.assert_trees_all_equal(final, env.observation(params, last))
    assert int(final.step) == 8
    assert bool(jnp.any(final.live))  # truncated with requests in flight, not drained


def test_the_process_never_ends_by_itself_and_ignores_the_actions():
    env, params = environment(max_steps=T), process_params(mmpp(10.0, 4.0, 1.0, 2.0))
    runs = [
        rollout(env, KEY, params, actions) for actions in (random_actions(0, T), jnp.full(T, 1, jnp.int32))
    ]
    (states_a, a, last_a), (states_b, b, last_b) = runs
    assert not bool(jnp.any(a.terminated))
    # Common random numbers: equal keys give equal arrivals and requests, whatever is done with them.
    chex.assert_trees_all_equal(a.info.gap_s, b.info.gap_s)
    chex.assert_trees_all_equal(states_a.request, states_b.request)
    chex.assert_trees_all_equal((last_a.request, last_a.arrivals), (last_b.request, last_b.arrivals))
    assert float(jnp.max(jnp.abs(states_a.fleet.serving.age_s - states_b.fleet.serving.age_s))) > 0.0
    other = rollout(env, jax.random.key(1), params, random_actions(0, T))[1]
    assert not np.array_equal(a.info.gap_s, other.info.gap_s)


def test_a_sweep_of_rates_limits_and_profiles_compiles_once_and_equals_single_runs():
    env = environment(max_steps=T)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sweep(key, params, actions):
        return jax.vmap(lambda p: rollout(env, key, p, actions)[1])(params)

    def lane(rate, limit_s, slow):
        fleet = profile(decode_base_s=[slow / 32, slow / 64, slow / 32])
        return process_params(poisson(rate), fleet, latency_limit_s=limit_s)

    grids = [
        [(2.0, 0.05, 1), (10.0, 0.05, 1), (10.0, 0.2, 1), (10.0, 0.2, 2)],
        [(1.0, 0.1, 2), (3.0, 0.1, 2), (5.0, 0.1, 2), (20.0, 0.3, 1)],
    ]
    for grid in grids:
        lanes = [lane(*point) for point in grid]
        many = sweep(KEY, jax.tree.map(lambda *x: jnp.stack(x), *lanes), random_actions(0, T))
        for i, one in enumerate(lanes):
            alone = rollout(env, KEY, one, random_actions(0, T))[1]
            np.testing.assert_allclose(many.reward[i], alone.reward, rtol=1e-5)
            np.testing.assert_allclose(many.info.gap_s[i], alone.info.gap_s, rtol=1e-5)
            np.testing.assert_array_equal(many.observation.live[i], alone.observation.live)
    # Rates scale the gaps; the generator's draws are common.
    np.testing.assert_allclose(many.info.gap_s[0], many.info.gap_s[1] * 3.0, rtol=1e-5)


@pytest.mark.parametrize("action", [EXPERTS, EXPERTS + 7, -1])
def test_an_action_that_is_no_expert_drops(action):
    env = environment(allow_drop=True)
    _, results, last = rollout(env, KEY, replay_params(0, 6), jnp.full(6, action, jnp.int32))
    assert bool(jnp.all(results.info.routed.dropped))
    assert int(last.dropped) == 6
    assert int(last.in_flight) == int(last.rejected) == 0
    assert float(jnp.sum(results.reward)) == 0.0


def test_qos_by_hand_and_equality_meets_the_limit():
    """Alone on expert 1: prefill 2^-5 + 16 x 2^-11, then 3 decodes of 2^-5 + 2^-11 + 2^-17 ctx."""
    decode_s = sum(2**-5 + 2**-11 + 2**-17 * context for context in (17, 18, 19))
    latency_s = 2**-5 + 16 * 2**-11 + decode_s
    requests = table(0, 1)
    requests.prompt_tokens[:] = 16
    requests.output_tokens[:] = 4
    requests.quality[:] = 0.75
    for limit_s, expected in ((latency_s / 4, 0.75), (np.nextafter(np.float32(latency_s / 4), 0), 0.0)):
        params = make_params(profile(), requests, limit_s, LENGTH_LOG_STD, episode=episode(0, 1))
        _, results, last = rollout(environment(), KEY, params, jnp.array([1], jnp.int32))
        assert float(last.fleet.serving.latency_s[1, -1]) == np.float32(latency_s)
        assert float(results.reward[0]) == expected


def test_no_nan_arises_and_no_tracer_leaks():
    env = RoutingEnvironment(EnvConfig(ServingConfig(EXPERTS, 4, 5), reward="potential"))
    with jax.debug_nans(True), jax.checking_leaks():
        _, results, _ = rollout(env, KEY, replay_params(0, 6), random_actions(0, 6))
    assert bool(results.terminated[-1])


def test_bad_configuration():
    with pytest.raises(ValueError, match="reward 'qso' is unknown"):
        EnvConfig(SERVING["prefill_first"], reward="qso")
    with pytest.raises(ValueError, match="max_steps = 0"):
        EnvConfig(SERVING["prefill_first"], max_steps=0)
    for given in ({}, {"process": poisson(1.0), "episode": episode(0, 3)}):
        with pytest.raises(ValueError, match="either process or episode"):
            make_params(profile(), table(0, 3), 0.1, LENGTH_LOG_STD, **given)
    with pytest.raises(ValueError, match="2 experts, the fleet 3"):
        make_params(profile(), table(0, 3, experts=2), 0.1, LENGTH_LOG_STD, process=poisson(1.0))


def test_configurations_are_hashable_and_count_actions():
    assert hash(EnvConfig(SERVING["prefill_first"])) == hash(EnvConfig(SERVING["prefill_first"]))
    assert environment(allow_drop=False).config.num_actions == EXPERTS
    assert environment().config.num_actions == EXPERTS + 1
