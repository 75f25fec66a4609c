"""What a comparison leaves in its folder: tables, and plots of the cases whose records were kept."""

import dataclasses

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.evaluation import report
from qos_jax.evaluation.report import best_policy, write_plots, write_tables
from qos_jax.policies import policy
from qos_jax.runs.folder import open_run_folder
from qos_jax.serving import ServiceLimits
from qos_jax.simulation.metrics import METRICS
from qos_jax.simulation.policy_runs import Compared, PolicyResult

CASE = ("poisson", 2.0)


def result(name, qos):
    metrics = {metric: np.zeros(3) for metric in METRICS} | {"average_qos": np.array(qos)}
    return PolicyResult(name, *CASE, 0.1, metrics)


@pytest.fixture
def compared(records):
    names = {"random": 0.2, "clairvoyant_greedy": 0.9, "shortest_queue": 0.5, "upper_bound": 1.0}
    results = [result(name, [qos, qos, qos + 0.1]) for name, qos in names.items()]
    return Compared(results, {CASE: dict.fromkeys(list(names)[:3], records)})


def test_tables(compared, tmp_path):
    folder = open_run_folder(tmp_path / "run", {})
    comparison = write_tables(folder, compared, "random")
    assert comparison.baseline == "random"
    assert len(folder.file("comparison.csv").read_text().splitlines()) == 1 + 4 * len(METRICS)
    assert folder.file("comparison.json").is_file()
    with pytest.raises(InputError, match="'han' was not run"):
        write_tables(folder, compared, "han")


def test_the_best_policy_is_no_oracle(compared):
    policies = [policy(name) for name in ("random", "clairvoyant_greedy", "shortest_queue")]
    best = best_policy(compared, CASE, policies)
    assert best is not None
    assert best.name == "shortest_queue"
    assert best_policy(compared, ("poisson", 3.0), policies) is None
    assert best_policy(compared, CASE, policies[1:2]) is None


def test_the_best_policy_is_no_chosen_run_of_a_router():
    """The best of ten runs is luck; the first stands for the router."""
    runs = [result(name, [qos]) for name, qos in {"ours#1": 0.4, "ours#2": 0.9, "random": 0.3}.items()]
    policies = [dataclasses.replace(policy("random"), name=run.policy) for run in runs]
    best = best_policy(Compared(runs, {}), CASE, policies)
    assert best is not None
    assert best.name == "ours#1"


def test_plots_of_the_kept_cases(compared, tmp_path, monkeypatch):
    class Case:
        workload, arrival_rate_per_s = CASE
        name = CASE

        class runs:  # noqa: N801
            limits = ServiceLimits(
                np.array([0.1]), ttft_limit_s=np.array([2.0]), tpot_limit_s=np.array([0.1])
            )

            class profile:  # noqa: N801
                network_rtt_s = np.array([0.01, 0.02])

    class Other(Case):
        name = ("gamma", 2.0)

    drawn = []
    monkeypatch.setattr(
        report, "_timeline", lambda config, best, case, names: drawn.append(best.name) or figure(names)
    )
    folder = open_run_folder(tmp_path / "run", {})
    policies = [policy("random"), policy("shortest_queue")]
    comparison = write_tables(folder, compared, "random")
    paths = write_plots(folder, compared, comparison, [Case, Other], policies, None, ["a", "b"])
    assert {path.name for path in paths} == {
        "qos_vs_rate.png",
        "latency_cdf_poisson_2.png",
        "ttft_cdf_poisson_2.png",
        "tpot_cdf_poisson_2.png",
        "expert_shares_poisson_2.png",
        "timeline_poisson_2.png",
    }
    assert drawn == ["shortest_queue"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")


def figure(names):
    load = np.ones((3, len(names)))
    return report.plots.timeline(np.arange(3), load, load, load, names, title="who")
