"""The cells of a sweep: numbers by hand, groups by shape, the load of each cell's own fleet."""

import dataclasses

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.serving import ServiceLimits
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases
from qos_jax.sweep.axes import parse_axis
from qos_jax.sweep.grid import build_grid
from qos_jax.workload import fleet_path, load_calibration, read_fleet, take
from qos_jax.workload.capacity import capacity_per_s
from qos_jax.workload.drawn_requests import draw_contents
from qos_jax.workload.setting import open_setting

DRAWS = CaseConfig(workloads=("poisson",), seeds=3, num_requests=20)


def swept(name="all", experts=range(6), limit_s=0.07):
    fleet = take(read_fleet(fleet_path("edge6")), list(experts))
    opened = open_setting("edge6", latency_limit_s=limit_s)
    return dataclasses.replace(opened, name=name, fleet=fleet, figures=figures(fleet))


def figures(fleet):
    from qos_jax.workload import experts_named

    return experts_named(load_calibration(), fleet.names)


def grid_of(*texts, fleets=None, draws=DRAWS, scheduler="prefill_first"):
    axes = [parse_axis(text) for text in texts]
    return build_grid(fleets or [swept()], axes, scheduler, draws)


def in_order(group, leaf):
    """Return a leaf by cell of the grid."""
    return np.asarray(leaf)[np.argsort(group.cell)]


def test_limits_are_swept_or_the_fleets_own():
    opened = swept()
    opened = dataclasses.replace(opened, limits=dataclasses.replace(opened.limits, tpot_limit_s=0.2))
    (group,) = grid_of("load=0.5", "ttft_limit_s=1,2", fleets=[opened]).groups
    limits = jax.tree.map(lambda leaf: in_order(group, leaf).tolist(), group.numbers.known.limits)
    expected = ServiceLimits(*np.float32([[0.07] * 2, [1, 2], [0.2] * 2]).tolist())
    assert vars(limits) == vars(expected)


def test_plain_numbers_and_defaults():
    grid = grid_of("arrival_rate=2,4,8", "latency_limit_s=0.05,0.1", "margin=0.1")
    assert grid.num_cells == 6
    (group,) = grid.groups
    np.testing.assert_allclose(in_order(group, group.numbers.arrival_rate_per_s), [2, 2, 4, 4, 8, 8])
    np.testing.assert_allclose(in_order(group, group.numbers.known.limits.latency_limit_s), [0.05, 0.1] * 3)
    np.testing.assert_allclose(group.numbers.greedy.margin, 0.1, rtol=1e-6)
    assert np.all(np.isnan(group.numbers.greedy.congestion_price))  # each policy's own
    assert group.numbers.known.limits.is_plain
    # Run in order of load, so that blocks wait for none much slower.
    assert np.all(np.diff(group.numbers.arrival_rate_per_s) >= 0)
    for leaf in jax.tree.leaves(group.numbers):
        assert leaf.shape[0] == 6
        assert leaf.dtype in (np.float32, np.int32)


def test_load_is_of_the_cells_own_fleet_and_requests():
    grid = grid_of("load=0.5", "profile.decode_base_s*=1,2")
    source = swept().source
    keys = jax.random.split(jax.random.key(0), 3)
    contents = draw_contents(keys, source, None, 20)
    fleet = swept().fleet
    for cell, scale in enumerate((1, 2)):
        profile = dataclasses.replace(fleet.profile, decode_base_s=scale * fleet.profile.decode_base_s)
        capacity = capacity_per_s(profile, contents).sum()
        assert grid.capacity_per_s[cell] == pytest.approx(capacity, rel=1e-6)
        assert grid.arrival_rate_per_s[cell] == pytest.approx(0.5 * capacity, rel=1e-6)


def test_a_comparison_at_that_load_has_that_rate_and_error():
    grid = grid_of("load=0.6")
    config = dataclasses.replace(DRAWS, loads=(0.6,))
    (case,) = build_cases(config, swept().fleet, swept().source, 0.07)
    assert grid.arrival_rate_per_s[0] == pytest.approx(case.arrival_rate_per_s, rel=1e-6)
    np.testing.assert_allclose(
        grid.groups[0].numbers.known.length_log_std[0], case.runs.length_log_std[0], rtol=1e-6
    )


