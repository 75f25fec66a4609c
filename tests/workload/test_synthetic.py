"""Synthetic tables have the shape of the real one, and predictions err as asked."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.tables.fit_figures import table_figures
from qos_jax.workload import (
    experts_named,
    load_calibration,
    load_params,
    measure_length_log_std,
    sample_experts,
    sample_table,
    save_params,
    table_for_trace,
)
from tests.workload.contract import check_contract

GOLDEN = pathlib.Path(__file__).parent / "golden_table.json"
PARAMS = load_calibration()
ROWS = 40_000
draw = jax.jit(sample_table, static_argnums=2)


def at_level(level, **changes):
    return dataclasses.replace(PARAMS, error_level=jnp.asarray(level, jnp.float32), **changes)


@pytest.fixture(scope="module")
def figures():
    table = draw(jax.random.key(11), PARAMS, ROWS)
    check_contract(table)
    return table_figures(table)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("prompt_share", 0.45, 0.6),
        ("score_corr", 0.35, 0.55),
        ("length_corr", 0.4, 0.7),
        ("length_score_corr_min", -0.5, -0.2),
        ("length_score_corr_max", -0.5, -0.2),
        ("best_single", 0.63, 0.69),
        ("oracle", 0.80, 0.845),
        ("auc", 0.795, 0.825),
        ("length_r2_min", 0.27, 0.45),
        ("length_r2_max", 0.5, 0.66),
        ("length_error_median_tokens", 80, 140),
        ("between_r2", 0.005, 0.035),
    ],
)
def test_figures_are_those_of_the_real_table(figures, name, low, high):
    assert low <= figures[name] <= high


def test_runaway_answers_hit_the_cap_in_up_to_a_tenth():
    share = jnp.einsum("k,kn->n", PARAMS.task_weight, jax.scipy.stats.norm.sf(PARAMS.runaway_threshold))
    assert 0.03 < share.max() < 0.1
    assert share.min() >= 0


def test_lengths_within_a_task_are_nearly_log_normal():
    one = np.zeros(5, np.float32)
    one[3] = 1.0
    table = draw(jax.random.key(2), dataclasses.replace(PARAMS, task_weight=jnp.asarray(one)), ROWS)
    logs = np.log(np.asarray(table.output_tokens))
    score = (logs - logs.mean(axis=0)) / logs.std(axis=0)
    assert np.all(np.abs((score**3).mean(axis=0)) < 0.6)
    assert np.all(np.abs((score**4).mean(axis=0) - 3) < 1.0)


def test_error_level_zero_is_the_truth_and_more_is_worse():
    exact = draw(jax.random.key(3), at_level(0.0), 5000)
    np.testing.assert_array_equal(exact.predicted_output_tokens, exact.output_tokens)
    np.testing.assert_array_equal(exact.predicted_quality, exact.quality)
    tables = [exact, *(draw(jax.random.key(3), at_level(level), 5000) for level in (0.5, 1.0, 2.0, 4.0))]
    assert np.all(np.diff([measure_length_log_std(table) for table in tables], axis=0) > 0)
    misses = [np.square(table.quality - table.predicted_quality).mean(axis=0) for table in tables]
    assert np.all(np.diff(misses, axis=0) > 0)


def test_predicted_tokens_are_medians_and_bias_shifts_them():
    table = draw(jax.random.key(5), PARAMS, ROWS)
    above = np.mean(np.asarray(table.output_tokens) > np.asarray(table.predicted_output_tokens))
    assert above == pytest.approx(0.5, abs=0.04)
    doubled = draw(jax.random.key(5), at_level(1.0, length_bias_log=jnp.full(6, np.log(2.0))), ROWS)
    ratio = np.median(np.asarray(doubled.predicted_output_tokens / table.predicted_output_tokens))
    assert ratio == pytest.approx(2.0, rel=0.01)


def test_table_for_trace_keeps_lengths_as_geometric_means():
    rng = np.random.default_rng(0)
    prompt = rng.integers(1, 4000, 8000).astype(np.int32)
    output = np.maximum(rng.lognormal(5.0, 1.0, 8000), 1).astype(np.int32)
    table = jax.jit(table_for_trace)(jax.random.key(6), PARAMS, prompt, output)
    check_contract(table)
    np.testing.assert_array_equal(table.prompt_tokens, prompt)
    long = output >= 50  # rounding to whole tokens matters below
    mean = np.exp(np.log(np.asarray(table.output_tokens)).mean(axis=1))
    np.testing.assert_allclose(mean[long], output[long], rtol=0.02)
    figures = table_figures(table)
    assert 0.35 < figures["score_corr"] < 0.6
    assert -0.55 < figures["length_score_corr_max"] < -0.2
    assert 0.4 < figures["typical_r2"] < 0.6
    exact = jax.jit(table_for_trace)(jax.random.key(6), at_level(0.0), prompt, output)
    np.testing.assert_array_equal(exact.predicted_output_tokens, exact.output_tokens)


def test_any_number_of_experts_comes_from_the_population():
    for count in (1, 8):
        params = sample_experts(jax.random.key(count), PARAMS, count)
        assert params.num_experts == len(set(params.expert_names)) == count
        table = draw(jax.random.key(0), params, 2000)
        check_contract(table)
        assert table.quality.shape == (2000, count)
        assert 0.3 < float(table.quality.mean()) < 0.85
    named = experts_named(PARAMS, ("gemma-2-9b-it", "gemma-2-9b-it#2"))
    assert named.expert_names == ("gemma-2-9b-it", "gemma-2-9b-it#2")
    with pytest.raises(InputError, match="did you mean 'gemma-2-9b-it'"):
        experts_named(PARAMS, ("gemma-2-9b",))


def test_params_round_trip_and_faults_are_named(tmp_path):
    path = tmp_path / "p.json"
    save_params(path, PARAMS, {"source": "test"})
    for old, new in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(load_params(path)), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-5)
    content = json.loads(path.read_text())
    del content["params"]["length_noise"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="length_noise"):
        load_params(path)
    path.write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        load_params(path)


def test_golden_table():
    table = draw(jax.random.key(42), PARAMS, 4)
    got = {f.name: np.asarray(getattr(table, f.name)).tolist() for f in dataclasses.fields(table)}
    want = json.loads(GOLDEN.read_text())
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, rtol=2e-3, atol=2e-3, err_msg=name)
