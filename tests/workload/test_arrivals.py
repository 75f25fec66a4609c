"""Arrival processes have the rate, spread, bursts and profile they are asked for, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from qos_jax.errors import InputError
from qos_jax.workload import arrivals

KEY = jax.random.key(7)
NUM_GAPS = 60_000


def gaps_of(process):
    return np.asarray(jax.jit(arrivals.sample_gaps, static_argnums=2)(KEY, process, NUM_GAPS), np.float64)


def counts_per(gaps, width_s):
    at = np.cumsum(gaps)
    return np.histogram(at, bins=np.arange(0, at[-1], width_s))[0]


def test_poisson_gaps_are_exponential_and_independent():
    gaps = gaps_of(arrivals.poisson(5.0))
    assert stats.kstest(gaps, "expon", args=(0, 0.2)).pvalue > 0.01
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.02
    counts = counts_per(gaps, 4.0)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.07)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_gaps_have_the_mean_and_cv(cv):
    gaps = gaps_of(arrivals.gamma(4.0, cv))
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_gamma_of_cv_one_agrees_with_exponential_draws():
    process = arrivals.gamma(4.0, 2.0).replace(cv=jnp.float32(1.0))
    assert stats.kstest(gaps_of(process), "expon", args=(0, 0.25)).pvalue > 0.01


def test_mmpp_keeps_the_mean_rate_and_has_the_dispersion_of_theory():
    rate, factor, burst_s, calm_s = 5.0, 6.0, 4.0, 12.0
    gaps = gaps_of(arrivals.mmpp(rate, factor, burst_s, calm_s))
    assert 1 / gaps.mean() == pytest.approx(rate, rel=0.03)
    share = burst_s / (burst_s + calm_s)
    calm = rate / (1 - share + share * factor)
    variance = share * (1 - share) * (calm * (factor - 1)) ** 2
    decay, width = 1 / burst_s + 1 / calm_s, 5.0
    excess = 2 * variance / decay * (width - (1 - np.exp(-decay * width)) / decay)
    counts = counts_per(gaps, width)
    assert counts.var() / counts.mean() == pytest.approx(1 + excess / (rate * width), rel=0.08)


def test_profile_is_followed_bin_by_bin_including_an_empty_bin():
    profile, bin_s = np.array([0.0, 1.0, 4.0, 1.0]), 15.0
    gaps = gaps_of(arrivals.diurnal(8.0, profile, bin_s))
    phase = (np.cumsum(gaps) % (bin_s * 4)) // bin_s
    share = np.bincount(phase.astype(int), minlength=4) / len(gaps)
    np.testing.assert_allclose(share[1:], profile[1:] / profile.sum(), atol=0.015)
    assert share[0] < 0.002  # float32 rounding of the running sum in this test only
    assert 1 / gaps.mean() == pytest.approx(8.0, rel=0.03)


def test_time_rescaling_is_exact():
    """Gaps mapped back to operational time are unit exponentials: no discretisation enters."""
    profile, bin_s, rate = np.array([0.5, 3.0, 1.0, 0.1]), 0.7, 2.0
    at = np.cumsum(gaps_of(arrivals.diurnal(rate, profile, bin_s))[:5000])
    edges = np.arange(0, at[-1] + 4 * bin_s, bin_s)
    rates = np.tile(profile / profile.mean(), len(edges))[: len(edges) - 1] * rate
    cumulative = np.concatenate([[0.0], np.cumsum(rates * bin_s)])
    operational = np.interp(at, edges, cumulative)
    assert stats.kstest(np.diff(operational), "expon").pvalue > 0.01


def test_steps_agree_with_rate_per_lane_and_differ_between_keys():
    lanes = 512
    rates = jnp.linspace(1.0, 20.0, lanes)
    make = jax.vmap(lambda r: arrivals.make_process(r, burst_factor=3.0, profile=(1.0, 2.0), bin_s=5.0))
    process = make(rates)
    keys = jax.random.split(KEY, lanes)
    state = jax.vmap(arrivals.init_arrivals)(keys, process)

    @jax.jit
    def run(state):
        def step(state, key):
            gap_s, state = jax.vmap(arrivals.next_gap)(jax.random.split(key, lanes), process, state)
            return state, gap_s

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 400))[1]

    gaps = np.asarray(run(state), np.float64)  # [400, lanes]
    assert gaps.shape == (400, lanes)
    assert np.all(gaps >= 0)
    ratio = 1 / gaps.mean(axis=0) / np.asarray(rates)
    assert ratio.mean() == pytest.approx(1.0, abs=0.05)
    assert len(np.unique(gaps[0])) > lanes * 0.99


def test_rate_zero_gives_an_endless_gap_instead_of_a_hang():
    process = arrivals.diurnal(1.0, (1.0, 2.0), 5.0).replace(rate_per_s=jnp.float32(0.0))
    gap_s, _ = arrivals.next_gap(KEY, process, arrivals.init_arrivals(KEY, process))
    assert np.isinf(gap_s)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"rate_per_s": 0.0}, "rate_per_s"),
        ({"rate_per_s": 1.0, "cv": -1.0}, "cv"),
        ({"rate_per_s": 1.0, "burst_factor": float("nan")}, "burst_factor"),
        ({"rate_per_s": 1.0, "profile": (0.0, 0.0)}, "profile"),
        ({"rate_per_s": 1.0, "profile": (1.0, -1.0)}, "profile"),
        ({"rate_per_s": 1.0, "bin_s": float("inf")}, "bin_s"),
    ],
)
def test_bad_parameters_are_named(arguments, field):
    with pytest.raises(InputError, match=field):
        arrivals.make_process(**arguments)


RECORDED_S = np.array([0.5, 0.0, 2.0, 1.5, 1.0], np.float32)  # of mean 1


@pytest.mark.parametrize("profile", [(1.0,), (1.0, 3.0)])
def test_recorded_gaps_are_replayed_in_order_from_anywhere_over_and_over(profile):
    drawing = arrivals.make_process(4.0, profile=profile, bin_s=5.0)
    process = arrivals.with_recording(drawing, 60.0 * RECORDED_S)  # in any unit
    gaps = jax.jit(jax.vmap(arrivals.sample_gaps, (0, None, None)), static_argnums=2)(
        jax.random.split(KEY, 40), process, 12
    )
    places = np.array([np.roll(RECORDED_S, -start) for start in range(5)])
    whole = np.concatenate([places, places, places], axis=1)[:, :12] / 4.0
    found = np.array([np.flatnonzero(np.all(np.isclose(whole, one, rtol=1e-5), axis=1)) for one in gaps])
    assert set(found.ravel()) == set(range(5))


def test_lanes_that_do_not_replay_draw_as_without_a_recording():
    drawing = arrivals.make_process(4.0, burst_factor=3.0, burst_mean_s=2.0, profile=(1.0, 2.0), bin_s=5.0)

    def gaps_where(replays):
        process = arrivals.with_recording(drawing, RECORDED_S, replays)
        return arrivals.sample_gaps(KEY, process, 50)

    replayed, drawn = jax.jit(jax.vmap(gaps_where))(jnp.array([True, False]))
    np.testing.assert_allclose(drawn, arrivals.sample_gaps(KEY, drawing, 50), rtol=1e-5)
    assert np.unique(np.round(replayed * 4.0, 3)).size == RECORDED_S.size


@pytest.mark.parametrize("gaps", [[], [0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf], [[1.0]]])
def test_gaps_that_cannot_be_replayed_are_refused(gaps):
    with pytest.raises(InputError, match="gap_s"):
        arrivals.with_recording(arrivals.poisson(1.0), np.array(gaps))
