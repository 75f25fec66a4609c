"""What the greedy routers maximise: each term by hand, and what moves the price of crowding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies.greedy_params import NUMBERS, POWERS, SEARCHED, greedy_params, load_aware_params
from qos_jax.policies.heuristics import load_aware_greedy
from qos_jax.policies.net_gain import (
    crowding_cost,
    crowding_price,
    impact_of_each,
    latency_margin,
    net_gain,
    recent_load,
)
from qos_jax.serving import ServiceLimits
from tests.routing.seen import observation, with_slots

KEY = jax.random.key(0)


def test_the_price_of_a_place_follows_what_comes_for_it_and_how_long_it_is_taken():
    """Expert 1 is better and has two in its batch of three: worth it while few or short requests come."""
    seen = observation(slots=0)
    taken = with_slots(
        seen,
        live=[[0, 0, 0], [1, 1, 0]],
        running=[[0, 0, 0], [1, 1, 0]],
        slot_predicted_output_tokens=[[1, 1, 1], [5, 5, 1]],
        slot_prompt_tokens=[[0, 0, 0], [10, 10, 0]],
    )
    taken = dataclasses.replace(
        taken, predicted_quality=jnp.array([0.5, 0.53], jnp.float32), limits=ServiceLimits(jnp.float32(1.0))
    )

    router = jax.jit(load_aware_greedy)

    def chosen(load, mean_output=5.0, **params):
        view = dataclasses.replace(
            taken,
            offered_load=jnp.full((2,), load, jnp.float32),
            mean_output_tokens=jnp.full((2,), mean_output, jnp.float32),
        )
        return int(router(greedy_params(**params), KEY, view))

    by_load = {"price_by_load": 1.0}
    assert (chosen(0.3, **by_load), chosen(1.5, **by_load)) == (1, 0)
    assert chosen(0.0, **by_load) == chosen(1.0, **by_load)  # nothing known: a load of 1
    assert chosen(0.3) == chosen(1.5) == chosen(1.0, **by_load)
    # The request is of 5 tokens: short among requests of 50, long among those of 1.
    by_length = {"price_by_length": 1.0}
    assert (chosen(1.0, 50.0, **by_length), chosen(1.0, 1.0, **by_length)) == (1, 0)
    assert chosen(1.0, 0.0, **by_length) == chosen(1.0, 5.0, **by_length)  # nothing known: as the mean
    assert chosen(1.0, 50.0) == chosen(1.0, 1.0)


def test_what_others_lose_counts_by_its_weight_and_the_margin_follows_the_load():
    seen = dataclasses.replace(
        observation(slots=2),
        offered_load=jnp.full((2,), 0.25, jnp.float32),
        limits=ServiceLimits(jnp.float32(0.098)),
    )
    plain, heavy = greedy_params(congestion_price=0.0), load_aware_params()
    heavy = dataclasses.replace(heavy, congestion_price=jnp.float32(0.0))
    for params, weight, margin in ((plain, 1.0, 0.3), (heavy, 1.5, 0.3 * 0.25**0.35)):
        assert float(latency_margin(params, seen)) == pytest.approx(margin)
        impact = impact_of_each(params, seen)
        gain = net_gain(params, seen, impact)
        np.testing.assert_allclose(gain, impact.own_qos - weight * impact.penalty, rtol=1e-6)
        assert float(impact.penalty[0]) > 0.0


def test_crowding_costs_what_each_in_flight_was_charged_for_its_place():
    params = greedy_params(congestion_price=0.5)
    for slots, places in ((0, []), (1, [0]), (3, [0, 1, 2])):
        charged = 0.5 * sum((place / 3) ** 3 for place in places)  # of batches of 3
        assert float(crowding_cost(params, observation(slots=slots))) == pytest.approx(charged)
        # Of 20 tokens 10 are to come, as many as a request of late has in the mean.
        by_length = dataclasses.replace(params, price_by_length=jnp.float32(1.0))
        assert float(crowding_cost(by_length, observation(slots=slots))) == pytest.approx(charged)
        fresh = observation(slots=slots, generated=0)
        assert float(crowding_cost(by_length, fresh)) == pytest.approx(2.0 * charged)


def test_the_price_follows_occupancy_pace_and_the_fleet_by_their_powers():
    """Expert 0 is idle, expert 1 has two in its batch of three."""
    taken = with_slots(
        observation(slots=0),
        live=[[0, 0, 0], [1, 1, 0]],
        running=[[0, 0, 0], [1, 1, 0]],
        slot_prompt_tokens=[[0, 0, 0], [10, 20, 0]],
    )

    def price(**powers):
        params = greedy_params(congestion_price=0.5)
        powers = {name: jnp.float32(power) for name, power in powers.items()}
        return np.asarray(crowding_price(dataclasses.replace(params, **powers), taken))

    np.testing.assert_allclose(price(), [0.0, 0.5 * (2 / 3) ** 3], rtol=1e-6)
    np.testing.assert_allclose(price(price_by_occupancy=1.5), [0.0, 0.5 * (2 / 3) ** 1.5], rtol=1e-6)
    fleet = (1 / 3 + 0.01) / 0.3
    np.testing.assert_allclose(price(price_by_fleet=-0.5), price() * fleet**-0.5, rtol=1e-6)
    profile = taken.profile
    held = np.asarray(taken.slot_prompt_tokens + taken.slot_generated_tokens, np.float32)
    context = np.sum(np.where(taken.live, held, 0.0), -1, dtype=np.float32)
    pace = profile.decode_base_s + profile.decode_per_seq_s * np.array([0, 2], np.float32)
    pace = np.asarray(pace + profile.decode_per_context_token_s * context)
    assert pace[1] > pace[0]
    expected = price() * (pace / pace.mean()) ** 2.0
    np.testing.assert_allclose(price(price_by_pace=2.0), expected, rtol=1e-5)


def test_experts_that_only_pad_the_fleet_do_not_move_the_price():
    taken = with_slots(observation(slots=0), live=[[1, 0, 0], [1, 1, 1]])
    params = dataclasses.replace(
        greedy_params(), price_by_fleet=jnp.float32(0.7), price_by_pace=jnp.float32(0.9)
    )
    with_pad = crowding_price(params, taken, jnp.array([True, False]))
    emptier = crowding_price(params, with_slots(taken, live=[[1, 0, 0], [0, 0, 0]]), jnp.array([True, False]))
    assert float(with_pad[0]) == float(emptier[0])
    assert float(with_pad[0]) != float(crowding_price(params, taken)[0])


def test_the_recent_load_is_the_mean_of_the_windows_and_1_before_any():
    seen = observation()
    for windows, load in (([1.6, 0.4], 1.0), ([0.0, 0.0], 1.0), ([9.0, 9.0], 2.0), ([0.01, 0.01], 0.1)):
        view = dataclasses.replace(seen, offered_load=jnp.array(windows, jnp.float32))
        assert float(recent_load(view)) == pytest.approx(load)


def test_every_power_multiplies_what_it_is_named_after():
    """By hand: price, weight of the penalty and margin under each power alone, of a value that is not 1."""
    seen = with_slots(
        observation(slots=2),
        live=[[1, 1, 0], [1, 1, 0]],
        running=[[1, 1, 0], [1, 1, 0]],
        slot_prompt_tokens=[[30, 30, 0], [10, 20, 0]],
        slot_predicted_output_tokens=[[20, 20, 0], [11, 11, 0]],
        slot_generated_tokens=[[10, 10, 0], [10, 10, 0]],
    )
    seen = dataclasses.replace(
        seen,
        offered_load=jnp.array([0.8, 0.4], jnp.float32),
        mean_output_tokens=jnp.array([4.0, 12.0], jnp.float32),
        limits=ServiceLimits(jnp.float32(0.098)),
    )
    profile = seen.profile
    prompt = float(seen.prompt_tokens)
    prefill_s = profile.prefill_base_s + prompt * (
        profile.prefill_per_token_s + profile.prefill_per_token_sq_s * prompt
    )
    decode_s = np.asarray(profile.decode_base_s) * np.asarray(seen.predicted_output_tokens)
    held = np.asarray(seen.slot_prompt_tokens + seen.slot_generated_tokens, np.float32)
    held = np.sum(np.where(seen.live, held, 0.0), -1)
    pace_s = np.asarray(profile.decode_base_s + 2 * profile.decode_per_seq_s)
    pace_s = pace_s + np.asarray(profile.decode_per_context_token_s) * held
    load = 0.6
    factors = {
        "load": load,
        "burst": 2.0,
        "length": np.asarray(seen.predicted_output_tokens) / np.array([4.0, 12.0]),
        "level": 8.0 / 100.0,
        "prefill": 1.0 + np.asarray(prefill_s) / decode_s,
        "pace": pace_s / pace_s.mean(),
        "slowness": pace_s / (0.5 * 0.098),
        "fleet": (2 / 3 + 0.01) / 0.3,
    }
    assert set(factors) == set(POWERS["price"])
    plain = greedy_params(congestion_price=0.5)
    impact = impact_of_each(plain, seen)

    def penalty_weight(params):
        gain = net_gain(params, seen, impact) + crowding_price(params, seen)
        return np.asarray((impact.own_qos - gain)[:1] / impact.penalty[:1])  # none would lose on expert 1

    measured = {
        "price": lambda params: crowding_price(params, seen),
        "penalty": penalty_weight,
        "margin": lambda params: latency_margin(params, seen),
    }
    for what, names in POWERS.items():
        for name in names:
            moved = dataclasses.replace(plain, **{f"{what}_by_{name}": jnp.float32(0.7)})
            ratio = np.asarray(measured[what](moved)) / np.asarray(measured[what](plain))
            expected = np.broadcast_to(factors[name], (2,))[: ratio.size] ** 0.7
            np.testing.assert_allclose(
                ratio, expected if ratio.ndim else expected[0], rtol=2e-4, err_msg=f"{what} {name}"
            )


def test_the_margin_of_others_is_theirs_alone():
    seen = dataclasses.replace(observation(slots=2), limits=ServiceLimits(jnp.float32(0.098)))
    plain = greedy_params()
    wide = dataclasses.replace(plain, margin_of_others=jnp.float32(3.0))
    ours, theirs = impact_of_each(plain, seen), impact_of_each(wide, seen)
    np.testing.assert_array_equal(ours.own_qos, theirs.own_qos)
    assert float(ours.penalty[0]) != float(theirs.penalty[0])


def test_the_search_starts_within_its_bounds_and_they_are_within_what_a_sweep_may_set():
    assert set(NUMBERS) - set(SEARCHED) == {"impact_weight"}
    for name, number in SEARCHED.items():
        assert number.low <= number.load_aware <= number.high, name
        assert all(value in number.allowed for value in (number.low, number.high, number.default)), name
        assert number.measured is None or number.low <= number.measured <= number.high, name
    assert float(load_aware_params().penalty_weight) == 1.5
    assert float(greedy_params(penalty_weight=2.0).penalty_weight) == 2.0
    with pytest.raises(TypeError, match="penalty"):
        greedy_params(penalty=2.0)
