"""What predicted qualities are worth: by hand, against the truth of drawn tables, and paid in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies.greedy_params import greedy_params
from qos_jax.policies.heuristics import projected_greedy
from qos_jax.policies.net_gain import impact_of_each
from qos_jax.routing.believed_quality import believed_quality, expected_quality, quality_fit
from qos_jax.routing.params import as_good_as_expected
from qos_jax.serving import ServiceLimits
from qos_jax.workload import RequestTable, poisson
from tests.routing import scenes
from tests.routing.seen import observation

USUAL = jnp.array([0.4, 0.6, 0.5], jnp.float32)
# Usual + 0.1 for the request + a rest of (0.2, -0.1, -0.1).
PREDICTED = jnp.array([0.7, 0.6, 0.5], jnp.float32)
REST = np.array([0.2, -0.1, -0.1])


@pytest.mark.parametrize("slope", [0.0, 0.4, 1.3])
def test_only_what_sets_experts_apart_in_this_request_is_scaled(slope):
    believed = believed_quality(PREDICTED, USUAL, jnp.float32(slope))
    np.testing.assert_allclose(believed, np.array([0.5, 0.7, 0.6]) + slope * REST, rtol=1e-5)


def test_a_slope_of_one_changes_no_bit():
    predicted = jax.random.uniform(jax.random.key(0), (64, 3))
    believed = jax.vmap(believed_quality, (0, None, None))(predicted, USUAL, jnp.float32(1.0))
    np.testing.assert_array_equal(believed, predicted)


def test_experts_that_only_pad_the_fleet_do_not_count():
    mask = jnp.array([True, True, True, False])
    padded = believed_quality(jnp.append(PREDICTED, 9.0), jnp.append(USUAL, 0.0), jnp.float32(0.4), mask)
    np.testing.assert_allclose(padded[:3], believed_quality(PREDICTED, USUAL, jnp.float32(0.4)), rtol=1e-6)
    assert np.isfinite(padded).all()


def overstated(key, rows=4096, slope=0.3):
    """A table whose predicted rests are true only to a share of ``slope``."""
    common_key, rest_key, draw_key = jax.random.split(key, 3)
    common = 0.2 * jax.random.normal(common_key, (rows, 1))
    rest = 0.05 * jax.random.normal(rest_key, (rows, 3))
    rest = rest - jnp.mean(rest, axis=-1, keepdims=True)
    chance = jnp.clip(USUAL[None] + common + slope * rest, 0.0, 1.0)
    return RequestTable(
        prompt_tokens=jnp.full((rows,), 10, jnp.int32),
        quality=(jax.random.uniform(draw_key, (rows, 3)) < chance).astype(jnp.float32),
        output_tokens=jnp.full((rows, 3), 10, jnp.int32),
        predicted_quality=USUAL[None] + common + rest,
        predicted_output_tokens=jnp.full((rows, 3), 10.0, jnp.float32),
    )


def test_the_highest_prediction_disappoints_and_the_expected_quality_does_not():
    table = overstated(jax.random.key(1))
    predicted, true = np.asarray(table.predicted_quality), np.asarray(table.quality)
    expected = np.asarray(expected_quality(quality_fit(table), table.predicted_quality))
    rows = np.arange(len(true))
    error = 0.5 / np.sqrt(len(true))
    by_rest = (predicted - np.asarray(USUAL)).argmax(-1)  # predicted to be unusually good here
    assert predicted[rows, by_rest].mean() - true[rows, by_rest].mean() > 3.0 * error
    assert abs(expected[rows, by_rest].mean() - true[rows, by_rest].mean()) < 2.0 * error
    # A regression leaves no error that what it read could explain.
    np.testing.assert_allclose((true - expected).mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(((true - expected) * predicted).mean(0), 0.0, atol=1e-4)


def test_constant_predictions_let_expect_the_mean():
    table = overstated(jax.random.key(2), rows=512)
    table = table.replace(predicted_quality=jnp.full((512, 3), 0.5, jnp.float32))
    expected = expected_quality(quality_fit(table), table.predicted_quality)
    np.testing.assert_allclose(expected, np.asarray(table.quality).mean(0)[None].repeat(512, 0), rtol=1e-3)


def test_requests_are_paid_what_was_to_be_expected_and_differ_in_nothing_else():
    params = scenes.process_params(poisson(4.0))
    paid = as_good_as_expected(params)
    table = params.table
    np.testing.assert_allclose(
        paid.table.quality, expected_quality(quality_fit(table), table.predicted_quality), rtol=1e-6
    )
    back = paid.replace(table=paid.table.replace(quality=table.quality))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_routers_believe_by_their_slope_once_something_has_arrived():
    # Two experts, predicted 0.5 and 0.9, usually 0.9 and 0.5: not believed, the first is the better.
    seen = observation(slots=0).replace(
        mean_quality=jnp.array([0.9, 0.5], jnp.float32), limits=ServiceLimits(jnp.float32(9.0))
    )
    route = jax.jit(projected_greedy)
    key = jax.random.key(0)

    def chosen(slope, view):
        return int(route(greedy_params(quality_slope=slope), key, view))

    assert (chosen(1.0, seen), chosen(0.0, seen)) == (1, 0)
    gains = impact_of_each(greedy_params(quality_slope=0.0), seen).own_qos
    np.testing.assert_allclose(gains, [0.9, 0.5], atol=1e-3)
    nothing_yet = seen.replace(mean_output_tokens=jnp.zeros((2,), jnp.float32))
    assert chosen(0.0, nothing_yet) == 1
