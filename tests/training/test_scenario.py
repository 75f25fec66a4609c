"""Domain randomisation: every number in its range, fixed where the range is, a table's own rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.serving import ServiceLimits
from qos_jax.training.scenario import Scenario, _vary_fleet, recorded_of, sample_params
from qos_jax.training.scenario_config import ScenarioConfig
from qos_jax.workload import Trace, experts_named, fleet_path, load_calibration, read_fleet
from qos_jax.workload.capacity import capacity_per_s
from tests.routing import scenes

CONFIG = ScenarioConfig(table_rows=64, steady_share=0.0)
COUNT = 16
WORSE = {
    "length_bias_log": (-0.8, -0.2),
    "length_noise_log": (0.3, 0.9),
    "quality_bias": (-0.2, -0.05),
    "quality_noise": (0.1, 0.3),
}


@pytest.fixture(scope="module")
def scenario():
    fleet = read_fleet(fleet_path("edge6"))
    calibration = experts_named(load_calibration(), fleet.names)
    return Scenario(jax.tree.map(jnp.asarray, fleet.profile), ServiceLimits(jnp.float32(0.07)), calibration)


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
        (drawn.limits.latency_limit_s / 0.07, CONFIG.limit_scale),
    ):
        assert np.all((value >= low * 0.999) & (value <= high * 1.001))
        assert np.unique(value).size == COUNT


def test_a_share_of_the_episodes_is_steady_and_the_others_are_as_they_were(drawn, scenario):
    share = dataclasses.replace(CONFIG, steady_share=0.5)
    draw = jax.jit(jax.vmap(lambda key: sample_params(key, share, scenario)))
    process = jax.device_get(draw(jax.random.split(jax.random.key(0), COUNT))).process
    before = drawn.process
    steady = process.burst_factor == 1.0
    assert 4 <= steady.sum() <= 12
    np.testing.assert_array_equal(process.profile[steady], 1.0)
    for name in ("burst_factor", "profile", "rate_per_s", "bin_s"):
        np.testing.assert_array_equal(getattr(process, name)[~steady], getattr(before, name)[~steady])
    np.testing.assert_array_equal(process.rate_per_s, before.rate_per_s)


def test_the_rate_is_the_load_times_the_capacity(drawn):
    for lane in range(COUNT):
        profile, table = jax.tree.map(lambda leaf, lane=lane: leaf[lane], (drawn.profile, drawn.table))
        load = drawn.process.rate_per_s[lane] / capacity_per_s(profile, table).sum()
        assert 0.999 * CONFIG.load[0] <= load <= 1.001 * CONFIG.load[1]


def test_a_context_limit_leaves_every_draw_of_the_times_as_it_is():
    plain, limited = (
        _vary_fleet(jax.random.key(0), CONFIG, fleet)
        for fleet in (scenes.profile(), scenes.profile(context_limit_tokens=[900] * 3))
    )
    np.testing.assert_array_equal(limited.context_limit_tokens, 900)
    assert not np.array_equal(plain.decode_base_s, scenes.profile().decode_base_s)
    for name, value in vars(plain).items():
        if name != "context_limit_tokens":
            np.testing.assert_array_equal(getattr(limited, name), value)


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
    assert np.all(swing <= CONFIG.diurnal_swing[1])
    assert np.unique(swing).size == COUNT
    assert np.unique(profile.argmax(-1)).size > 4
    period_s = drawn.process.bin_s * profile.shape[-1]
    assert np.all((period_s >= 0.999 * CONFIG.period_s[0]) & (period_s <= 1.001 * CONFIG.period_s[1]))
    calm = dataclasses.replace(CONFIG, diurnal_swing=(0.0, 0.0))
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
    fleet = scenes.profile(context_limit_tokens=[900] * 3)
    scenario = Scenario(fleet, ServiceLimits(jnp.float32(0.06)), load_calibration(), table=table)
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
    assert float(params.limits.latency_limit_s) == pytest.approx(0.06)
    for name, value in vars(fleet).items():
        np.testing.assert_allclose(getattr(params.profile, name), value, rtol=1e-6)


@pytest.fixture(scope="module")
def on_a_table():
    """Episodes on a table of the user's own, and what they are drawn of."""
    limits, table = ServiceLimits(jnp.float32(0.06)), scenes.table(0, 30)
    scenario = Scenario(scenes.profile(), limits, load_calibration(), table=table)
    return scenario, drawn_by(CONFIG, scenario)


