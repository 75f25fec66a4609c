"""Iteration logs give back the coefficients they were made with, or the fit says which it cannot tell."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qos_jax.errors import InputError
from qos_jax.profiling import COEFFICIENTS, fit_iterations
from tests.profiling.logs import TRUE, iterations

shares = st.lists(st.floats(0.2, 5.0), min_size=6, max_size=6)


@settings(max_examples=25, deadline=None)
@given(shares=shares, seed=st.integers(0, 10_000), mixed=st.booleans())
def test_exact_times_give_the_coefficients(shares, seed, mixed):
    value = TRUE * np.array(shares)
    found = fit_iterations(iterations(noise=0.0, seed=seed, mixed=mixed, value=value), {})
    np.testing.assert_allclose(found.fit.value, value, rtol=1e-6)
    for quality in found.quality.values():
        assert quality.r2 > 1 - 1e-9
        assert quality.worst_relative_error < 1e-9


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.floats(0.005, 0.05))
def test_noisy_times_give_them_within_the_stated_error(seed, noise):
    found = fit_iterations(iterations(rows=400, noise=noise, seed=seed), {})
    distance = np.abs(found.fit.value - TRUE) / found.fit.standard_error
    assert np.all(distance < 5.5)
    assert np.all(found.fit.value >= 0)
    assert np.all(found.fit.low <= found.fit.value)
    assert np.all(found.fit.high >= found.fit.value)


def test_intervals_cover_as_often_as_they_say():
    """95% of 6 coefficients x 60 logs, up to three standard deviations of a binomial (0.011)."""
    fits = [fit_iterations(iterations(rows=300, noise=0.03, seed=seed), {}).fit for seed in range(60)]
    covered = np.mean([(fit.low <= TRUE) & (fit.high >= TRUE) for fit in fits])
    assert 0.91 < covered < 0.985


def test_what_is_not_there_is_fitted_by_zero_and_nothing_below():
    value = TRUE * np.array([1, 1, 0, 1, 0, 1])
    fits = [fit_iterations(iterations(noise=0.02, seed=seed, value=value), {}).fit for seed in range(12)]
    assert all(np.all(fit.value >= 0) for fit in fits)
    assert any(fit.value[2] == 0 for fit in fits)
    assert any(fit.confidence("prefill_per_token_sq_s") == "at zero" for fit in fits)
    assert all(fit.confidence("decode_base_s") == "identified" for fit in fits)


def test_given_coefficients_are_taken_as_they_are():
    given = {"decode_per_seq_s": TRUE[4], "prefill_per_token_sq_s": 0.0}
    found = fit_iterations(iterations(noise=0.01), given).fit
    assert found.value[2] == 0.0
    assert found.value[4] == TRUE[4]
    assert found.standard_error[4] == 0.0
    assert found.confidence("decode_per_seq_s") == "fixed"
    assert found.value[3] == pytest.approx(TRUE[3], rel=0.05)


def test_relative_errors_let_short_iterations_count():
    """One long iteration, wrong by half, moves the fit of thousands of times shorter ones by little."""
    log = iterations(rows=100, noise=0.01)
    spoilt = np.array(log.duration_s)
    at = int(np.argmax(spoilt))
    spoilt[at] *= 1.5
    found = fit_iterations(dataclasses.replace(log, duration_s=spoilt), {})
    np.testing.assert_allclose(found.fit.value[3], TRUE[3], rtol=0.05)


DECODE = np.arange(40) % 2 == 1
BATCH = np.where(DECODE, 1 + np.arange(40) % 8, 0)
UNTOLD = {
    "one batch size": (
        {"batch": np.where(DECODE, 8, 0), "context_tokens": np.where(DECODE, 100 * np.arange(40), 0)},
        ("decode_base_s and decode_per_seq_s", "every decode iteration has batch 8"),
    ),
    "one context per request": (
        {"batch": BATCH, "context_tokens": 700 * BATCH},
        ("decode_per_seq_s and decode_per_context_token_s",),
    ),
    "one prompt length": (
        {"prefill_tokens": np.where(DECODE, 0, 512), "prefill_tokens_sq": np.where(DECODE, 0, 512.0**2)},
        ("prefill_base_s, prefill_per_token_s and prefill_per_token_sq_s", "has 512 prompt tokens"),
    ),
    "two prompt lengths": (
        {
            "prefill_tokens": np.where(DECODE, 0, np.where(np.arange(40) < 20, 100, 200)),
            "prefill_tokens_sq": np.where(DECODE, 0, np.where(np.arange(40) < 20, 1e4, 4e4)),
        },
        ("prefill_base_s, prefill_per_token_s and prefill_per_token_sq_s", "three different prompt lengths"),
    ),
    "no context": (
        {"batch": BATCH, "context_tokens": 0 * BATCH},
        ("no row depends on decode_per_context_token_s",),
    ),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_what_a_log_cannot_tell_is_named(name):
    columns, says = UNTOLD[name]
    with pytest.raises(InputError, match=r"mine\.csv, field '") as error:
        fit_iterations(iterations(rows=40, **columns), {})
    for text in (*says, "give --fix="):
        assert text in str(error.value)


def test_giving_one_of_the_confused_is_the_remedy():
    columns, _ = UNTOLD["one batch size"]
    log = iterations(rows=40, noise=0.0, **columns)
    found = fit_iterations(log, {"decode_per_seq_s": TRUE[4]})
    np.testing.assert_allclose(found.fit.value, TRUE, rtol=1e-6)


def test_too_few_rows():
    with pytest.raises(InputError, match="4 prefill iterations are too few for prefill_base_s"):
        fit_iterations(iterations(rows=8), {})
    prefill = dict.fromkeys(COEFFICIENTS[:3], 0.01)
    decode_only = iterations(
        rows=20,
        batch=1 + np.arange(20) % 5,
        prefill_tokens=np.zeros(20, int),
        prefill_tokens_sq=np.zeros(20),
        noise=0.0,
    )
    found = fit_iterations(decode_only, prefill)
    np.testing.assert_allclose(found.fit.value[3:], TRUE[3:], rtol=1e-6)
    assert set(found.quality) == {"decode"}
