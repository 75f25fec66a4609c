"""Shipped figures load, sample back to the traces they came from, and obey the latency-limit rule."""

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.workload import (
    Trace,
    arrivals_like,
    default_latency_limit_s,
    fleet_path,
    load_calibration,
    load_length_histogram,
    load_rate_profile,
    profiles,
    read_fleet,
    sample_gaps,
    sample_lengths,
    workload_names,
)


def test_names_and_near_matches():
    assert workload_names() == ("azure_conv", "azure_code")
    with pytest.raises(InputError, match="did you mean 'azure_conv'"):
        load_rate_profile("azure_con")
    with pytest.raises(InputError, match="did you mean"):
        load_length_histogram("azurecode")


def test_conversation_lengths_and_arrivals_are_those_of_the_trace():
    prompt, output = map(
        np.asarray, sample_lengths(jax.random.key(0), load_length_histogram("azure_conv"), 50_000)
    )
    assert prompt.dtype == output.dtype == np.int32
    assert prompt.mean() == pytest.approx(1155, rel=0.04)
    assert np.median(prompt) == pytest.approx(1020, rel=0.05)
    assert output.mean() == pytest.approx(211, rel=0.04)
    assert np.median(output) == pytest.approx(129, rel=0.05)
    assert min(prompt.min(), output.min()) >= 1
    profile = load_rate_profile("azure_conv")
    assert profile.mean_rate_per_s == pytest.approx(5.53, abs=0.05)
    assert profile.relative_rate.mean() == pytest.approx(1.0, abs=1e-4)
    assert profile.relative_rate.max() == pytest.approx(1.5, abs=0.1)
    gaps = np.asarray(
        jax.jit(sample_gaps, static_argnums=2)(jax.random.key(1), arrivals_like(profile), 20_000)
    )
    assert 1 / gaps.mean() == pytest.approx(5.53, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(1.09, abs=0.06)


def test_code_arrivals_are_bursty_without_piling_up():
    profile = load_rate_profile("azure_code")
    gaps = np.asarray(
        jax.jit(sample_gaps, static_argnums=2)(jax.random.key(1), arrivals_like(profile), 20_000), np.float64
    )
    assert 1 / gaps.mean() == pytest.approx(2.57, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(13.15, rel=0.15)
    assert np.mean(gaps < 1e-5) < 0.1  # the median real gap is 0.06 s


def test_derived_figures_of_a_known_trace():
    arrival_s = np.concatenate([np.arange(0, 60, 1.0), np.arange(60, 120, 0.5), [125.0]])
    whole = np.full(len(arrival_s), 7, np.int32)
    trace = Trace(arrival_s, whole, whole, "t")
    profile = profiles.derive_rate_profile(trace, 60.0)
    np.testing.assert_allclose(profile.relative_rate, [2 / 3, 4 / 3])
    assert profile.gap_cv < 0.05
    np.testing.assert_array_equal(profiles.derive_length_cells(trace), [[7, 8, 7, 8, len(arrival_s)]])
    with pytest.raises(InputError, match="shorter"):
        profiles.derive_rate_profile(Trace(np.array([0.0, 1.0]), whole[:2], whole[:2], "t"), 60.0)


def test_latency_limit_follows_its_rule():
    x = read_fleet(fleet_path("edge6")).profile
    prompt, output = 1020, 129
    prefill = x.prefill_base_s + x.prefill_per_token_s * prompt + x.prefill_per_token_sq_s * prompt**2
    steps = output - 1
    contexts = steps * (prompt + 1) + steps * (steps - 1) / 2
    decode = steps * (x.decode_base_s + x.decode_per_seq_s) + x.decode_per_context_token_s * contexts
    alone_s = (prefill + decode + x.network_rtt_s) / output
    assert default_latency_limit_s(fleet_path("edge6")) == pytest.approx(1.5 * alone_s.max(), rel=0.05)
    assert default_latency_limit_s("paper6") == 0.03
    with pytest.raises(InputError, match="did you mean 'edge6'"):
        default_latency_limit_s("edge5.csv")


def test_fleets_fit_the_calibration():
    assert read_fleet(fleet_path("edge6")).names == load_calibration().expert_names
    assert read_fleet(fleet_path("paper6")).num_experts == 6
