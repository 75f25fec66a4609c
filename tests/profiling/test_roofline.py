"""The roofline follows published ones, and its arithmetic."""

import csv
import dataclasses

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.profiling import RooflineConfig, roofline
from qos_jax.profiling.roofline import iteration_bound_s, roofline_kv_tokens

LLAMA_8B = RooflineConfig(
    parameters=7.5e9,  # without the input embedding
    layers=32,
    hidden_size=4096,
    kv_heads=8,
    head_dim=128,
    bandwidth_gb_per_s=933.0,  # A30
    tflop_per_s=165.0,
    memory_gb=24.0,
    bandwidth_efficiency=1.0,
    compute_efficiency=1.0,
)


def fitted(config, max_running=64):
    return roofline(config, max_running, 8192, 100_000)


def test_the_coefficients_of_a_published_roofline(shared):
    """AIConfigurator's "speed of light" of the same model and GPU, in milliseconds."""
    with (shared / "data" / "iteration_time_fits.csv").open(newline="") as file:
        rows = {row["config"]: row for row in csv.DictReader(file)}
    row = rows["meta-llama/Meta-Llama-3.1-8B @ a30 [SOL]"]
    value = fitted(LLAMA_8B).fit.value
    assert 1e3 * value[3] == pytest.approx(float(row["c0_w"]), rel=0.01)
    assert 1e3 * value[5] == pytest.approx(float(row["k2_w"]), rel=0.001)

    def prefill_ms(base, per_token, per_token_sq, tokens):
        return base + per_token * tokens + per_token_sq * tokens**2

    for tokens in (128, 1024, 4096):
        ours = prefill_ms(*(1e3 * value[:3]), tokens)
        theirs = prefill_ms(*(float(row[name]) for name in ("p0_w", "k1_w", "kq_w")), tokens)
        assert ours == pytest.approx(theirs, rel=0.25)


def test_decoding_below_the_kink_is_exactly_affine():
    found = fitted(LLAMA_8B)
    assert found.quality["decode"].worst_relative_error < 1e-6
    assert found.quality["prefill"].worst_relative_error < 0.5
    assert np.all(np.isnan(found.fit.standard_error))
    assert {found.fit.confidence(name) for name in found.fit.as_dict()} == {"assumed"}


def test_twice_the_hardware_takes_half_the_time():
    twice = dataclasses.replace(LLAMA_8B, bandwidth_gb_per_s=1866.0, tflop_per_s=330.0)
    np.testing.assert_allclose(fitted(twice).fit.value, fitted(LLAMA_8B).fit.value / 2, rtol=1e-9)
    half = dataclasses.replace(LLAMA_8B, bandwidth_efficiency=0.5, compute_efficiency=0.5)
    np.testing.assert_allclose(fitted(half).fit.value, fitted(LLAMA_8B).fit.value * 2, rtol=1e-9)


def test_whichever_is_slower_counts():
    one, none = np.array([1.0]), np.array([0.0])
    moved = 7.5e9 * 2 + 24 * 4096 * 32 * 2
    assert iteration_bound_s(LLAMA_8B, one, none, none)[0] == pytest.approx(moved / 933e9)
    many = np.array([8192.0])
    computed = 2 * 7.5e9 * 8192 + 2 * 32 * 4096 * 8192.0**2
    assert iteration_bound_s(LLAMA_8B, many, none, many**2)[0] == pytest.approx(computed / 165e12)


def test_kv_capacity_is_what_the_weights_leave():
    assert roofline_kv_tokens(LLAMA_8B) == int((24e9 * 0.9 - 15e9) / 131_072)
    with pytest.raises(InputError, match=r"field 'memory_gb': 16 GB x 0\.9 do not hold 15 GB"):
        roofline_kv_tokens(dataclasses.replace(LLAMA_8B, memory_gb=16.0))
    with pytest.raises(InputError, match=r"field 'bandwidth_efficiency': 1\.2 is out of range"):
        dataclasses.replace(LLAMA_8B, bandwidth_efficiency=1.2)
