"""The price of crowding without profiles: its quantities by hand, and that nothing else is read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies.greedy_params import SEARCHED_MEASURED, measured_params
from qos_jax.policies.measured_price import FULL, measured_penalty_weight, measured_price
from qos_jax.routing.measured import no_measurements
from tests.policies.random_seen import random_seen
from tests.routing.seen import LIMIT_S, observation

PACE_S = np.array([0.03, 0.09], np.float32)
price = jax.jit(measured_price)
weight = jax.jit(measured_penalty_weight)


def numbers(**changes):
    return dataclasses.replace(
        measured_params(), **{name: jnp.float32(value) for name, value in changes.items()}
    )


def measured_seen():
    """Three requests run on expert 0, none on expert 1; both have been measured, at one concurrency."""
    none = no_measurements(2)
    pace_s = jnp.broadcast_to(PACE_S[:, None], none.pace_s.shape)
    measured = dataclasses.replace(none, seen=jnp.ones_like(none.seen), pace_s=pace_s)
    return dataclasses.replace(observation(slots=3), measured=measured)


def test_every_power_is_of_its_quantity():
    """Gaps of 0.2 and 0.3 s, answers of 10 tokens, a newcomer of 5, three of 2 x 20 in flight."""
    seen = measured_seen()
    plain = 0.4 * (3 / FULL) ** 3 * 0.5
    np.testing.assert_allclose(price(measured_params(), seen), [plain, 0.0], rtol=1e-5)
    load = LIMIT_S * 10 / 0.25 / (2 * FULL)
    quantities = {
        "load": max(load, 0.1),
        "burst": 0.3 / 0.2,
        "level": 10 / 100,
        "pace": PACE_S[0] / PACE_S.mean(),
        "slowness": PACE_S[0] / (0.5 * LIMIT_S),
        "fleet": (1.5 / FULL + 0.01) / 0.3,
    }
    for name, value in quantities.items():
        changed = price(numbers(**{f"price_by_{name}": 0.7}), seen)
        np.testing.assert_allclose(changed, [plain * value**0.7, 0.0], rtol=1e-4, err_msg=name)
    changed = price(numbers(price_by_length=0.0, price_by_occupancy=1.0, congestion_price=2.0), seen)
    np.testing.assert_allclose(changed, [2.0 * 3 / FULL, 0.0], rtol=1e-5)
    changed = weight(numbers(penalty_weight=2.0, penalty_by_load=1.0), seen)
    np.testing.assert_allclose(changed, 2.0 * quantities["load"], rtol=1e-5)
    named = {f"price_by_{name}" for name in (*quantities, "length", "occupancy")}
    rest = {"congestion_price", "penalty_weight", "penalty_by_load", "quality_slope"}
    assert named | rest == set(SEARCHED_MEASURED)


def test_nothing_measured_and_no_arrival_change_nothing():
    seen = dataclasses.replace(observation(slots=3), mean_gap_s=jnp.zeros((2,), jnp.float32))
    any_power = numbers(price_by_load=1.0, price_by_burst=1.0, price_by_pace=1.0, price_by_slowness=1.0)
    np.testing.assert_array_equal(price(any_power, seen), price(measured_params(), seen))


@pytest.mark.parametrize("seed", [0, 3])
def test_it_reads_no_profile_and_padding_changes_no_price(seed):
    """Experts 0 and 1 of three, the third padding with requests that must not count."""
    every = numbers(**dict.fromkeys(SEARCHED_MEASURED, 0.6))
    seen = random_seen(seed)
    other = dataclasses.replace(
        seen,
        profile=jax.tree.map(lambda leaf: leaf * 3, seen.profile),
        offered_load=seen.offered_load * 2.0,
    )
    np.testing.assert_array_equal(price(every, seen), price(every, other))
    mask = jnp.array([True, True, False])

    def changed(leaf):
        return leaf.at[2].set(False) if leaf.dtype == bool else leaf.at[2].multiply(5)

    padded = dataclasses.replace(
        seen, live=changed(seen.live), mean_output_tokens=changed(seen.mean_output_tokens)
    )
    for given in (price, weight):
        ours, theirs = (np.atleast_1d(given(every, scene, mask))[:2] for scene in (seen, padded))
        np.testing.assert_array_equal(ours, theirs)