def drawn_by(config, given):
    draw = jax.jit(jax.vmap(lambda key: sample_params(key, config, given)))
    return jax.device_get(draw(jax.random.split(jax.random.key(0), COUNT)))


@pytest.fixture(scope="module", params=["synthetic", "real"])
def worsened(request, scenario, drawn, on_a_table):
    """The same episodes as predictions are, with all errors added, and with the biases alone."""
    if request.param == "real":
        scenario, drawn = on_a_table
    biases = {name: ends for name, ends in WORSE.items() if "bias" in name}
    return (
        drawn,
        drawn_by(dataclasses.replace(CONFIG, **WORSE), scenario),
        drawn_by(dataclasses.replace(CONFIG, **biases), scenario),
    )


def test_added_error_worsens_predictions_and_nothing_else(worsened):
    before, after, _ = worsened
    predicted = ("predicted_quality", "predicted_output_tokens")
    for field in predicted:
        assert np.all(np.any(getattr(after.table, field) != getattr(before.table, field), axis=(1, 2)))
    rest = [
        dataclasses.replace(
            params,
            table=dataclasses.replace(params.table, **dict.fromkeys(predicted)),
            length_log_std=None,
        )
        for params in (before, after)
    ]
    # Other programs round otherwise.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *rest)


def test_a_router_is_told_of_the_drawn_noise_of_lengths_and_of_no_bias(worsened):
    before, after, biased = worsened
    noise = np.sqrt(np.square(after.length_log_std) - np.square(before.length_log_std))
    np.testing.assert_allclose(noise, np.broadcast_to(noise[:, :1], noise.shape), rtol=1e-3)
    low, high = WORSE["length_noise_log"]
    assert np.all((noise >= 0.999 * low) & (noise <= 1.001 * high))
    assert np.unique(noise[:, 0]).size == COUNT
    np.testing.assert_allclose(biased.length_log_std, before.length_log_std, rtol=1e-5)


def test_biases_lie_in_their_ranges(worsened):
    before, _, biased = worsened
    tokens, quality = biased.table.predicted_output_tokens, biased.table.predicted_quality
    longer = np.log(tokens) - np.log(before.table.predicted_output_tokens)
    better = quality - before.table.predicted_quality
    for moved, free, (low, high) in (
        (longer, tokens > 1.0, WORSE["length_bias_log"]),
        (better, quality > 0.0, WORSE["quality_bias"]),
    ):
        bias = np.mean(moved, axis=(1, 2), where=free)  # one of an episode, but for the bounds
        np.testing.assert_allclose(
            moved[free], np.broadcast_to(bias[:, None, None], moved.shape)[free], atol=1e-4
        )
        assert np.all((bias >= low - 1e-4) & (bias <= high + 1e-4))
        assert np.unique(bias.round(4)).size > COUNT // 2


TRACE = Trace(
    arrival_s=np.array([0.0, 1.0, 1.5, 5.0, 6.0]),
    prompt_tokens=np.array([11, 12, 13, 14, 15], np.int32),
    output_tokens=np.array([5, 6, 7, 8, 9], np.int32),
    name="five requests",
)


def test_of_a_trace_a_share_of_the_episodes_has_arrivals_rate_and_lengths(scenario, drawn):
    replaying = dataclasses.replace(scenario, recorded=recorded_of(TRACE))
    config = dataclasses.replace(CONFIG, replay_share=0.5, replay_rate=(0.5, 2.0))
    episodes = drawn_by(config, replaying)
    replays = episodes.process.recording.replays
    assert 2 < replays.sum() < COUNT - 2
    gaps = np.diff(TRACE.arrival_s) * TRACE.rate_per_s
    np.testing.assert_allclose(episodes.process.recording.gaps, np.tile(gaps, (COUNT, 1)), rtol=1e-6)
    scale = episodes.process.rate_per_s[replays] / TRACE.rate_per_s
    assert np.all((scale >= 0.499) & (scale <= 2.001))
    assert np.unique(scale).size == scale.size
    prompt = episodes.table.prompt_tokens[replays]
    assert set(prompt.ravel()) == set(TRACE.prompt_tokens)
    others = jax.tree.map(lambda leaf: leaf[~replays], dataclasses.replace(episodes, process=None))
    without = jax.tree.map(lambda leaf: leaf[~replays], dataclasses.replace(drawn, process=None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), others, without)
    np.testing.assert_allclose(
        episodes.process.rate_per_s[~replays], drawn.process.rate_per_s[~replays], rtol=1e-5
    )


