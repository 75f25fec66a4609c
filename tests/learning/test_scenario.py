"""Domain randomisation: every number in its range, fixed where the range is, a table's own rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.learning.scenario import Scenario, ScenarioConfig, sample_params
from qos_jax.workload import experts_named, fleet_path, load_calibration, read_fleet
from qos_jax.workload.capacity import capacity_per_s
from tests.routing import scenes

CONFIG = ScenarioConfig(table_rows=64)
COUNT = 16


@pytest.fixture(scope="module")
def scenario():
    fleet = read_fleet(fleet_path("edge6"))
    calibration = experts_named(load_calibration(), fleet.names)
    return Scenario(jax.tree.map(jnp.asarray, fleet.profile), jnp.float32(0.07), calibration)


@pytest.fixture(scope="module")
def drawn(scenario):
    draw = jax.jit(jax.vmap(lambda key: sample_params(key, CONFIG, scenario)))
    return jax.device_get(draw(jax.random.split(jax.random.key(0), COUNT)))


def test_numbers_lie_in_their_ranges_and_differ(drawn):
    process = drawn.process
    for value, (low, high) in (
        (process.burst_factor, CONFIG.burst_factor),
        (process.burst_mean_s, CONFIG.burst_mean_s),
        (process.calm_mean_s, CONFIG.calm_mean_s),
        (drawn.latency_limit_s / 0.07, CONFIG.limit_scale),
    ):
        assert np.all((value >= low * 0.999) & (value <= high * 1.001))
        assert np.unique(value).size == COUNT


def test_the_rate_is_the_load_times_the_capacity(drawn):
    for lane in range(COUNT):
        profile, table = jax.tree.map(lambda leaf, lane=lane: leaf[lane], (drawn.profile, drawn.table))
        load = drawn.process.rate_per_s[lane] / capacity_per_s(profile, table).sum()
        assert 0.999 * CONFIG.load[0] <= load <= 1.001 * CONFIG.load[1]


def test_fleets_vary_about_the_given_one(drawn, scenario):
    ratio = np.log(drawn.profile.decode_base_s / np.asarray(scenario.profile.decode_base_s))
    spread = np.hypot(CONFIG.speed_log_std, CONFIG.part_log_std)
    assert ratio.std() == pytest.approx(spread, rel=0.4)
    np.testing.assert_array_equal(
        drawn.profile.max_running, np.tile(scenario.profile.max_running, (COUNT, 1))
    )


def test_the_rate_swings_about_its_mean_from_a_phase_of_its_own(drawn, scenario):
    profile = drawn.process.profile
    np.testing.assert_allclose(profile.mean(-1), 1.0, rtol=1e-5)
    swing = (profile.max(-1) - profile.min(-1)) / 2.0
    assert np.all(swing <= CONFIG.swing[1])
    assert np.unique(swing).size == COUNT
    assert np.unique(profile.argmax(-1)).size > 4
    period_s = drawn.process.bin_s * profile.shape[-1]
    assert np.all((period_s >= 0.999 * CONFIG.period_s[0]) & (period_s <= 1.001 * CONFIG.period_s[1]))
    calm = dataclasses.replace(CONFIG, swing=(0.0, 0.0))
    steady = jax.eval_shape(lambda key: sample_params(key, calm, scenario), jax.random.key(0))
    assert steady.process.profile.shape == (1,)


def test_a_tables_rows_are_its_own_and_fixed_ranges_fix():
    table = scenes.table(0, 30)
    config = ScenarioConfig(
        table_rows=40,
        arrival_rate=(3.0, 3.0),
        burst_factor=(2.0, 2.0),
        limit_scale=(1.0, 1.0),
        speed_log_std=0.0,
        part_log_std=0.0,
    )
    # Figures are not read where a table is given.
    scenario = Scenario(scenes.profile(), jnp.float32(0.06), load_calibration(), table=table)
    params = jax.jit(lambda key: sample_params(key, config, scenario))(jax.random.key(1))
    wanted = {(int(p), *q) for p, q in zip(table.prompt_tokens, table.quality.tolist(), strict=True)}
    got = {
        (int(p), *q)
        for p, q in zip(params.table.prompt_tokens, np.asarray(params.table.quality).tolist(), strict=True)
    }
    assert got <= wanted
    assert len(got) > 10
    assert float(params.process.rate_per_s) == pytest.approx(3.0)
    assert float(params.process.burst_factor) == pytest.approx(2.0)
    assert float(params.latency_limit_s) == pytest.approx(0.06)
    for name, value in vars(scenes.profile()).items():
        np.testing.assert_allclose(getattr(params.profile, name), value, rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("table_rows", 1),
        ("load", (2.0, 1.0)),
        ("limit_scale", (0.0, 1.0)),
        ("trace_share", 1.5),
        ("swing", (0.0, 1.0)),
    ],
)
def test_bad_ranges_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **{field: value})
