"""Comparison: common random numbers, whatever the threads; stops at once; goes on where it was stopped."""

import dataclasses
import threading

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.evaluation.saved_runs import load_policy_runs, save_policy_run
from qos_jax.policies import policy
from qos_jax.runs.folder import open_run_folder
from qos_jax.serving import ServingConfig
from qos_jax.simulation import policy_runs as compare_module
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases
from qos_jax.simulation.metrics import METRICS, summarise
from qos_jax.simulation.policy_runs import compare, join_runs
from qos_jax.simulation.simulate import simulate
from qos_jax.workload import fleet_path, load_calibration, read_fleet

POLICIES = [policy("random"), policy("shortest_queue")]


@pytest.fixture(scope="module")
def serving():
    fleet = read_fleet(fleet_path("edge6"))
    return ServingConfig(fleet.num_experts, fleet.running_slots, fleet.waiting_slots)


@pytest.fixture(scope="module")
def cases():
    config = CaseConfig(workloads=("poisson", "azure_conv"), loads=(0.4, 0.8), seeds=2, num_requests=40)
    return build_cases(config, read_fleet(fleet_path("edge6")), load_calibration(), 0.07)


@pytest.fixture(scope="module")
def compared(serving, cases):
    return compare(
        serving, POLICIES, cases, with_upper_bound=True, keep_records=[case.name for case in cases]
    )


def assert_equal(a, b):
    """Equal results and records, bit by bit."""
    assert [(r.policy, r.workload, r.arrival_rate_per_s) for r in a.results] == [
        (r.policy, r.workload, r.arrival_rate_per_s) for r in b.results
    ]
    for x, y in zip(a.results, b.results, strict=True):
        assert x.metrics.keys() == y.metrics.keys()
        for name in x.metrics:
            np.testing.assert_array_equal(x.metrics[name], y.metrics[name], err_msg=name)
    assert list(a.records) == list(b.records)
    for case in a.records:
        assert list(a.records[case]) == list(b.records[case])
        for name in a.records[case]:
            for field in dataclasses.fields(a.records[case][name]):
                x, y = (getattr(each.records[case][name], field.name) for each in (a, b))
                if x is None:
                    assert y is None
                    continue
                np.testing.assert_array_equal(x, y)
                assert x.dtype == y.dtype


def test_every_policy_meets_the_same_requests(compared, cases):
    assert [r.policy for r in compared.results] == [
        *["random"] * 3,
        *["shortest_queue"] * 3,
        *["upper_bound"] * 3,
    ]
    assert list(compared.records) == [case.name for case in cases]
    for case in cases:
        records = compared.records[case.name]
        assert list(records) == ["random", "shortest_queue"]
        for mine in records.values():
            np.testing.assert_array_equal(mine.arrival_s, case.runs.arrival_s)
            np.testing.assert_array_equal(mine.prompt_tokens, case.runs.requests.prompt_tokens)
            expert = mine.expert[..., None]
            for name in ("output_tokens", "quality"):
                true = np.take_along_axis(getattr(case.runs.requests, name), expert, -1)[..., 0]
                np.testing.assert_array_equal(getattr(mine, name), true)
        assert not np.array_equal(records["random"].expert, records["shortest_queue"].expert)


def test_metrics_are_those_of_each_case_alone(compared, cases, serving):
    """Cases joined into one program do not mix."""
    for place, case in enumerate(cases):
        result = compared.results[place]
        assert (result.workload, result.arrival_rate_per_s) == case.name
        done = simulate(serving, policy("random"), case.runs)
        alone = summarise(done.records, done.totals, case.runs.profile, case.runs.latency_limit_s)
        for name in METRICS:
            np.testing.assert_allclose(result.metrics[name], alone[name], rtol=1e-6, err_msg=name)


def test_no_policy_exceeds_the_bound(compared):
    bounds = {r.arrival_rate_per_s: r.metrics["average_qos"] for r in compared.results[-3:]}
    for result in compared.results[:-3]:
        assert np.all(result.metrics["average_qos"] <= bounds[result.arrival_rate_per_s] + 1e-6)


def test_threads_make_no_difference(compared, cases, serving):
    seen, done = [], []
    one = compare(
        serving,
        POLICIES,
        cases,
        with_upper_bound=True,
        keep_records=[case.name for case in cases],
        on_progress=seen.append,
        on_policy=lambda run: done.append(run.policy),
        workers=1,
    )
    assert_equal(one, compared)
    assert sum(seen) == 2 * 3 * 2 * 40
    assert done == ["random", "shortest_queue", "upper_bound"]


