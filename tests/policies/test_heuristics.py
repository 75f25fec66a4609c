"""Each router against choices worked out by hand, on observations written by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies import heuristics, policy
from qos_jax.policies.greedy_params import greedy_params, measured_params
from qos_jax.policies.measured_price import measured_price
from qos_jax.routing.measured import no_measurements
from qos_jax.serving import ServiceLimits
from tests.routing.seen import LIMIT_S, observation, with_slots

KEYS = jax.random.split(jax.random.key(0), 400)


@functools.cache
def program(name):
    """The router as one compiled program for all parameters and observations of a shape."""
    router = policy(name, assignment=[0]).router
    return jax.jit(lambda params, keys, seen: jax.vmap(lambda key: router(params, key, seen))(keys))


def choices(name, seen, **options):
    """The router's choice under each of the keys: [400]."""
    return np.asarray(program(name)(policy(name, **options).params, KEYS, seen))


def test_random_draws_every_expert_evenly_and_never_drops():
    drawn = np.bincount(choices("random", observation()), minlength=2)
    assert drawn.sum() == 400
    assert drawn.min() > 160


def test_round_robin_takes_turns_by_the_count_of_arrivals():
    seen = observation()
    turns = [
        int(heuristics.round_robin(None, KEYS[0], dataclasses.replace(seen, step=jnp.int32(s))))
        for s in range(5)
    ]
    assert turns == [0, 1, 0, 1, 0]


def test_shortest_queue_counts_running_and_waiting_and_draws_ties():
    assert set(choices("shortest_queue", observation(slots=1))) == {1}
    tie = with_slots(observation(slots=1), live=[[1, 0, 0], [1, 0, 0]], running=[[1, 0, 0], [0, 0, 0]])
    assert set(choices("shortest_queue", tie)) == {0, 1}
    fewer_running = with_slots(tie, live=[[1, 0, 0], [1, 1, 0]])
    assert set(choices("shortest_queue", fewer_running)) == {0}


def test_least_work_counts_tokens_not_requests():
    # Two requests with 4 tokens left each against one with 10.
    seen = with_slots(
        observation(),
        live=[[1, 1, 0], [1, 0, 0]],
        slot_predicted_output_tokens=[[14, 14, 1], [20, 1, 1]],
        slot_generated_tokens=[[10, 10, 0], [10, 0, 0]],
    )
    assert set(choices("least_work", seen)) == {0}
    assert set(choices("shortest_queue", seen)) == {1}


def test_least_work_expects_more_of_one_that_outlived_its_prediction():
    """Predicted 10 and generated 40: at std 0.7 more is to come than of one with 5 to go."""
    seen = with_slots(
        observation(length_log_std=0.7),
        live=[[1, 0, 0], [1, 0, 0]],
        slot_predicted_output_tokens=[[10, 1, 1], [10, 1, 1]],
        slot_generated_tokens=[[40, 0, 0], [2, 0, 0]],
    )
    assert set(choices("least_work", seen)) == {1}


def test_power_of_two_is_the_shorter_of_two_and_works_with_one_or_three():
    assert set(choices("power_of_two", observation(slots=2))) == {1}
    one = jax.tree.map(lambda x: x[:1] if x.ndim else x, observation(slots=1))
    assert set(choices("power_of_two", one)) == {0}
    # Queues of 2, 0 and 1: the longest is never the shorter of two; the shortest wins 2 draws of 3.
    three = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]) if x.ndim else x, observation(slots=2))
    three = dataclasses.replace(three, live=three.live.at[2, 1].set(False))
    drawn = np.bincount(choices("power_of_two", three), minlength=3)
    assert drawn[0] == 0
    assert 400 * 0.58 < drawn[1] < 400 * 0.75


def test_best_quality_looks_at_nothing_else():
    assert set(choices("best_quality", observation(slots=0))) == {1}
    full = dataclasses.replace(observation(slots=0), available=jnp.array([True, False]))
    assert set(choices("best_quality", full)) == {1}


def test_quality_within_limit():
    # Alone: 0.049 s/token on both (see the impact tests), so the better one within the limit of 0.06.
    seen = observation(slots=0)
    assert set(choices("quality_within_limit", seen)) == {1}
    # Expert 1 is the better but an iteration of 0.1 s in progress pushes it to 0.069: the other.
    late = dataclasses.replace(seen, lead_s=jnp.array([0.0, 0.1], jnp.float32))
    assert set(choices("quality_within_limit", late)) == {0}
    # None within the limit: the quickest, whatever its quality.
    hopeless = dataclasses.replace(late, limits=ServiceLimits(jnp.float32(0.01)))
    assert set(choices("quality_within_limit", hopeless)) == {0}
    # A full queue is no choice.
    full = dataclasses.replace(seen, available=jnp.array([True, False]))
    assert set(choices("quality_within_limit", full)) == {0}


def measured_seen(kept_pace_s, slots=1):
    """Two experts of quality 0.5 and 0.9 whose answers took so many seconds a token; limit LIMIT_S."""
    pace_s = jnp.asarray(kept_pace_s, jnp.float32)[:, None] * jnp.ones((1, 2))
    seen = jnp.where(pace_s > 0.0, 1.0, 0.0)
    none = dataclasses.replace(no_measurements(2), seen=seen, pace_s=pace_s)
    return dataclasses.replace(observation(slots=slots), measured=none)


