"""Results of policies as comparisons take them, by hand."""

import numpy as np

from qos_jax.simulation.policy_runs import PolicyResult


def result(
    policy: str, qos: list[float], rate: float = 5.0, knows: str = "profiles", **metrics: float
) -> PolicyResult:
    """Average QoS by seed, and other metrics that are the same for all seeds."""
    values = {name: np.full(len(qos), value) for name, value in metrics.items()}
    held = {"average_qos": np.array(qos), **values}
    return PolicyResult(policy, "poisson", rate, 0.05, held, knows=knows)


def three_policies() -> list[PolicyResult]:
    """One of them knows nothing, one has an undefined metric."""
    return [
        result("round_robin", [0.5] * 4, knows="nothing", share_within_limit=0.75, qos_per_joule=0.00125),
        result("greedy", [0.625, 0.75, 0.625, 0.5], share_within_limit=0.875, qos_per_joule=np.nan),
        result("worst", [0.25, 0.25, 0.25, 0.25], share_within_limit=0.5, qos_per_joule=0.0005),
    ]


def with_several_runs() -> list[PolicyResult]:
    """Four training runs of one router beside policies that have none."""
    qos = ([0.5, 0.6, 0.5, 0.6], [0.7, 0.8, 0.7, 0.8], [0.6, 0.7, 0.6, 0.7], [0.1, 0.2, 0.1, 0.2])
    runs = [result(f"ours#{run}", list(of_run)) for run, of_run in enumerate(qos, start=1)]
    return [*three_policies(), *runs]
