"""One work measured three ways: decisions, QoS and latency are the reference's."""

import dataclasses
import math

import numpy as np
import pytest

from qos_jax.benchmark.row import REFERENCE, SIMULATOR, Speed
from qos_jax.benchmark.simulator import (
    check_agreement,
    measure_closed_form,
    measure_evaluation,
    measure_reference,
)
from qos_jax.benchmark.work import Work, cut_stretches, draw_work
from qos_jax.errors import InputError
from qos_jax.policies import policy
from qos_jax.serving import ServiceLimits, ServingConfig
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases
from qos_jax.simulation.simulate import simulate
from qos_jax.workload import fleet_path, load_calibration, read_fleet


@pytest.fixture(scope="module")
def work():
    """Two runs that crowd the fleet, of other limits and seeds."""
    fleet = read_fleet(fleet_path("edge6"))
    config = CaseConfig(workloads=("poisson",), arrival_rates=(30.0,), seeds=2, num_requests=40)
    (case,) = build_cases(config, fleet, load_calibration(), 0.07)
    runs = dataclasses.replace(
        case.runs, limits=ServiceLimits(np.array([0.03, 0.05], np.float32)), seed=np.array([5, 9], np.uint32)
    )
    return Work(ServingConfig(fleet.num_experts, fleet.running_slots, fleet.waiting_slots), runs)


def test_the_same_work(work):
    """By a random policy: any other key would decide otherwise."""
    router, runs = policy("random"), work.runs
    done = simulate(work.serving, router, runs)
    reference = measure_reference(work, "random", done.records.expert, 1)
    closed = measure_closed_form(work, router, 2, 1)
    evaluated = measure_evaluation(work, router, 2, 1)
    assert (closed.what, reference.what) == (SIMULATOR, REFERENCE)
    qos = np.concatenate([done.records.at(i).qos(runs.latency_limit_s[i]) for i in range(2)])
    for speed in (closed, evaluated):
        assert speed.figures["mean_qos"] == pytest.approx(qos.mean(), rel=1e-5)
        assert speed.figures["mean_latency_s"] == pytest.approx(np.nanmean(done.records.latency_s), rel=1e-5)
        check_agreement(speed, reference)
    assert 0 < qos.mean() < runs.requests.quality.mean()
    assert closed.decisions == reference.decisions == 80
    assert closed.state_bytes_per_environment > 1000
    assert closed.moved_bytes_per_decision == 2 * closed.state_bytes_per_environment
    assert closed.compile_s > 0
    other = measure_reference(work, "other", (done.records.expert + 1) % 6, 1)
    with pytest.raises(RuntimeError, match="defect"):
        check_agreement(closed, other)


def speed(**changes):
    figures = {"mean_qos": 0.5, "mean_latency_s": 3.0} | changes.pop("figures", {})
    given = Speed(SIMULATOR, "random", 2, 6, 16, 80, 2.0, 4.0, figures=figures)
    return dataclasses.replace(given, **changes)


@pytest.mark.parametrize(
    "changes",
    [{"decisions": 81}, {"figures": {"mean_qos": 0.502}}, {"figures": {"mean_latency_s": math.nan}}],
)
def test_disagreement_is_a_defect(changes):
    check_agreement(speed(figures={"mean_qos": 0.5001}), speed())
    name = next(iter(changes.get("figures", changes)))
    with pytest.raises(RuntimeError, match=f"{name} is .* defect"):
        check_agreement(speed(**changes), speed())


def test_stretches(work):
    runs = work.runs
    cut = cut_stretches(runs, 3, 10)
    assert cut.shape == (3, 10)
    np.testing.assert_array_equal(cut.arrival_s, [runs.arrival_s[0, i : i + 10] for i in (0, 15, 30)])
    np.testing.assert_array_equal(cut.requests.quality[1], runs.requests.quality[0, 15:25])
    with pytest.raises(InputError, match="only 40 requests"):
        cut_stretches(runs, 3, 41)
    picked = runs.take(np.array([1, 0, 1]))
    assert picked.shape == (3, 40)
    np.testing.assert_array_equal(picked.requests.quality, runs.requests.quality[[1, 0, 1]])
    np.testing.assert_array_equal(picked.seed, [9, 5, 9])


def test_sizes_of_the_fleet():
    plain = draw_work(2, None, 4, "prefill_first", 0)
    wide = draw_work(2, 5, 4, "chunked_prefill", 0)
    assert plain.serving == ServingConfig(2, 16, 16)
    assert wide.serving == ServingConfig(2, 5, 5, scheduler="chunked_prefill")
    np.testing.assert_array_equal(wide.runs.profile.max_running, [5] * 2)
    np.testing.assert_array_equal(wide.runs.profile.max_waiting, [5] * 2)
    assert wide.runs.shape == (64, 4)
    # As many slots as an iteration has tokens, at least.
    assert draw_work(2, 4096, 4, "prefill_first", 0).runs.profile.max_batched_tokens[0] == 4096
