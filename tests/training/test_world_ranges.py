"""The worlds that episodes are trained in: every number in its range, and what is refused."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.learned import parameter_shapes
from qos_jax.simulation.world_config import WORLD_NUMBERS, WorldConfig
from qos_jax.training.plan import load_plan
from qos_jax.training.presets import PRESETS
from qos_jax.training.train_config import TrainConfig
from qos_jax.training.world_ranges import WorldRanges, sample_world

COUNT, EXPERTS = 64, 3
RANGES = WorldRanges(
    view="twin",
    routers=4,
    share_log_std=(0.5, 1.0),
    scrape_period_s=(1.0, 30.0),
    pace_log_std=(0.0, 0.4),
    detection_delay_s=(5.0, 20.0),
)


def test_numbers_lie_in_their_ranges_and_differ():
    draw = jax.jit(jax.vmap(lambda key: sample_world(key, RANGES, EXPERTS)))
    telemetry, faults = jax.device_get(draw(jax.random.split(jax.random.key(0), COUNT)))
    assert telemetry.router_share.shape == (COUNT, 4)
    np.testing.assert_allclose(telemetry.router_share.sum(axis=1), 1.0, rtol=1e-6)
    assert faults.pace_log_std.shape == (COUNT, EXPERTS)
    for name in WORLD_NUMBERS:
        low, high = getattr(RANGES, name)
        value = getattr(telemetry if hasattr(telemetry, name) else faults, name)
        assert np.all((value >= low * 0.9999) & (value <= high * 1.0001)), name
        assert np.unique(value).size == (COUNT if high > low else 1), name
    # Half of the periods are below the middle by logs.
    assert 20 < np.sum(telemetry.scrape_period_s < math.sqrt(30.0)) < 44


def test_without_a_view_there_is_no_world_and_without_errors_no_fault():
    assert sample_world(jax.random.key(0), WorldRanges(), EXPERTS) == (None, None)
    _, faults = sample_world(jax.random.key(0), WorldRanges(view="twin", scrape_period_s=(1, 2)), EXPERTS)
    assert faults is None


def test_the_middle_is_the_world_to_be_judged_in():
    middle = RANGES.middle()
    assert middle == WorldConfig(
        views=("twin",),
        routers=4,
        scrape_period_s=middle.scrape_period_s,
        pace_log_std=0.2,
        detection_delay_s=middle.detection_delay_s,
    )
    assert middle.scrape_period_s == pytest.approx(math.sqrt(30.0))
    assert middle.detection_delay_s == pytest.approx(10.0)
    assert not WorldRanges().middle().worlds(["a"])  # no view: routers see everything


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"scrape_period_s": (1.0, 5.0)}, "give view"),
        ({"view": "twins"}, "did you mean 'twin'"),
        ({"view": "twin", "scrape_period_s": (5.0, 1.0)}, "out of order"),
        ({"view": "twin", "scrape_jitter": (0.0, 1.0)}, "below 1"),
        ({"view": "twin", "routers": 0}, "routers"),
    ],
    ids=str,
)
def test_refused(given, says):
    with pytest.raises(InputError, match=says):
        WorldRanges(**given)


def test_a_router_knows_of_its_belief_where_it_has_one():
    with pytest.raises(InputError, match=r"network.believes.*give world.view"):
        TrainConfig(network=NetworkConfig(believes=True))
    preset = PRESETS["reality"]
    with pytest.raises(InputError, match=r"set network\.believes=true"):
        dataclasses.replace(preset, network=NetworkConfig())
    with pytest.raises(InputError, match=r"distil.updates.*set it to 0"):
        dataclasses.replace(preset, distil=dataclasses.replace(preset.distil, updates=1))


def test_the_networks_of_the_preset_take_what_its_world_shows():
    preset = dataclasses.replace(PRESETS["reality"], agent="ppo")
    plan = load_plan(preset)
    assert [phase.name for phase in plan.phases] == ["search", "ppo"]
    learner = plan.phases[1].learner
    made = jax.eval_shape(lambda key: learner.params(learner.init(key, None)), jax.random.key(0))
    serving = plan.setting.serving
    assert made == parameter_shapes(preset.network, serving.num_experts, serving.slots)
    plain = dataclasses.replace(preset.network, believes=False)
    assert made != parameter_shapes(plain, serving.num_experts, serving.slots)
