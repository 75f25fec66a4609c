"""Cases: the same requests at every rate and for every policy, and rates that are what was asked for."""

import dataclasses

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases, draw_arrivals
from qos_jax.workload import Trace, fleet_path, load_calibration, load_rate_profile, read_fleet
from qos_jax.workload.named import SYNTHETIC

SMALL = CaseConfig(seeds=2, num_requests=40)


@pytest.fixture(scope="module")
def fleet():
    return read_fleet(fleet_path("edge6"))


def build(fleet, trace=None, **changes):
    return build_cases(dataclasses.replace(SMALL, **changes), fleet, load_calibration(), 0.07, trace)


def trace(arrival_s=(0.0, 1.0, 3.0, 4.0)):
    tokens = np.arange(1, len(arrival_s) + 1, dtype=np.int32)
    return Trace(np.array(arrival_s), 10 * tokens, 5 * tokens, "my.csv")


@pytest.mark.parametrize("workload", [*SYNTHETIC, "azure_conv"])
def test_every_workload_is_drawn(fleet, workload):
    case, faster = build(fleet, workloads=(workload,), arrival_rates=(4.0, 8.0))
    assert case.name == (workload, 4.0)
    runs = case.runs
    assert runs.shape == (2, 40)
    assert runs.arrival_s.dtype == np.float64
    np.testing.assert_array_equal(runs.arrival_s[:, 0], 0.0)
    assert np.all(np.diff(runs.arrival_s, axis=1) >= 0)
    assert not np.array_equal(runs.arrival_s[0], runs.arrival_s[1])
    assert not np.array_equal(runs.requests.quality[0], runs.requests.quality[1])
    # Another rate has the same requests, at other times.
    jax.tree.map(np.testing.assert_array_equal, runs.requests, faster.runs.requests)
    assert not np.array_equal(runs.arrival_s, faster.runs.arrival_s)


def test_seeds_make_the_draws(fleet):
    a, again, other = (build(fleet, workloads=("poisson",), loads=(0.5,), seed=seed)[0] for seed in (0, 0, 1))
    assert a.arrival_rate_per_s == again.arrival_rate_per_s
    jax.tree.map(np.testing.assert_array_equal, dataclasses.asdict(a.runs), dataclasses.asdict(again.runs))
    assert not np.array_equal(a.runs.requests.quality, other.runs.requests.quality)


def test_loads_are_shares_of_one_capacity(fleet):
    half, whole = build(fleet, workloads=("poisson",), loads=(0.5, 1.0))
    assert whole.arrival_rate_per_s == pytest.approx(2 * half.arrival_rate_per_s)
    # The same operational time passes twice as fast.
    np.testing.assert_allclose(half.runs.arrival_s, 2 * whole.runs.arrival_s, rtol=1e-5)


@pytest.mark.parametrize("workload", ["poisson", "azure_conv"])
def test_the_mean_rate_is_the_one_asked_for(workload):
    """Over many requests; Azure's over two whole periods of its profile."""
    profile = load_rate_profile("azure_conv")
    rate_per_s = 4000 / (len(profile.relative_rate) * profile.bin_s)
    config = dataclasses.replace(SMALL, num_requests=8000)
    arrival_s = draw_arrivals(workload, rate_per_s, config)
    assert 8000 / arrival_s[:, -1].mean() == pytest.approx(rate_per_s, rel=0.04)


