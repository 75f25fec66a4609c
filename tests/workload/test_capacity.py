"""Capacity against the simulator: below it queues stay short, above it throughput stays about there."""

import dataclasses

import numpy as np
import pytest

from qos_jax.policies import policy
from qos_jax.serving import ServingConfig
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases
from qos_jax.simulation.simulate import simulate
from qos_jax.workload import experts_named, fleet_path, load_calibration, read_fleet, take
from qos_jax.workload.capacity import capacity_per_s
from qos_jax.workload.fleet import ALLOWED

T = 1500


@pytest.fixture(scope="module")
def fleet():
    """Four equal experts with room for long queues."""
    equal = take(read_fleet(fleet_path("edge6")), [0] * 4)
    return dataclasses.replace(equal, profile=equal.profile.replace(max_waiting=np.full(4, 512)))


def run(fleet, load):
    config = CaseConfig(workloads=("poisson",), loads=(load,), seeds=1, num_requests=T)
    (case,) = build_cases(config, fleet, experts_named(load_calibration(), fleet.names), 0.07)
    serving = ServingConfig(4, fleet.running_slots, fleet.waiting_slots)
    return case, simulate(serving, policy("shortest_queue"), case.runs, keep_snapshots=True)


def test_at_60_percent_nothing_is_rejected_and_queues_stay_short(fleet):
    case, result = run(fleet, 0.6)
    assert np.all(result.records.status == 0)
    waiting = result.snapshots.waiting[0].sum(axis=1)
    assert waiting.mean() < 2
    assert waiting.max() < 20
    assert waiting[T // 2 :].mean() < 2 + waiting[: T // 2].mean()
    slots = 4 * fleet.running_slots
    assert 0.2 < result.snapshots.running[0, T // 3 :].sum(axis=1).mean() / slots < 0.8
    assert case.arrival_rate_per_s == pytest.approx(
        0.6 * capacity_per_s(fleet.profile, case.runs.requests).sum(), rel=1e-6
    )


def test_at_150_percent_throughput_saturates_near_it(fleet):
    """Requests completed a second while all arrive, once the batches are full."""
    case, result = run(fleet, 1.5)
    assert result.snapshots.waiting[0, -1].sum() > 50
    end_s = (result.records.arrival_s + result.records.latency_s)[0]
    last_s = case.runs.arrival_s[0, -1]
    steady = (end_s > 0.3 * last_s) & (end_s <= last_s)
    throughput_per_s = steady.sum() / (0.7 * last_s)
    capacity = case.arrival_rate_per_s / 1.5
    assert throughput_per_s == pytest.approx(capacity, rel=0.15)


def test_by_hand(fleet):
    """One slot: prefill, then output - 1 decode iterations at mid-life context."""
    one = fleet.profile.replace(max_running=np.ones(4, np.int32))
    config = CaseConfig(workloads=("poisson",), loads=(0.6,), seeds=1, num_requests=T)
    (case,) = build_cases(config, fleet, experts_named(load_calibration(), fleet.names), 0.07)
    table = case.runs.requests
    prompt, output = np.asarray(table.prompt_tokens, float), np.asarray(table.output_tokens, float)
    p = {name: float(np.asarray(getattr(one, name))[0]) for name in ALLOWED}
    prefill = p["prefill_base_s"] + p["prefill_per_token_s"] * prompt.mean()
    prefill += p["prefill_per_token_sq_s"] * np.mean(prompt**2)
    mean_output = output.mean(axis=(0, 1))
    context = prompt.mean() + mean_output / 2
    decode = p["decode_base_s"] + p["decode_per_seq_s"] + p["decode_per_context_token_s"] * context
    expected = 1 / (prefill + (mean_output - 1) * decode)
    np.testing.assert_allclose(capacity_per_s(one, table), expected, rtol=1e-6)
