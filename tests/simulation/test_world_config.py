"""What a user may say of a world: defaults change nothing, every fault of the input has its line."""

import math

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.simulation.world_config import WorldConfig

NAMES = ("ant", "bee:7b")


def test_nothing_given_is_no_world():
    config = WorldConfig()
    assert not config.is_set
    assert config.chosen_views == ()
    assert config.worlds(NAMES) == {}


def test_anything_given_is_compared_with_routers_that_see_everything():
    assert WorldConfig(scrape_period_s=5.0).chosen_views == ("informed", "twin")
    assert WorldConfig(views=("own",), scrape_period_s=5.0).chosen_views == ("own",)


def test_worlds_differ_in_the_view_alone():
    config = WorldConfig(
        views=("live", "twin"), router_shares=(70, 10, 20), scrape_period_s=math.inf, scraped="counts"
    )
    live, twin = config.worlds(NAMES).values()
    assert (live.choices.view, twin.choices.view) == ("live", "twin")
    assert twin.choices.routers == 3
    assert twin.choices.scraped == "counts"
    np.testing.assert_allclose(twin.telemetry.router_share, [0.7, 0.1, 0.2], rtol=1e-6)
    assert twin.telemetry is live.telemetry
    assert np.isinf(twin.telemetry.scrape_period_s)
    assert twin.faults is None


def test_events_name_experts():
    (world, _) = WorldConfig(fault=("bee:7b:10:30:down", "ant:0:5:2.5"), retry=True).worlds(NAMES).values()
    faults = world.faults
    np.testing.assert_array_equal(faults.script_expert, [1, 0])
    np.testing.assert_array_equal(faults.script_start_s, [10, 0])
    np.testing.assert_array_equal(faults.script_length_s, [30, 5])
    np.testing.assert_array_equal(faults.script_pace, [np.inf, 2.5])
    assert bool(faults.retry)


def test_numbers_are_of_every_expert():
    faults = WorldConfig(views=("twin",), pace_log_std=0.4).worlds(NAMES)["twin"].faults
    np.testing.assert_allclose(faults.pace_log_std, [0.4, 0.4])
    assert faults.script_expert.shape == (0,)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"views": ("twins",)}, "did you mean 'twin'"),
        ({"views": ("twin", "twin")}, "given twice"),
        ({"scraped": "count"}, "did you mean 'counts'"),
        ({"routers": 0}, "routers"),
        ({"router_shares": (1.0, 0.0)}, "router_shares"),
        ({"router_shares": (1.0, 2.0), "routers": 3}, "2 shares for 3 routers"),
        ({"scrape_period_s": -1.0}, "scrape_period_s"),
        ({"scrape_period_s": math.nan}, "scrape_period_s"),
        ({"scrape_jitter": 1.0}, "scrape_jitter"),
        ({"scrape_failure": 1.5}, "scrape_failure"),
        ({"slowdown_pace": 0.0}, "slowdown_pace"),
        ({"drift_time_s": 0.0}, "drift_time_s"),
        ({"outage_per_s": -0.1}, "outage_per_s"),
        ({"detection_delay_s": math.inf}, "detection_delay_s"),
        ({"fault": ("ant:1:2",)}, "EXPERT:START_S:LENGTH_S:PACE"),
        ({"fault": ("ant:1:2:slow",)}, "is no event"),
        ({"fault": ("ant:-1:2:3",)}, "out of range"),
        ({"fault": ("ant:1:0:3",)}, "out of range"),
        ({"fault": ("ant:1:2:0",)}, "out of range"),
        ({"fault": ("ant:1:2:inf",)}, "out of range"),
        ({"fault": ("bea:1:2:3",)}, "unknown"),
    ],
    ids=str,
)
def test_refused(given, says):
    with pytest.raises(InputError) as refused:
        WorldConfig(**given).worlds(NAMES)
    assert says in str(refused.value)