def test_short_azure_runs_start_all_over_the_profile():
    """Each seed sees the rate of its own part of the hour; runs longer than it start together."""
    profile = load_rate_profile("azure_conv")
    config, bins = CaseConfig(seeds=4, num_requests=300), len(profile.relative_rate)
    for seed, arrival_s in enumerate(draw_arrivals("azure_conv", profile.mean_rate_per_s, config)):
        rates = np.roll(profile.relative_rate, -(seed * bins // 4)) * profile.mean_rate_per_s
        expected = np.concatenate([[0], np.cumsum(rates * profile.bin_s)])
        expected_s = np.interp(300, expected, np.arange(bins + 1) * profile.bin_s)
        assert arrival_s[-1] == pytest.approx(expected_s, rel=0.2)
    slow = draw_arrivals("azure_conv", 300 / (bins * profile.bin_s), config)
    early = (slow < bins * profile.bin_s / 2).mean(axis=1)
    half = profile.relative_rate[: bins // 2].sum() / bins
    np.testing.assert_allclose(early, half, atol=0.12)


def test_a_trace_is_run_whole_and_scaled(fleet):
    """Its arrivals and lengths are the same for every seed; qualities are drawn."""
    native, fast = (build(fleet, trace(), workloads=("trace",), arrival_rates=r)[0] for r in ((), (3.0,)))
    assert native.arrival_rate_per_s == pytest.approx(0.75)
    np.testing.assert_array_equal(native.runs.arrival_s, [trace().arrival_s] * 2)
    np.testing.assert_allclose(fast.runs.arrival_s, native.runs.arrival_s / 4)
    np.testing.assert_array_equal(native.runs.requests.prompt_tokens, [trace().prompt_tokens] * 2)
    jax.tree.map(np.testing.assert_array_equal, native.runs.requests, fast.runs.requests)
    assert not np.array_equal(native.runs.requests.quality[0], native.runs.requests.quality[1])


def test_perfect_predictions_are_the_truth(fleet):
    (case,) = build(fleet, workloads=("poisson",), loads=(0.5,), error_level=0.0)
    requests = case.runs.requests
    np.testing.assert_allclose(requests.predicted_quality, requests.quality, atol=1e-5)
    np.testing.assert_allclose(requests.predicted_output_tokens, requests.output_tokens, rtol=0.02, atol=1)
    assert np.all(case.runs.length_log_std < 0.05)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"workloads": ()}, "'workloads': is empty"),
        ({"workloads": ("poison",)}, "did you mean 'poisson'"),
        ({"workloads": ("gamma", "gamma")}, "twice"),
        ({"arrival_rates": (1.0, 1.0)}, "twice"),
        ({"arrival_rates": (np.nan,)}, "'arrival_rates': nan is out of range; give a finite number above 0"),
        ({"loads": ()}, "'loads': is empty"),
        ({"loads": (-1.0,)}, "above 0"),
        ({"seeds": 0}, "'seeds': 0 is out of range; give a whole number from 1"),
        ({"num_requests": 0}, "'num_requests': 0 is out of range"),
        ({"seed": -1}, "out of range"),
        ({"error_level": -0.1}, "'error_level'"),
        ({"gap_cv": 0.0}, "'gap_cv'"),
        ({"burst_mean_s": np.inf}, "'burst_mean_s'"),
        ({"think_s": 0.0}, "'think_s'"),
        ({"system_prompts": -1}, "'system_prompts'"),
        ({"system_prompt_tokens": 0}, "'system_prompt_tokens'"),
        ({"system_prompt_skew": -1.0}, "'system_prompt_skew'"),
        ({"diurnal_swing": 1.0}, "'diurnal_swing'"),
    ],
)
def test_bad_settings(changes, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(SMALL, **changes)


def test_bad_traces_and_fleets(fleet):
    with pytest.raises(InputError, match="--trace=FILE"):
        build(fleet, workloads=("trace",))
    with pytest.raises(InputError, match=r"my.csv: its 3 requests arrive at one instant"):
        build(fleet, trace((0.0, 0.0, 0.0)), workloads=("trace",))
    tiny = dataclasses.replace(fleet, profile=fleet.profile.replace(kv_capacity_tokens=np.full(6, 3)))
    with pytest.raises(InputError, match=r"'kv_capacity_tokens': no expert's KV cache holds any"):
        build(tiny, workloads=("poisson",), loads=(0.5,))


def test_added_error_is_of_predictions_alone_and_routers_know_its_noise(fleet):
    one = {"workloads": ("poisson",), "arrival_rates": (4.0,), "num_requests": 400}
    (before,) = build(fleet, **one)
    (after,) = build(
        fleet, **one, length_bias_log=0.5, length_noise_log=0.8, quality_bias=-0.1, quality_noise=0.2
    )
    for field in ("prompt_tokens", "quality", "output_tokens"):
        np.testing.assert_array_equal(
            getattr(after.runs.requests, field), getattr(before.runs.requests, field)
        )
    np.testing.assert_array_equal(after.runs.arrival_s, before.runs.arrival_s)
    shift = np.log(after.runs.requests.predicted_output_tokens / before.runs.requests.predicted_output_tokens)
    assert shift.mean() == pytest.approx(0.5, abs=0.05)
    assert shift.std() == pytest.approx(0.8, abs=0.05)
    assert not np.array_equal(shift[0], shift[1])  # every seed has draws of its own
    told = np.hypot(before.runs.length_log_std, 0.8)
    np.testing.assert_allclose(after.runs.length_log_std, told, rtol=1e-5)
    (unknown,) = build(fleet, **one, length_noise_log=0.8, known_length_noise=False)
    np.testing.assert_array_equal(unknown.runs.length_log_std, before.runs.length_log_std)
    (biased,) = build(fleet, **one, length_bias_log=0.5)
    np.testing.assert_array_equal(biased.runs.length_log_std, before.runs.length_log_std)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("length_bias_log", np.inf),
        ("length_noise_log", -1.0),
        ("quality_bias", 2.0),
        ("quality_noise", np.nan),
    ],
)
def test_added_error_out_of_range(field, value):
    with pytest.raises(InputError, match=f"field '{field}'"):
        dataclasses.replace(SMALL, **{field: value})