def test_of_a_trace_on_a_table_the_rows_stay_the_tables(on_a_table):
    given, without = on_a_table
    with_trace = drawn_by(CONFIG, dataclasses.replace(given, recorded=recorded_of(TRACE)))
    assert with_trace.process.recording.replays.all()
    jax.tree.map(np.testing.assert_array_equal, with_trace.table, without.table)


def test_a_trace_without_a_rate_is_refused():
    with pytest.raises(InputError, match="at one instant"):
        recorded_of(dataclasses.replace(TRACE, arrival_s=np.zeros(5)))


def test_with_caches_a_share_of_the_episodes_are_conversations_and_the_others_share_nothing(scenario, drawn):
    config = dataclasses.replace(CONFIG, conversation_share=0.5, open_conversations=6)
    draw = jax.jit(jax.vmap(lambda key: sample_params(key, config, scenario, caches=True)))
    episodes = jax.device_get(draw(jax.random.split(jax.random.key(0), COUNT)))
    table, before = episodes.table, drawn.table
    talks = table.prefix_group[:, 0] >= 0
    assert 4 <= talks.sum() <= 12
    np.testing.assert_array_equal(table.prefix_group[~talks], -1)
    np.testing.assert_array_equal(table.prompt_tokens - table.prefix_tokens, before.prompt_tokens)
    np.testing.assert_array_equal(table.prefix_tokens[~talks], 0)
    assert np.all(table.prefix_tokens[talks].max(-1) > 100)
    whole = table.prompt_tokens + table.output_tokens.max(-1)
    assert np.all(whole[table.prefix_tokens > 0] <= config.conversation_limit_tokens)
    # The load is of the fleet's capacity for such prompts, without caches.
    lane = np.flatnonzero(talks)[0]
    capacities = [
        capacity_per_s(*jax.tree.map(lambda leaf: leaf[lane], (of.profile, of.table))).sum()
        for of in (episodes, drawn)
    ]
    assert capacities[0] < capacities[1]
    rates = [of.process.rate_per_s[lane] for of in (episodes, drawn)]
    np.testing.assert_allclose(rates[0] / capacities[0], rates[1] / capacities[1], rtol=1e-4)
    same = {"prompt_tokens": None, "prefix_group": None, "prefix_tokens": None}
    jax.tree.map(
        np.testing.assert_array_equal,
        dataclasses.replace(table, **same),
        dataclasses.replace(before, **same),
    )


def test_replicas_answer_as_the_first_expert(on_a_table):
    given, without = on_a_table
    episodes = drawn_by(dataclasses.replace(CONFIG, replicas=True), given)
    for name in ("quality", "output_tokens", "predicted_quality", "predicted_output_tokens"):
        first = getattr(without.table, name)[..., :1]
        np.testing.assert_array_equal(
            getattr(episodes.table, name), np.broadcast_to(first, (*first.shape[:-1], 3))
        )
    assert np.all(episodes.length_log_std == episodes.length_log_std[:, :1])


def test_which_ranges_add_error():
    assert not CONFIG.adds_error
    for name, ends in WORSE.items():
        changed = dataclasses.replace(CONFIG, **{name: ends})
        assert changed.adds_error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("length_noise_log", (-0.1, 0.3)),
        ("quality_noise", (0.3, 0.1)),
        ("quality_bias", (0.1, -0.1)),
        ("quality_bias", (-1.5, 0.0)),
        ("length_bias_log", (0.0, float("nan"))),
        ("length_bias_log", (0.0, float("inf"))),
        ("table_rows", 1),
        ("load", (2.0, 1.0)),
        ("limit_scale", (0.0, 1.0)),
        ("trace_share", 1.5),
        ("replay_share", -0.5),
        ("conversation_share", 1.1),
        ("conversation_turns", 0.5),
        ("open_conversations", 0),
        ("replay_rate", (0.0, 1.0)),
        ("diurnal_swing", (0.0, 1.0)),
    ],
)
def test_bad_ranges_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **{field: value})
