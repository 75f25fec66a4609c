"""Predictions get worse as asked, truths stay, and the amount is a number that sweeps without recompiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qos_jax.workload import (
    AddedError,
    RequestTable,
    known_log_std,
    load_calibration,
    measure_length_log_std,
    sample_table,
    with_prediction_error,
)
from tests.workload.contract import check_contract

ROWS = 4000
KEY = jax.random.key(7)
FIELDS = ("length_bias_log", "length_noise_log", "quality_bias", "quality_noise")
add = jax.jit(with_prediction_error)


@pytest.fixture(scope="module")
def table() -> RequestTable:
    return jax.jit(sample_table, static_argnums=2)(jax.random.key(1), load_calibration(), ROWS)


def error(**values) -> AddedError:
    return AddedError(**{name: jnp.float32(values.get(name, 0.0)) for name in FIELDS})


def misses(before, after):
    """What was added to log lengths and to qualities, [M, N] each."""
    length = np.log(after.predicted_output_tokens) - np.log(before.predicted_output_tokens)
    return length, np.asarray(after.predicted_quality) - np.asarray(before.predicted_quality)


def test_no_error_leaves_the_table_as_it_is(table):
    jax.tree.map(np.testing.assert_array_equal, add(KEY, table, error()), table)


@settings(max_examples=25)
@given(
    bias=st.floats(-2, 2),
    noise=st.floats(0, 2),
    quality_bias=st.floats(-1, 1),
    quality_noise=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_truths_stay_and_the_table_keeps_its_contract(table, bias, noise, quality_bias, quality_noise, seed):
    wanted = error(
        length_bias_log=bias, length_noise_log=noise, quality_bias=quality_bias, quality_noise=quality_noise
    )
    worse = add(jax.random.key(seed), table, wanted)
    check_contract(worse)
    for name in ("prompt_tokens", "quality", "output_tokens"):
        np.testing.assert_array_equal(getattr(worse, name), getattr(table, name))


def test_a_table_of_numpy_arrays_is_taken_too(table):
    real = jax.tree.map(np.asarray, table)
    worse = error(length_noise_log=0.5, quality_noise=0.1)
    jax.tree.map(np.testing.assert_array_equal, add(KEY, real, worse), add(KEY, table, worse))


def test_bias_and_noise_are_what_was_asked_for(table):
    long = np.asarray(table.predicted_output_tokens) > 100  # where the bound of one token is far away
    length, _ = misses(table, add(KEY, table, error(length_bias_log=0.4, length_noise_log=0.5)))
    samples = long.sum()
    assert length[long].mean() == pytest.approx(0.4, abs=4 * 0.5 / np.sqrt(samples))
    assert length[long].std() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2 * samples))
    middle = np.abs(np.asarray(table.predicted_quality) - 0.5) < 0.15  # likewise of 0 and 1
    _, quality = misses(table, add(KEY, table, error(quality_bias=0.05, quality_noise=0.06)))
    assert quality[middle].mean() == pytest.approx(0.05, abs=4 * 0.06 / np.sqrt(middle.sum()))
    assert quality[middle].std() == pytest.approx(0.06, abs=4 * 0.06 / np.sqrt(2 * middle.sum()))


def test_errors_of_experts_requests_and_kinds_are_independent(table):
    length, quality = misses(table, add(KEY, table, error(length_noise_log=0.5, quality_noise=0.05)))
    kept = np.all(
        (np.asarray(table.predicted_quality) > 0.2) & (np.asarray(table.predicted_quality) < 0.8), 1
    )
    kept &= np.all(np.asarray(table.predicted_output_tokens) > 50, 1)
    columns = np.concatenate([length[kept], quality[kept]], axis=1)
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(kept.sum())


def test_twice_the_noise_is_twice_the_same_draws(table):
    """So that cells of a sweep are paired."""
    long = np.asarray(table.predicted_output_tokens) > 1000
    one, _ = misses(table, add(KEY, table, error(length_noise_log=0.2)))
    two, _ = misses(table, add(KEY, table, error(length_noise_log=0.4)))
    np.testing.assert_allclose(two[long], 2 * one[long], atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_a_router_is_told_the_noise_and_not_the_bias(table, noise):
    before = measure_length_log_std(table)
    worse = add(KEY, table, error(length_noise_log=noise, length_bias_log=0.7))
    told = known_log_std(before, error(length_noise_log=noise, length_bias_log=0.7))
    # Predictions near one token cannot get shorter, which the stated error leaves out of account.
    np.testing.assert_allclose(told, measure_length_log_std(worse), rtol=0.05)
    np.testing.assert_array_equal(known_log_std(before, error(length_bias_log=3.0)), before)


def test_a_sweep_over_each_number_compiles_once(table):
    compiled = 0

    @jax.jit
    def sweep(errors):
        nonlocal compiled
        compiled += 1
        return jax.vmap(lambda one: with_prediction_error(KEY, table, one).predicted_output_tokens.mean())(
            errors
        )

    grid = jnp.linspace(0.0, 1.0, 5)
    means = {}
    for name in FIELDS:
        errors = AddedError(**{field: grid if field == name else jnp.zeros(5) for field in FIELDS})
        means[name] = np.asarray(sweep(errors))
    assert compiled == 1
    assert np.all(np.diff(means["length_bias_log"]) > 0)
    np.testing.assert_array_equal(means["quality_noise"], means["quality_noise"][0])


def test_experts_may_err_differently(table):
    bias = jnp.zeros(6).at[2].set(-0.5)
    worse = with_prediction_error(KEY, table, AddedError(quality_bias=bias))
    _, quality = misses(table, worse)
    assert np.all(quality[:, [0, 1, 3, 4, 5]] == 0)
    assert quality[:, 2].mean() < -0.2