def test_measured_greedy_weighs_quality_by_what_was_measured_against_crowding():
    assert set(choices("measured_greedy", observation(slots=1))) == {1}
    for pace_s, expected in (
        ([0.0, 0.0], 1),  # nothing measured: quality
        ([0.0, LIMIT_S / 2], 1),
        ([LIMIT_S / 2, 4 * LIMIT_S], 0),
        ([LIMIT_S / 4, 0.5 * LIMIT_S], 1),
        ([LIMIT_S / 4, 1.2 * LIMIT_S], 0),  # 0.9 at a chance below 1/2 is less than 0.5 for sure
    ):
        assert set(choices("measured_greedy", measured_seen(pace_s))) == {expected}, pace_s
    # One request in flight is a cube of 1/20; newcomers are half as long as usual.
    seen = with_slots(measured_seen([0.0, 0.0]), live=[[0, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(measured_price(measured_params(), seen), [0.0, 0.4 * 0.5 / 8000], rtol=1e-6)
    for price, expected in ((0.39 * 16000, 1), (0.41 * 16000, 0)):
        params = dataclasses.replace(measured_params(), congestion_price=jnp.float32(price))
        assert set(np.asarray(program("measured_greedy")(params, KEYS, seen))) == {expected}
    hopeless = dataclasses.replace(seen, available=jnp.array([False, True]))
    assert set(np.asarray(program("measured_greedy")(params, KEYS, hopeless))) == {1}
    dear = dataclasses.replace(params, congestion_price=jnp.float32(1e5))
    assert set(np.asarray(program("measured_greedy")(dear, KEYS, hopeless))) == {2}
    never = dataclasses.replace(dear, drop_below=jnp.float32(-np.inf))
    assert set(np.asarray(program("measured_greedy")(never, KEYS, hopeless))) == {1}


def test_impact_greedy_weighs_quality_against_the_papers_penalty():
    """Qualities 0.5 and 0.9; on expert 1 a request of quality 0.75 is pushed past L, on expert 0 none."""
    seen = observation(age_s=0.5, generated=10, predicted=20.0, quality=0.75)
    seen = dataclasses.replace(seen, limits=ServiceLimits(jnp.float32(0.0505)))
    swapped = with_slots(
        seen,
        **{
            name: np.asarray(getattr(seen, name))[::-1]
            for name in (
                "live",
                "running",
                "age_s",
                "slot_prompt_tokens",
                "slot_generated_tokens",
                "slot_predicted_output_tokens",
                "slot_predicted_quality",
            )
        },
    )
    assert set(choices("impact_greedy", seen)) == {1}
    assert set(choices("impact_greedy", swapped)) == {0}  # 0.5 > 0.9 - 0.75
    cheap = dataclasses.replace(swapped, slot_predicted_quality=swapped.slot_predicted_quality * 0.5)
    assert set(choices("impact_greedy", cheap)) == {1}  # 0.5 < 0.9 - 0.375


def test_projected_greedy_weighs_own_qos_against_what_others_lose():
    assert set(choices("projected_greedy", observation(slots=0))) == {1}
    late = dataclasses.replace(observation(slots=0), lead_s=jnp.array([0.0, 5.0], jnp.float32))
    assert set(choices("projected_greedy", late)) == {0}
    # Expert 1 serves a request of quality 1 that just meets L; the newcomer's prefill would push it past.
    brink = with_slots(
        observation(slots=0),
        live=[[0, 0, 0], [1, 0, 0]],
        running=[[0, 0, 0], [1, 0, 0]],
        slot_prompt_tokens=[[0, 0, 0], [10, 0, 0]],
        slot_generated_tokens=[[0, 0, 0], [8, 0, 0]],
        slot_predicted_output_tokens=[[1, 1, 1], [10, 1, 1]],
        slot_predicted_quality=[[0, 0, 0], [1, 0, 0]],
        age_s=[[0, 0, 0], [0.49, 0, 0]],
    )
    params = dataclasses.replace(greedy_params(), margin=jnp.float32(0.05))
    impact = jax.jit(heuristics.projected_impact)(brink, params.margin)
    assert float(impact.penalty[1]) > 0.4
    greedy = program("projected_greedy")
    assert set(np.asarray(greedy(params, KEYS, brink))) == {0}
    safe = with_slots(brink, age_s=[[0, 0, 0], [0.2, 0, 0]])
    assert set(np.asarray(greedy(params, KEYS, safe))) == {1}


@pytest.mark.parametrize("name", ["impact_greedy", "projected_greedy"])
def test_greedy_drops_only_where_allowed_and_nothing_is_gained(name):
    """Every expert already serves three on the brink: whatever the newcomer brings, more is lost."""
    brink = observation(slots=3, age_s=0.5, generated=10, predicted=20.0, quality=1.0)
    brink = dataclasses.replace(
        jax.tree.map(lambda x: jnp.stack([x[0], x[0]]) if x.ndim else x, brink),
        limits=ServiceLimits(jnp.float32(0.0505)),
        predicted_quality=jnp.array([0.01, 0.02], jnp.float32),
    )
    if name == "projected_greedy":  # the projected end, not the present state, must be on the brink
        brink = dataclasses.replace(brink, limits=ServiceLimits(jnp.float32(0.098)))
    assert set(choices(name, brink)) == {2}
    assert set(choices(name, brink, allow_drop=False)) <= {0, 1}
    # And never where something is gained.
    assert set(choices(name, observation(slots=0))) == {1}


@pytest.mark.parametrize("name", ["impact_greedy", "projected_greedy", "quality_within_limit"])
def test_all_queues_full_is_still_an_answer(name):
    full = dataclasses.replace(observation(), available=jnp.array([False, False]))
    assert set(choices(name, full, allow_drop=False)) <= {0, 1}


def test_assigned_replays():
    seen = dataclasses.replace(observation(), step=jnp.int32(2))
    assert set(choices("assigned", seen, assignment=jnp.array([0, 0, 1, 0]))) == {1}
