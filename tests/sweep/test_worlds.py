"""Worlds of a sweep: the numbers of every cell, what is refused, and a cell as a comparison runs it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.policies import policy
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases
from qos_jax.simulation.metrics import METRICS, metric_names
from qos_jax.simulation.policy_runs import compare
from qos_jax.simulation.world_config import WorldConfig
from qos_jax.sweep.axes import parse_axis
from qos_jax.sweep.grid import build_grid
from qos_jax.sweep.lane import LaneConfig, run_lane
from qos_jax.sweep.plan import SweepConfig, load_sweep
from qos_jax.sweep.program import LaneProgram, lanes_of, plan_chunks
from qos_jax.sweep.worlds import swept_worlds
from qos_jax.workload.setting import open_setting
from tests.sweep.test_program import MESH, figures, fleet  # noqa: F401

SEEDS, REQUESTS, RATES = 2, 40, (4.0, 8.0)


def worlds_of(config, *texts):
    axes = [parse_axis(text) for text in texts]
    points = np.array([axis.values for axis in axes]).T
    return swept_worlds(config, axes), axes, points


def test_numbers_of_cells_are_swept_or_given():
    config = WorldConfig(router_shares=(2.0, 2.0), detection_delay_s=3.0)
    worlds, axes, points = worlds_of(
        config, "outage_per_s=0,0.1,0.2", "load=1,2,3", "router_shares.1=1,2,6", "scrape_period_s=0,5,9"
    )
    assert worlds.views == ("informed", "twin")
    assert worlds.has_faults
    assert worlds.choices["twin"].routers == 2
    reality = worlds.realities(("ant", "bee"), axes, points)
    np.testing.assert_allclose(reality.telemetry.router_share[:, 0], [1 / 3, 1 / 2, 3 / 4], rtol=1e-6)
    np.testing.assert_array_equal(reality.telemetry.scrape_period_s, [0, 5, 9])
    np.testing.assert_allclose(reality.faults.outage_per_s, [[0, 0], [0.1, 0.1], [0.2, 0.2]], rtol=1e-6)
    np.testing.assert_array_equal(reality.faults.detection_delay_s, [3, 3, 3])


@pytest.mark.parametrize(
    ("given", "texts", "says"),
    [
        ({"views": ("own_times_routers",)}, ["scrape_period_s=1,2"], "give --views=twin"),
        ({}, ["scrape_jitter=0,0.5"], "give --scrape_period_s"),
        ({}, ["drift_time_s=10,20"], "give --drift_log_std"),
        ({}, ["detection_delay_s=1,2"], "give --outage_per_s"),
        ({}, ["router_shares.1=1,2"], "give --routers=2"),
        ({"routers": 2}, ["router_shares.3=1,2"], "give --routers=3"),
        ({}, ["router_shares.0=1,2"], "is unknown"),
        ({}, ["scrape_failure=0,1.5"], "1.5 is out of range"),
    ],
    ids=str,
)
def test_refused(given, texts, says):
    with pytest.raises(InputError) as refused:
        worlds_of(WorldConfig(**given), *texts)
    assert says in str(refused.value)


def test_what_matters_in_a_scripted_outage_is_swept():
    config = WorldConfig(views=("twin",), fault=("ant:1:2:down",))
    worlds, axes, points = worlds_of(config, "detection_delay_s=1,2")
    reality = worlds.realities(("ant", "bee"), axes, points)
    np.testing.assert_array_equal(reality.faults.script_expert, [[0], [0]])
    np.testing.assert_array_equal(reality.faults.detection_delay_s, [1, 2])


def test_policies_are_named_under_views_and_none_without_a_world():
    swept = SweepConfig(policies=("random",), sweep=("load=0.5,1",), seeds=1, num_requests=8)
    plain = load_sweep(swept)
    assert [each.name for each in plain.policies] == ["random"]
    (group,) = plain.grid.groups
    assert group.numbers.reality is None
    assert plain.lane_config(group, "random").choices is None
    swept = dataclasses.replace(swept, world=WorldConfig(views=("live", "twin"), scrape_period_s=5.0))
    plan = load_sweep(swept)
    assert [each.name for each in plan.policies] == ["random@live", "random@twin"]
    assert plan.settings["scrape_period_s"] == 5.0
    (group,) = plan.grid.groups
    assert plan.lane_config(group, "random@live").choices.view == "live"
    with pytest.raises(InputError, match="leave out that policy"):
        load_sweep(dataclasses.replace(swept, policies=("measured_greedy",)))


def test_a_cell_is_a_case_of_a_comparison_in_its_world(fleet, figures):  # noqa: F811
    own = WorldConfig(("own",), routers=2, outage_per_s=0.05, outage_length_s=2.0, retry=True)
    axes = [parse_axis(f"arrival_rate={RATES[0]},{RATES[1]}"), parse_axis("scrape_period_s=0.5,4")]
    worlds = swept_worlds(own, axes)
    draws = CaseConfig(
        workloads=("poisson",), arrival_rates=RATES, seeds=SEEDS, num_requests=REQUESTS, seed=5
    )
    opened = open_setting("edge6", latency_limit_s=0.1)
    swept = dataclasses.replace(opened, name="mine", fleet=fleet, figures=figures)
    (group,) = build_grid([swept], axes, "prefill_first", draws, worlds).groups
    lane = LaneConfig(group.serving, "poisson", REQUESTS, SEEDS, choices=worlds.choices["own"])
    cut = plan_chunks(lane, group, MESH, 1e9, cell_requests=SEEDS * REQUESTS)
    metrics = LaneProgram(lane, policy("shortest_queue"), group, cut, MESH, 5).run(np.arange(4))
    metrics = metrics[np.argsort(group.cell)].reshape(2, 2, SEEDS, -1)  # by rate and period
    cases = build_cases(draws, fleet, figures, 0.1)
    for number, period_s in enumerate((0.5, 4.0)):
        (world,) = dataclasses.replace(own, scrape_period_s=period_s).worlds(fleet.names).values()
        compared = compare(
            group.serving,
            [policy("shortest_queue")],
            cases,
            workers=1,
            worlds={"shortest_queue": world},
        )
        for rate, result in enumerate(compared.results):
            for index, name in enumerate(METRICS):
                np.testing.assert_allclose(
                    metrics[rate, number, :, index],
                    result.metrics[name],
                    rtol=2e-4,
                    atol=1e-6,
                    err_msg=f"{name} {period_s} s",
                )
    assert not np.array_equal(metrics[:, 0], metrics[:, 1])


def test_caches_in_a_world_have_their_metrics():
    plan = load_sweep(
        SweepConfig(
            policies=("prefix_load",),
            workload="conversation",
            prefix_entries=4,
            seeds=1,
            num_requests=8,
            sweep=("outage_per_s=0,0.1",),
            world=WorldConfig(views=("twin",), routers=2, scrape_period_s=5.0),
        )
    )
    (group,) = plan.grid.groups
    config = plan.lane_config(group, "prefix_load@twin")
    lane = jax.tree.map(lambda leaf: leaf[0], lanes_of(config, group, np.arange(1), 0))
    router = plan.policies[0].act_function()
    result = jax.eval_shape(functools.partial(run_lane, config, router, None), group.source, lane)
    assert result.metrics.shape == (len(metric_names(4)),)
