"""Running cells: the numbers of a comparison, whatever the chunks, blocks and memory."""

import dataclasses

import numpy as np
import pytest

from qos_jax.devices import lane_mesh
from qos_jax.errors import InputError
from qos_jax.policies import policy, types
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases
from qos_jax.simulation.metrics import METRICS
from qos_jax.simulation.policy_runs import compare
from qos_jax.sweep import program
from qos_jax.sweep.axes import parse_axis
from qos_jax.sweep.grid import build_grid
from qos_jax.sweep.lane import LaneConfig
from qos_jax.sweep.program import LaneProgram, plan_chunks
from qos_jax.workload import NamedTable, RequestTable, experts_named, load_calibration, read_fleet
from qos_jax.workload.setting import open_setting
from tests.launch.conftest import FLEET

SEEDS, REQUESTS = 3, 24
MESH = lane_mesh(1)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    file = tmp_path_factory.mktemp("fleet") / "fleet.csv"
    file.write_text(FLEET.replace("60,0.01", "4000,0.01").replace("90,0.02", "6000,0.02"))
    return read_fleet(file)


@pytest.fixture(scope="module")
def figures():
    calibration = load_calibration()
    return experts_named(calibration, calibration.expert_names[:2])


def table_of(fleet):
    """Forty real requests of the fleet's two experts."""
    rng = np.random.default_rng(0)
    quality = rng.random((40, 2)).astype(np.float32)
    output = rng.integers(2, 60, (40, 2)).astype(np.int32)
    table = RequestTable(
        rng.integers(5, 300, 40).astype(np.int32),
        quality,
        output,
        quality[:, ::-1].copy(),
        output * np.float32(1.1),
    )
    return NamedTable(fleet.names, table, np.array([0.3, 0.4], np.float32), None, "table.npz")


def grid_of(fleet, source, workload, *texts):
    draws = CaseConfig(workloads=(workload,), seeds=SEEDS, num_requests=REQUESTS, seed=5)
    opened = open_setting("edge6", latency_limit_s=0.06)
    drawn = {"rows" if isinstance(source, NamedTable) else "figures": source}
    swept = dataclasses.replace(opened, name="mine", fleet=fleet, **drawn)
    return build_grid([swept], [parse_axis(text) for text in texts], "prefill_first", draws)


def metrics_of(grid, workload, router, chunk_requests=None, max_bytes=1e9):
    """Return the metrics of all cells, [C, S, M], and how they were cut."""
    (group,) = grid.groups
    config = LaneConfig(group.serving, workload, REQUESTS, SEEDS)
    cut = plan_chunks(
        config, group, MESH, max_bytes, cell_requests=SEEDS * REQUESTS, chunk_requests=chunk_requests
    )
    lanes = LaneProgram(config, router, group, cut, MESH, 5)
    places = range(0, len(group.cell), cut.chunk_cells)
    parts = [lanes.run(np.arange(at, min(at + cut.chunk_cells, len(group.cell)))) for at in places]
    assert len(parts) == cut.chunks
    return np.concatenate(parts)[np.argsort(group.cell)], cut, lanes


@pytest.mark.parametrize(
    ("kind", "workload", "rates", "name"),
    [("figures", "azure_conv", (1.0, 3.0), "shortest_queue"), ("table", "poisson", (1.0, 8.0), "random")],
)
def test_a_cell_is_a_case_of_a_comparison(fleet, figures, kind, workload, rates, name):
    """Same seeds, same requests, same numbers, though drawn in the program and summed up in float32."""
    source = figures if kind == "figures" else table_of(fleet)
    grid = grid_of(fleet, source, workload, f"arrival_rate={rates[0]},{rates[1]}", "latency_limit_s=0.1")
    config = CaseConfig(
        workloads=(workload,),
        arrival_rates=rates,
        seeds=SEEDS,
        num_requests=REQUESTS,
        seed=5,
        table_match="even",
    )
    cases = build_cases(config, fleet, source, 0.1)
    compared = compare(grid.groups[0].serving, [policy(name)], cases, workers=1)
    metrics, _, compiled = metrics_of(grid, workload, policy(name))
    assert compiled.measured_bytes > 0
    for cell, result in enumerate(compared.results):
        assert result.metrics["average_qos"].max() > 0
        for index, name in enumerate(METRICS):
            np.testing.assert_allclose(
                metrics[cell, :, index], result.metrics[name], rtol=2e-4, atol=1e-6, err_msg=name
            )


def test_chunks_change_nothing_and_what_is_swept_matters(fleet, figures):
    grid = grid_of(fleet, figures, "mmpp", "load=0.3:2:24", "burst_factor=1,6", "length_bias_log=0,1")
    whole, cut, _ = metrics_of(grid, "mmpp", policy("least_work"))
    assert cut.chunks == 1
    metrics, cut, _ = metrics_of(grid, "mmpp", policy("least_work"), chunk_requests=1)
    assert cut.chunks == 2  # of 64 cells: three whole blocks
    np.testing.assert_array_equal(metrics, whole)
    latency = metrics[:, :, list(METRICS).index("ttft_mean_s")].reshape(24, 2, 2, SEEDS)
    assert latency[0].mean() < latency[-1].mean()
    assert not np.array_equal(latency[:, 0], latency[:, 1])
    assert not np.array_equal(latency[:, :, 0], latency[:, :, 1])  # a router misled
    assert np.all(metrics[:, :, list(METRICS).index("arrived")] == REQUESTS)


def test_runs_in_turn_are_the_runs_together(fleet, figures, monkeypatch):
    grid = grid_of(fleet, figures, "mmpp", "load=0.3:2:24", "burst_factor=1,6", "length_bias_log=0,1")
    together, _, _ = metrics_of(grid, "mmpp", policy("least_work"))
    monkeypatch.setattr(types, "small_loops_joined", lambda: True)
    taken, runs = [], program.vmap_runs
    monkeypatch.setattr(
        program, "vmap_runs", lambda run, *, in_turn: (taken.append(in_turn), runs(run, in_turn=in_turn))[1]
    )
    in_turn, _, _ = metrics_of(grid, "mmpp", policy("least_work"))
    assert taken == [True]
    np.testing.assert_allclose(in_turn, together, rtol=1e-5, atol=1e-6)


def test_memory_is_kept_to(fleet, figures):
    grid = grid_of(fleet, figures, "poisson", "load=0.3:2:24", "latency_limit_s=0.02:0.1:50")
    (group,) = grid.groups
    config = LaneConfig(group.serving, "poisson", REQUESTS, SEEDS)
    plans = [
        plan_chunks(config, group, MESH, size, cell_requests=SEEDS * REQUESTS) for size in (1e9, 3e6, 1e6)
    ]
    assert [plan.block_runs for plan in plans] == sorted([plan.block_runs for plan in plans], reverse=True)
    assert plans[0].block_runs == 64
    for plan, size in zip(plans, (1e9, 3e6, 1e6), strict=True):
        assert plan.chunk_bytes <= size
        assert plan.chunks * plan.chunk_cells >= 1200
    with pytest.raises(InputError, match=r"'max_memory_gb': 1e-06 GB do not hold a run .*; raise it"):
        plan_chunks(config, group, MESH, 1e3, cell_requests=1)
    longer = dataclasses.replace(config, num_requests=1000)
    assert plan_chunks(longer, group, MESH, 1e9, cell_requests=1).run_bytes > 5 * plans[0].run_bytes