def test_join_runs(cases):
    joined = join_runs([case.runs for case in cases])
    assert joined.shape == (6, 40)
    np.testing.assert_array_equal(joined.arrival_s[2:4], cases[1].runs.arrival_s)
    np.testing.assert_array_equal(joined.requests.quality[4:], cases[2].runs.requests.quality)
    assert join_runs([cases[0].runs]) is cases[0].runs


def test_a_policy_named_twice(serving, cases):
    with pytest.raises(InputError, match="twice"):
        compare(serving, [POLICIES[0], POLICIES[0]], cases)


def test_an_interrupt_does_not_wait_for_other_policies(serving, cases, monkeypatch):
    """As while another policy compiles; nothing is saved afterwards."""
    release, saved, threads = threading.Event(), [], []

    def fake(config, chosen, runs, **kwargs):
        threads.append(threading.current_thread())
        if chosen.name == "random":
            raise KeyboardInterrupt
        release.wait(30)
        return simulate(config, chosen, runs, **kwargs)

    monkeypatch.setattr(compare_module, "simulate", fake)
    try:
        with pytest.raises(KeyboardInterrupt):
            compare(serving, POLICIES, cases, workers=2, on_policy=saved.append)
        assert not release.is_set()
    finally:
        release.set()
    for thread in threads:
        thread.join(30)
    assert saved == []


def test_a_defect_in_one_policy_is_raised(serving, cases, monkeypatch):
    def fake(config, chosen, runs, **kwargs):
        if chosen.name == "shortest_queue":
            raise RuntimeError("a defect")
        return simulate(config, chosen, runs, **kwargs)

    monkeypatch.setattr(compare_module, "simulate", fake)
    with pytest.raises(RuntimeError, match="a defect"):
        compare(serving, POLICIES, cases, workers=2)


@pytest.fixture
def folder(tmp_path):
    return open_run_folder(tmp_path / "run", {"of": "these cases"})


def saved_comparison(folder, serving, cases, keep):
    compare(
        serving,
        POLICIES,
        cases,
        with_upper_bound=True,
        keep_records=keep,
        on_policy=lambda run: save_policy_run(folder, run),
    )


@pytest.mark.parametrize(
    ("harm", "left"),
    [
        ("nothing", {"random", "shortest_queue", "upper_bound"}),
        ("a line is missing", {"random", "upper_bound"}),
        ("a line is cut", {"random", "upper_bound"}),
        ("a line is no JSON", {"random", "upper_bound"}),
        ("records are missing", {"random", "upper_bound"}),
        ("records are cut", {"random", "upper_bound"}),
        ("no metrics", set()),
    ],
)
def test_what_is_whole_is_kept(folder, serving, cases, compared, harm, left):
    keep = [cases[1].name, cases[2].name]
    saved_comparison(folder, serving, cases, keep)
    metrics, records = folder.file("metrics.jsonl"), folder.file("records/shortest_queue.npz")
    lines = metrics.read_text().splitlines(keepends=True)
    place = max(i for i, line in enumerate(lines) if '"shortest_queue"' in line)
    if harm == "a line is missing":
        metrics.write_text("".join(lines[:place] + lines[place + 1 :]))
    elif harm == "a line is cut":
        metrics.write_text("".join([*lines[:place], *lines[place + 1 :], lines[place][:50]]))
    elif harm == "a line is no JSON":
        metrics.write_text("".join([*lines[:place], "\0\0\0\n", *lines[place + 1 :]]))
    elif harm == "records are missing":
        records.unlink()
    elif harm == "records are cut":
        records.write_bytes(records.read_bytes()[:200])
    elif harm == "no metrics":
        metrics.unlink()
    again = open_run_folder(folder.path, {"of": "these cases"}, resume=True)
    runs = load_policy_runs(again, cases, keep)
    assert runs.keys() == left
    assert {line["policy"] for line in again.read_metrics()} == left

    ran = []
    resumed = compare(
        serving,
        POLICIES,
        cases,
        with_upper_bound=True,
        keep_records=keep,
        finished=runs,
        on_policy=lambda run: (ran.append(run.policy), save_policy_run(again, run)),
    )
    assert set(ran) == {"random", "shortest_queue", "upper_bound"} - left
    kept = {case: records for case, records in compared.records.items() if case in keep}
    assert_equal(resumed, dataclasses.replace(compared, records=kept))
    # And once more there is nothing left to do.
    assert load_policy_runs(again, cases, keep).keys() == {"random", "shortest_queue", "upper_bound"}
    assert len(again.read_metrics()) == 9
