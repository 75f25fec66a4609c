"""Evaluate a router in training on fixed cases, against the baseline on the same requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qos_jax.policies import Policy, policy
from qos_jax.policies.learned import learned_policy
from qos_jax.runs.statistics import Estimate, mean_ci, paired_difference
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import Case, build_cases
from qos_jax.simulation.policy_runs import compare
from qos_jax.training.plan import TrainPlan
from qos_jax.training.train_config import EvaluationConfig
from qos_jax.workload.named import TRACE

BASELINE = "load_aware_greedy"  # the router that training with a residual starts from
LEARNED = "learned"


@dataclasses.dataclass(frozen=True)
class CaseScore:
    """Average QoS of router and baseline on one case, seed by seed."""

    workload: str
    arrival_rate_per_s: float  # requests / s, of the whole fleet
    average_qos: np.ndarray  # [S] of the router
    baseline_qos: np.ndarray  # [S] of the baseline, on the same requests


@dataclasses.dataclass(frozen=True)
class Judgement:
    """An evaluation of the router as it stood after an update."""

    update: int
    scores: tuple[CaseScore, ...]

    @property
    def qos(self) -> Estimate:
        """Average QoS, all cases weighing the same."""
        return mean_ci(np.mean([score.average_qos for score in self.scores], axis=0))

    @property
    def difference(self) -> Estimate:
        """Average QoS less the baseline's, all cases weighing the same."""
        ours = np.mean([score.average_qos for score in self.scores], axis=0)
        return paired_difference(ours, np.mean([score.baseline_qos for score in self.scores], axis=0))


class Judge:
    """The evaluation's cases, and the baseline's results on them, simulated once.

    A router trained in a world is judged, as the baseline is, in the one amid its ranges.
    """

    def __init__(self, plan: TrainPlan) -> None:
        self._plan = plan
        network = plan.config.network
        self._cases = judged_cases(plan, plan.config.evaluation)
        worlds = plan.config.world.middle().worlds(plan.setting.fleet.names)
        self._world = next(iter(worlds.values()), None)  # None = routers see everything
        self._baseline = self._run(policy(BASELINE, allow_drop=network.allow_drop))

    def judge(self, update: int, params: Any) -> Judgement:
        """Return the evaluation of a network's parameters after ``update`` updates."""
        reached = self._run(learned_policy(LEARNED, self._plan.config.network, params))
        rows = zip(self._cases, reached, self._baseline, strict=True)
        scores = (CaseScore(case.workload, case.arrival_rate_per_s, ours, base) for case, ours, base in rows)
        return Judgement(update, tuple(scores))

    def _run(self, router: Policy) -> list[np.ndarray]:
        worlds = {} if self._world is None else {router.name: self._world}
        compared = compare(self._plan.setting.serving, [router], self._cases, workers=1, worlds=worlds)
        return [result.metrics["average_qos"] for result in compared.results]


def judged_cases(plan: TrainPlan, config: EvaluationConfig) -> list[Case]:
    """Return the cases that a run is judged on: from its table's validation rows, if it has a table.

    A trace that it trains on, whole, is one of them.
    """
    setting = plan.setting
    names = ("loads", "arrival_rates", "seeds", "seed", "num_requests")
    same = {name: getattr(config, name) for name in names}
    of_episodes = ("conversation_turns", "open_conversations", "conversation_limit_tokens", "replicas")
    same |= {name: getattr(plan.config.scenario, name) for name in of_episodes}
    workloads = config.workloads if setting.trace is None else (*config.workloads, TRACE)
    cases = CaseConfig(workloads=workloads, table_match="even", **same)  # rows matched as in training
    return build_cases(cases, setting.fleet, plan.held_out, setting.limits, setting.trace)


def judgements(lines: Sequence[Mapping[str, Any]]) -> list[Judgement]:
    """Return the judgements that lines of ``metrics.jsonl`` hold, in their order."""

    def read(score: Mapping[str, Any]) -> CaseScore:
        seeds = {name: np.array(score[name]) for name in ("average_qos", "baseline_qos")}
        return CaseScore(**{**score, **seeds})

    return [Judgement(line["update"], tuple(map(read, line["scores"]))) for line in lines if "scores" in line]
