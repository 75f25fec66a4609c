"""A comparison under views: a row for each policy and view, each what ``simulate_world`` gives by hand."""

import dataclasses

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.evaluation.comparison import (
    ComparisonConfig,
    draw_cases,
    execute_comparison,
    load_comparison,
    notes,
    work_requests,
)
from qos_jax.evaluation.comparison_table import Comparison
from qos_jax.policies import policy
from qos_jax.runs.folder import open_run_folder
from qos_jax.simulation import CaseConfig, WorldConfig, simulate_world, summarise
from tests.launch.conftest import FLEET

CASES = CaseConfig(workloads=("poisson",), loads=(0.8,), seeds=2, num_requests=24)
ROOMY = FLEET.replace("2,2,64,60", "2,2,4096,6000").replace("3,1,16,90", "3,1,4096,6000")
WORLD = WorldConfig(views=("scrape", "live"), routers=2, scrape_period_s=2.0)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "fleet.csv").write_text(ROOMY)
    return ComparisonConfig(
        fleet=str(tmp_path / "fleet.csv"),
        policies=("shortest_queue", "upper_bound"),
        latency_limit_s=0.1,
        cases=CASES,
        world=WORLD,
    )


def test_rows_are_of_policies_under_views_and_go_on_where_they_were(config, tmp_path):
    plan = load_comparison(config)
    assert plan.baseline == "shortest_queue@scrape"
    assert plan.settings["baseline"] == plan.baseline
    assert plan.settings["scrape_period_s"] == 2.0
    cases = draw_cases(plan)
    assert work_requests(plan, cases) == 2 * 2 * 24
    folder = open_run_folder(tmp_path / "run", plan.settings)
    comparison = execute_comparison(plan, cases, folder, plot=False)
    rows = {row.policy: row for row in comparison.rows if row.metric == "average_qos"}
    assert list(rows) == ["shortest_queue@scrape", "shortest_queue@live", "upper_bound"]
    (case,) = next(iter(cases.values()))
    for view, world in plan.worlds.items():
        done = simulate_world(plan.setting.serving, policy("shortest_queue"), case.runs, world)
        by_hand = summarise(done.records, done.totals, case.runs.profile, case.runs.limits)["average_qos"]
        assert rows[f"shortest_queue@{view}"].mean == pytest.approx(np.mean(by_hand), abs=1e-12)
    routed = []
    again = execute_comparison(plan, cases, folder, plot=False, on_progress=routed.append)
    assert sum(routed) == work_requests(plan, cases)
    assert len(routed) == 2, "nothing is run again"
    assert repr(again) == repr(comparison)


def test_a_baseline_is_named_with_its_view_or_is_under_the_first(config):
    named = dataclasses.replace(config, baseline="shortest_queue@live")
    assert load_comparison(named).baseline == "shortest_queue@live"
    assert load_comparison(dataclasses.replace(config, baseline="upper_bound")).baseline == "upper_bound"
    with pytest.raises(InputError, match="shortest_queue@live"):
        load_comparison(dataclasses.replace(config, baseline="shortest_queue@twin"))


def test_an_event_of_no_expert_is_refused(config):
    world = WorldConfig(fault=("ent:1:2:down",))
    with pytest.raises(InputError, match="did you mean 'ant'"):
        load_comparison(dataclasses.replace(config, world=world))


def test_without_a_world_names_and_programs_are_as_they_were(config):
    plan = load_comparison(dataclasses.replace(config, world=WorldConfig()))
    assert plan.worlds == {}
    assert plan.baseline == "shortest_queue"


@pytest.mark.parametrize(("period_s", "said"), [(0.0, True), (2.0, False)])
def test_views_that_scrape_a_live_fleet_are_said_to_see_it(config, period_s, said):
    world = dataclasses.replace(WORLD, scrape_period_s=period_s)
    plan = load_comparison(dataclasses.replace(config, world=world))
    remarks = notes("prefill_first", Comparison("", ()), plan.worlds)
    assert any("true queues under scrape:" in remark for remark in remarks) is said
