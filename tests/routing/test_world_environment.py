"""The environment where routers act on beliefs and servers have faults."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from qos_jax.errors import InputError
from qos_jax.policies import policy
from qos_jax.routing import EnvConfig, GymnaxEnv, RoutingEnvironment, make
from qos_jax.routing.adapters import flat_observation
from qos_jax.routing.faults import no_faults
from qos_jax.routing.fleet_state import remaining_outcomes
from qos_jax.routing.observation import BeliefNotes
from qos_jax.routing.telemetry import Telemetry, TelemetryConfig, live_telemetry
from qos_jax.serving import ServiceLimits
from qos_jax.simulation.records import COMPLETED, DROPPED, FAILED, REJECTED, REJECTED_TOO_LONG
from qos_jax.simulation.simulate import Runs
from qos_jax.simulation.world import World, simulate_world
from qos_jax.workload import poisson
from tests.routing.scenes import (
    EXPERTS,
    LENGTH_LOG_STD,
    SERVING,
    environment,
    process_params,
    profile,
    random_actions,
    replay_params,
    rollout,
)
from tests.routing.seen import observation

KEY, T, ROUTERS = jax.random.key(0), 300, 2
TWIN = TelemetryConfig("twin", routers=ROUTERS)
SHARES = Telemetry(jnp.float32(0.2), jnp.float32(0.1), jnp.float32(0.1), jnp.array([0.7, 0.3], jnp.float32))
FAULTS = dataclasses.replace(
    no_faults(EXPERTS),
    pace_log_std=jnp.full(EXPERTS, 0.3),
    outage_per_s=jnp.full(EXPERTS, 1.0),
    outage_length_s=jnp.full(EXPERTS, 0.2),
    # Longer than an outage: most fail at the restart, and are sent to where others wait to be sent again.
    detection_delay_s=jnp.float32(0.3),
    failure_delay_s=jnp.float32(0.25),
    retry=jnp.bool_(True),
)
COUNTS = ("completed", "rejected", "rejected_too_long", "dropped", "failed", "in_flight")


def in_world(choices=TWIN, **options):
    return RoutingEnvironment(EnvConfig(SERVING["prefill_first"], telemetry=choices, **options))


@functools.partial(jax.jit, static_argnums=0)
def accounts(env, key, step_key, params, actions):
    """Take ``actions`` from a reset: counts and draws, [T + 1] each; gaps and rewards, [T]."""

    def of(state):
        row = {name: getattr(state, name) for name in COUNTS}
        return {
            **row,
            "arrived": state.arrived,
            "router": state.world.hand.router,
            "up": state.world.faults.up,
        }

    def step(state, action):
        reached, result = env.step(step_key, state, action, params)
        info, shown = result.info, jax.tree.leaves(result.observation)
        sound = jnp.all(jnp.stack([jnp.all(leaf == leaf) for leaf in shown]))
        told = (info.gap_s, result.reward, result.terminated, info.failed, sound, reached.request)
        return reached, (of(reached), told)

    start, _ = env.reset(key, params)
    last, (rows, told) = jax.lax.scan(step, start, actions)
    return jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), of(start), rows), told, last


@pytest.fixture(scope="module")
def courses():
    """Two courses from one reset, of other actions and other keys of steps."""
    env, params = in_world(), process_params(poisson(12.0), telemetry=SHARES, faults=FAULTS)
    return [
        jax.device_get(accounts(env, KEY, jax.random.key(seed), params, random_actions(seed, T, EXPERTS + 1)))
        for seed in (1, 2)
    ]


def test_every_request_is_accounted_for_at_every_step(courses):
    rows, (gap_s, reward, terminated, failed, sound, _), last = courses[0]
    for name in COUNTS:
        assert np.all(rows[name] >= 0), name
    np.testing.assert_array_equal(sum(rows[name] for name in COUNTS), rows["arrived"])
    assert rows["completed"][-1] > 50
    assert sound.all()
    assert not terminated.any()
    np.testing.assert_array_equal(np.cumsum(failed), rows["failed"][1:])
    # A request that is routed again takes a step at the same instant, in which nothing is paid.
    same = np.diff(rows["arrived"]) == 0
    assert same.sum() > 10
    assert np.all(gap_s[same] == 0.0)
    assert np.all(reward[same] == 0.0)
    assert int(last.step) == T


def test_arrivals_and_faults_depend_neither_on_actions_nor_on_the_keys_of_steps(courses):
    def by_arrival(course):
        rows, (gap_s, *_, request), _ = course
        new = np.flatnonzero(np.diff(rows["arrived"], append=-1))  # the last of each: newcomers
        assert np.array_equal(rows["arrived"][new], np.arange(new.size))
        new = new[1:-1]
        return gap_s[new], rows["up"][new], rows["router"][new], request.prompt_tokens[new - 1]

    one, other = map(by_arrival, courses)
    assert len(one[0]) != len(other[0])  # not as many were routed again
    for a, b in zip(one, other, strict=True):
        shared = min(len(a), len(b))
        assert shared > 150
        np.testing.assert_array_equal(a[:shared], b[:shared])
    assert not one[1].all()
    assert set(one[2]) == {0, 1}


def sharing(rows):
    """Return the requests as those of three groups, that share two blocks before what each asks."""
    number = jnp.arange(rows.num_rows)
    shared = jnp.where(number % 5 > 0, 32, 0)
    return dataclasses.replace(
        rows,
        prompt_tokens=rows.prompt_tokens + shared,
        prefix_group=jnp.where(shared > 0, number % 3, -1),
        prefix_tokens=shared,
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def routed_by(env, key, params, steps):
    """Route to the least work; who was at hand, what came of it, and the last state at the end."""
    router = policy("least_work")

    def step(carry, _):
        state, seen, over = carry
        world = state.world  # keys as the simulator's
        key = jax.random.fold_in(jax.random.key(world.seed), world.arrival)
        key = jnp.where(world.hand.is_retry, jax.random.fold_in(key, world.tries), key)
        action = router.router(router.params, key, seen)
        reached, result = env.step(KEY, state, action, params)
        told = (over, world.hand, result.info.routed.evicted, result.reward)
        carry = jax.tree.map(
            lambda new, old: jnp.where(over, old, new), (reached, result.observation), carry[:2]
        )
        return (*carry, over | result.terminated), told

    start = env.reset(key, params)
    return *jax.lax.scan(step, (*start, jnp.bool_(False)), length=steps), start[0].world.seed


def test_it_does_what_the_simulator_of_worlds_does():
    """The same requests, routers, caches, faults; the same decisions, times, failures, drain included."""
    count, choices = 60, TelemetryConfig("own", routers=ROUTERS)
    params = replay_params(3, count, mean_gap_s=0.05, telemetry=SHARES, faults=FAULTS)
    params = dataclasses.replace(params, table=sharing(params.table))
    caches = dataclasses.replace(SERVING["prefill_first"], prefix_entries=4)
    env = RoutingEnvironment(EnvConfig(caches, telemetry=choices))
    (last, _, over), told, seed = jax.device_get(routed_by(env, KEY, params, 2 * count))
    assert over
    ran = ~told[0]
    hand, evicted, reward = jax.tree.map(lambda leaf: leaf[ran], told[1:])
    assert hand.is_retry.sum() > 5
    gap_s = np.asarray(params.episode.gap_after_s)
    runs = Runs(
        profile=profile(),
        limits=ServiceLimits(np.float32([0.06])),
        length_log_std=LENGTH_LOG_STD[None],
        arrival_s=np.append(0.0, np.cumsum(gap_s[:-1].astype(np.float64)))[None],
        requests=jax.tree.map(lambda leaf: np.asarray(leaf)[None], params.table),
        seed=np.asarray(seed)[None],
    )
    world = World(choices, SHARES, FAULTS)
    records = simulate_world(caches, policy("least_work"), runs, world).records.at(0)
    left = remaining_outcomes(last.fleet)
    left = dataclasses.replace(left, request_id=left.request_id // ROUTERS)
    every = jax.tree.map(lambda a, b: np.concatenate([a, b.ravel()]), evicted, jax.device_get(left))
    every = jax.tree.map(lambda leaf: leaf[every.request_id >= 0], every)
    ended = np.isin(records.status, (COMPLETED, FAILED))
    assert sorted(every.request_id) == list(np.flatnonzero(ended))
    theirs = every.request_id
    np.testing.assert_array_equal(every.expert, records.expert[theirs])
    np.testing.assert_array_equal(every.latency_s < 0.0, records.status[theirs] == FAILED)
    served = ~(every.latency_s < 0.0)
    np.testing.assert_array_equal(every.cached_tokens[served], records.cached_tokens[theirs][served])
    assert every.cached_tokens[served].sum() > 100
    for name in ("latency_s", "ttft_s"):
        expected = np.nan_to_num(getattr(records, name)[theirs], nan=-1.0)
        np.testing.assert_allclose(getattr(every, name), expected, rtol=1e-5, err_msg=name)
    counts = {
        "completed": COMPLETED,
        "rejected": REJECTED,
        "rejected_too_long": REJECTED_TOO_LONG,
        "dropped": DROPPED,
        "failed": FAILED,
    }
    for name, status in counts.items():
        assert getattr(last, name) == np.sum(records.status == status), name
    assert last.in_flight == 0
    assert last.arrived == count
    limits = ServiceLimits(np.float32(0.06))
    qos = np.nansum(records.qos(limits, runs.profile.network_rtt_s))
    np.testing.assert_allclose(reward.sum(), qos, rtol=1e-5)
    assert bool(env.is_over(params, last))


def test_live_telemetry_changes_no_bit():
    view, reward = "twin", "paper"
    params, actions = replay_params(2, 12), random_actions(2, 12)
    live = dataclasses.replace(params, telemetry=live_telemetry())
    states, results, last = rollout(environment(reward=reward), KEY, params, actions)
    mine, told, end = rollout(in_world(TelemetryConfig(view), reward=reward), KEY, live, actions)
    notes = told.observation.belief
    assert np.all(notes.pace == 1.0)
    assert np.all(notes.up)
    assert not np.any(notes.scrape_age_s)
    observation = dataclasses.replace(told.observation, belief=None)
    chex.assert_trees_all_equal(dataclasses.replace(told, observation=observation), results)
    for state, other in ((mine, states), (end, last)):
        chex.assert_trees_all_equal(dataclasses.replace(state, world=None), other)


def test_flat_observations_have_what_is_believed():
    notes = BeliefNotes(jnp.float32(3.0), jnp.array([1.0, 2.0]), jnp.float32(1.0), jnp.array([True, False]))
    plain = observation()
    believed = dataclasses.replace(plain, belief=notes)
    without, flat = jax.jit(lambda *seen: tuple(map(flat_observation, seen)))(plain, believed)
    np.testing.assert_array_equal(flat[:-6], without)
    np.testing.assert_allclose(flat[-6:], [np.log(4.0), np.log(2.0), 0.0, np.log(2.0), 1.0, 0.0], rtol=1e-6)


def test_transforms_take_it():
    params = process_params(poisson(30.0), telemetry=SHARES, faults=FAULTS)
    env = in_world(max_steps=3)
    wrapped = GymnaxEnv(env, params)
    flat, state = jax.eval_shape(wrapped.reset, KEY)
    assert flat.shape == wrapped.observation_space().shape
    with jax.enable_x64(True):
        wide = jax.eval_shape(env.step, KEY, state, jnp.int32(0), params)
    assert not [leaf for leaf in jax.tree.leaves(wide) if leaf.dtype in (np.float64, np.int64)]
    assert jax.tree.map(jnp.result_type, wide[0]) == jax.tree.map(jnp.result_type, state)

    def lane(keys, params):
        state = env.reset(keys[0], params)[0]
        return jax.lax.scan(lambda state, key: wrapped.step(key, state, 0, params)[1:3], state, keys)[1]

    mesh = jax.make_mesh((1,), ("lanes",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("lanes")
    sharded = jax.shard_map(lane, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    assert jax.eval_shape(sharded, jax.random.split(KEY, 4), params).shape == (4,)


def test_make_gives_views_routers_and_faults():
    faults = no_faults(6)
    env, params = make("edge6", view="twin", routers=4, scrape_period_s=5.0, faults=faults, num_requests=8)
    assert env.config.telemetry == TelemetryConfig("twin", routers=4)
    assert float(params.telemetry.scrape_period_s) == 5.0
    np.testing.assert_array_equal(params.telemetry.router_share, 0.25)
    chex.assert_trees_all_equal(params.faults, faults)
    assert jax.eval_shape(env.reset, KEY, params)[1].belief.pace.shape == (6,)
    plain, without = make("edge6", num_requests=8)
    assert plain.config.telemetry is without.telemetry is without.faults is None
    for given in (
        {"routers": 2},
        {"scrape_period_s": 1.0},
        {"faults": faults},
        {"view": "twin", "routers": 0},
    ):
        with pytest.raises(InputError):
            make("edge6", **given)


def test_configuration_and_parameters_must_agree():
    live = live_telemetry()
    for choices, given, fault in (
        (TelemetryConfig("live"), {}, "live_telemetry"),
        (TelemetryConfig("live", routers=3), {"telemetry": live}, "router_share has 1 routers"),
        (None, {"telemetry": live}, "give EnvConfig.telemetry"),
        (None, {"faults": FAULTS}, "give EnvConfig.telemetry"),
        (TelemetryConfig("live"), {"telemetry": live, "faults": no_faults(2)}, "faults are of 2 experts"),
    ):
        with pytest.raises(ValueError, match=fault):
            in_world(choices).reset(KEY, replay_params(0, 3, **given))
