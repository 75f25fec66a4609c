"""What predictions are worth to a router: the truth most, another row's no more than each expert's mean."""

from __future__ import annotations

import types

import numpy as np
import pytest

from qos_jax.evaluation import comparison
from qos_jax.evaluation.comparison import draw_cases
from qos_jax.policies import policy
from qos_jax.runs.statistics import paired_difference
from qos_jax.serving import ServingConfig
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases
from qos_jax.simulation.policy_runs import compare
from qos_jax.workload import Fleet, NamedTable, RequestTable, measure_length_log_std
from qos_jax.workload.degraded import FITTED, MEAN, PREDICTIONS, SHUFFLED, TRUE, with_predictions

ROWS, SEEDS = 400, 8


def _named() -> NamedTable:
    """Each row has one expert that answers it well, for 60% the first; predictions mostly tell which."""
    rng = np.random.default_rng(0)
    first = rng.random(ROWS) < 0.6
    quality = np.where(np.stack([first, ~first], 1), 0.9, 0.2)
    tokens = rng.integers(5, 40, (ROWS, 2))
    table = RequestTable(
        prompt_tokens=rng.integers(5, 60, ROWS).astype(np.int32),
        quality=quality.astype(np.float32),
        output_tokens=tokens.astype(np.int32),
        predicted_quality=np.clip(quality + rng.normal(0, 0.3, quality.shape), 0, 1).astype(np.float32),
        predicted_output_tokens=(tokens * np.exp(rng.normal(0, 0.3, tokens.shape))).astype(np.float32),
    )
    split = np.repeat(np.int32([0, 2]), ROWS // 2)
    return NamedTable(("ant", "bee"), table, np.asarray(measure_length_log_std(table)), split, "made.npz")


@pytest.fixture(scope="module")
def qos(profile) -> dict[str, np.ndarray]:
    """Average QoS per seed of a greedy router, by predictions, on identical requests and arrivals."""
    fleet = Fleet(("ant", "bee"), profile)
    config = CaseConfig(workloads=("poisson",), loads=(0.2,), seeds=SEEDS, num_requests=150)
    serving = ServingConfig(2, fleet.running_slots, fleet.waiting_slots)
    found = {}
    for kind in PREDICTIONS:
        named = with_predictions(_named(), kind)
        cases = build_cases(config, fleet, named, 0.5, shuffled=kind == SHUFFLED)
        compared = compare(serving, [policy("projected_greedy")], cases, workers=1)
        found[kind] = compared.results[0].metrics["average_qos"]
    return found


def test_a_comparison_shuffles_anew_in_every_run_what_it_calls_shuffled(monkeypatch):
    asked = {}

    def keep(cases, fleet, source, limits, trace, *, shuffled):
        asked[source] = shuffled

    monkeypatch.setattr(comparison, "build_cases", keep)
    sources = {kind: kind for kind in PREDICTIONS}
    setting = types.SimpleNamespace(fleet=None, limits=0.1, trace=None)
    draw_cases(types.SimpleNamespace(cases=None, setting=setting, sources=sources))
    assert asked == {kind: kind == SHUFFLED for kind in PREDICTIONS}


def test_the_truth_is_worth_most(qos: dict[str, np.ndarray]):
    assert paired_difference(qos[TRUE], qos[FITTED]).low > 0


def test_fitted_predictions_beat_the_mean(qos: dict[str, np.ndarray]):
    assert paired_difference(qos[FITTED], qos[MEAN]).low > 0.05


def test_shuffled_predictions_are_worse_than_the_mean(qos: dict[str, np.ndarray]):
    assert paired_difference(qos[SHUFFLED], qos[MEAN]).high < 0
