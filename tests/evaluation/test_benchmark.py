"""The benchmark measures one work twice: decisions, QoS and latency are the reference's."""

import dataclasses
import math

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.evaluation.benchmark import (
    CLOSED_FORM,
    REFERENCE,
    Speed,
    check_agreement,
    cut_stretches,
    first_runs,
    machine,
    measure_closed_form,
    measure_reference,
    peak_memory_bytes,
    render_speeds,
)
from qos_jax.evaluation.cases import CaseConfig, build_cases
from qos_jax.evaluation.simulate import simulate
from qos_jax.policies import policy
from qos_jax.serving import ServingConfig
from qos_jax.workload import fleet_path, load_calibration, read_fleet


@pytest.fixture(scope="module")
def serving():
    fleet = read_fleet(fleet_path("edge6"))
    return ServingConfig(fleet.num_experts, fleet.running_slots, fleet.waiting_slots)


@pytest.fixture(scope="module")
def runs():
    """Two runs that crowd the fleet, of other limits and seeds."""
    config = CaseConfig(workloads=("poisson",), arrival_rates=(30.0,), seeds=2, num_requests=40)
    (case,) = build_cases(config, read_fleet(fleet_path("edge6")), load_calibration(), 0.07)
    return dataclasses.replace(
        case.runs, latency_limit_s=np.array([0.03, 0.05], np.float32), seed=np.array([5, 9], np.uint32)
    )


def test_the_same_work(serving, runs):
    """By a random policy: any other key would decide otherwise."""
    router = policy("random")
    done = simulate(serving, router, runs)
    reference = measure_reference(runs, done.records.expert, "prefill_first", 1)
    closed = measure_closed_form(serving, router, runs, 2, 1)
    assert (closed.what, reference.what) == (CLOSED_FORM, REFERENCE)
    qos = np.concatenate([done.records.at(i).qos(runs.latency_limit_s[i]) for i in range(2)])
    assert closed.mean_qos == pytest.approx(qos.mean(), rel=1e-5)
    assert closed.mean_latency_s == pytest.approx(np.nanmean(done.records.latency_s), rel=1e-5)
    assert 0 < qos.mean() < runs.requests.quality.mean()
    check_agreement(closed, reference)
    assert closed.requests == reference.requests == 80
    assert closed.state_bytes_per_environment > 1000
    assert closed.compile_s > 0
    other = measure_reference(runs, (done.records.expert + 1) % 6, "prefill_first", 1)
    with pytest.raises(RuntimeError, match="defect"):
        check_agreement(closed, other)


def speed(what=CLOSED_FORM, **changes):
    given = Speed(what, 2, 80, 2.0, 4.0, 1.0, 10, 20, 0.5, 3.0)
    return dataclasses.replace(given, **changes)


@pytest.mark.parametrize("changes", [{"requests": 81}, {"mean_qos": 0.502}, {"mean_latency_s": math.nan}])
def test_disagreement_is_a_defect(changes):
    check_agreement(speed(mean_qos=0.5001), speed())
    with pytest.raises(RuntimeError, match=f"{next(iter(changes))} is .* defect"):
        check_agreement(speed(**changes), speed())


def test_table():
    text = render_speeds([speed(REFERENCE, cpu_s=80.0), speed()])
    assert speed().requests_per_s == 40
    assert speed().requests_per_cpu_s == 20
    assert "20.0x" in text
    assert text.count("0.50000") == 2
    assert render_speeds([speed()]).count("-") > 1


def test_stretches(runs):
    cut = cut_stretches(runs, 3, 10)
    assert cut.shape == (3, 10)
    np.testing.assert_array_equal(cut.arrival_s, [runs.arrival_s[0, i : i + 10] for i in (0, 15, 30)])
    np.testing.assert_array_equal(cut.requests.quality[1], runs.requests.quality[0, 15:25])
    with pytest.raises(InputError, match="only 40 requests"):
        cut_stretches(runs, 3, 41)
    first = first_runs(runs, 1)
    assert first.shape == (1, 40)
    np.testing.assert_array_equal(first.requests.quality, runs.requests.quality[:1])


def test_where_it_ran():
    assert machine().keys() >= {"cores", "processor", "jax", "backend"}
    assert machine()["cores"] >= 1
    assert peak_memory_bytes()["host"] > 2**20