def test_without_a_rate_a_recorded_workload_has_its_own():
    draws = dataclasses.replace(DRAWS, workloads=("azure_conv",))
    assert grid_of(draws=draws).arrival_rate_per_s[0] == pytest.approx(5.55, rel=0.01)
    assert grid_of().arrival_rate_per_s[0] == pytest.approx(0.75 * grid_of().capacity_per_s[0])


def test_profile_fields_of_all_and_of_one():
    fleet = swept().fleet
    name = fleet.names[2]
    grid = grid_of(f"profile.{name}.kv_capacity_tokens=5000", "profile.decode_base_s*=0.5,3")
    profile = grid.groups[0].numbers.known.profile
    others = [i for i in range(6) if i != 2]
    assert np.all(profile.kv_capacity_tokens[:, 2] == 5000)
    assert np.all(profile.kv_capacity_tokens[:, others] == fleet.profile.kv_capacity_tokens[others])
    scaled = in_order(grid.groups[0], profile.decode_base_s)
    np.testing.assert_allclose(scaled, np.outer([0.5, 3], fleet.profile.decode_base_s), rtol=1e-6)
    halved = grid_of(f"profile.{name}.max_running*=0.3").groups[0].numbers.known.profile.max_running
    assert halved[0, 2] == round(0.3 * int(fleet.profile.max_running[2]))
    assert halved.dtype == np.int32


def test_context_limits_are_swept_and_follow_the_slots_of_llama_cpp():
    fleet = swept().fleet
    name = fleet.names[2]
    plain, limited = grid_of("load=0.5"), grid_of("load=0.5", f"profile.{name}.context_limit_tokens=100,900")
    assert plain.groups[0].numbers.known.profile.context_limit_tokens is None
    limits = in_order(limited.groups[0], limited.groups[0].numbers.known.profile.context_limit_tokens)
    np.testing.assert_array_equal(limits[:, 2], [100, 900])
    assert np.all(np.delete(limits, 2, axis=1) == np.iinfo(np.int32).max)
    # Outputs that are cut sooner leave room for more requests.
    assert np.all(np.diff([*limited.capacity_per_s, plain.capacity_per_s[0]]) < 0)
    (group,) = grid_of("profile.kv_capacity_tokens=16000,32000", scheduler="llama_cpp").groups
    shares = in_order(group, group.numbers.known.profile.context_limit_tokens)
    np.testing.assert_array_equal(shares, np.outer([16000, 32000], 1 / fleet.profile.max_running).astype(int))
    # Fleets with and without a limit are programs of their own.
    with_limit = dataclasses.replace(fleet, profile=fleet.under("llama_cpp").profile)
    pair = [swept("a"), dataclasses.replace(swept("b"), fleet=with_limit)]
    assert len(grid_of("load=0.5", fleets=pair).groups) == 2
    with pytest.raises(InputError, match="fleet all has no context_limit_tokens to scale; give values"):
        grid_of("profile.context_limit_tokens*=0.5")


def test_groups_by_experts_and_slots():
    fleets = [swept("a", [0, 1]), swept("b", [2, 3]), swept("c", [0, 1, 2])]
    grid = grid_of("load=0.5,1", fleets=fleets)
    assert grid.num_cells == 6
    assert sorted(np.concatenate([group.cell for group in grid.groups]).tolist()) == list(range(6))
    assert [group.serving.num_experts for group in grid.groups] == [2, 3]
    pair = grid.groups[0]
    assert pair.source.figures.quality_bias.shape == (2, 2)
    np.testing.assert_array_equal(in_order(pair, pair.numbers.fleet), [0, 0, 1, 1])
    slots = [
        grid_of(f"profile.{kind}=4,9", "load=0.5").groups[0].serving
        for kind in ("max_running", "max_waiting")
    ]
    assert slots[0].running_slots == 9
    assert slots[1].waiting_slots == 9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("profile.nobody.max_running=4", "no expert 'nobody'"),
        ("profile.max_running=100000", "max_batched_tokens"),
        ("profile.max_running*=0.001", "max_running"),
        ("profile.kv_capacity_tokens=1", "kv_capacity_tokens"),
        ("profile.busy_power_w=1", "busy_power_w"),
    ],
)
def test_a_profile_that_no_fleet_may_have(text, says):
    with pytest.raises(InputError, match="; ") as error:
        grid_of(text)
    assert says in str(error.value)
    assert "fleet all" in str(error.value)
