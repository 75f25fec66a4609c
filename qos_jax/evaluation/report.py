"""Write what a comparison came to: tables as CSV and JSON, plots as PNG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qos_jax.evaluation import plots
from qos_jax.evaluation.comparison_table import (
    Comparison,
    comparison_table,
    write_comparison_csv,
    write_comparison_json,
)
from qos_jax.evaluation.prefix_plot import prefix_hits
from qos_jax.policies import Policy
from qos_jax.policies.registry import router_of
from qos_jax.runs.folder import RunFolder
from qos_jax.runs.plot_style import save_figure
from qos_jax.serving import ServingConfig
from qos_jax.simulation.cases import Case
from qos_jax.simulation.policy_runs import CaseName, Compared
from qos_jax.simulation.sessions import SessionRuns
from qos_jax.simulation.simulate import Runs, simulate


def write_tables(folder: RunFolder, compared: Compared, baseline: str) -> Comparison:
    """Write ``comparison.csv`` and ``comparison.json`` and return the comparison.

    Raises:
      InputError: ``baseline`` was not run.
    """
    comparison = comparison_table(compared.results, baseline=baseline)
    write_comparison_csv(folder.file("comparison.csv"), comparison)
    write_comparison_json(folder.file("comparison.json"), comparison)
    return comparison


def write_plots(
    folder: RunFolder,
    compared: Compared,
    comparison: Comparison,
    cases: Sequence[Case],
    policies: Sequence[Policy],
    config: ServingConfig,
    expert_names: Sequence[str],
) -> list[Path]:
    """Write the plots under ``plots/`` and return their paths.

    QoS against rate for every workload; for each case whose records were kept, the distribution of
    latency per token, the share of requests of each expert, with prefix caching its hit rate, and, but of
    sessions, a timeline of seed 0 under the best policy that is not an oracle. Of a router of several
    training runs all but the first plot show the first run.

    Raises:
      InputError: matplotlib is not installed.
    """
    figures = {"qos_vs_rate": plots.qos_vs_rate(comparison.rows)}
    for case in cases:
        kept = compared.records.get(case.name)
        if kept is None:
            continue
        records = {router_of(name): kept[name] for name in _first_runs(kept)}
        name = f"{case.workload}_{case.arrival_rate_per_s:.3g}"
        limits = jax.tree.map(lambda limit_s: float(limit_s[0]), case.runs.limits)
        rtt_s = case.runs.profile.network_rtt_s
        curves = plots.limit_cdfs(records, limits, rtt_s)
        figures |= {f"{kind}_{name}": figure for kind, figure in curves.items()}
        figures[f"expert_shares_{name}"] = plots.expert_shares(records, expert_names)
        if any(run.cached_tokens is not None for run in records.values()):
            figures[f"prefix_hits_{name}"] = prefix_hits(records, case.runs.profile, expert_names)
        best = best_policy(compared, case.name, policies)
        if best is not None and not isinstance(case.runs, SessionRuns):
            figures[f"timeline_{name}"] = _timeline(config, best, case, expert_names)
    paths = []
    for name, figure in figures.items():
        path = folder.file(f"plots/{name}.png")
        save_figure(figure, path)
        paths.append(path)
    return paths


def best_policy(compared: Compared, case: CaseName, policies: Sequence[Policy]) -> Policy | None:
    """Return the policy of the highest average QoS on a case, without oracles and later training runs."""
    firsts = _first_runs(policy.name for policy in policies)
    routers = {p.name: p for p in policies if p.name in firsts and not p.is_oracle}
    qos = {
        result.policy: float(np.mean(result.metrics["average_qos"]))
        for result in compared.results
        if result.policy in routers and (result.workload, result.arrival_rate_per_s) == case
    }
    return routers[max(qos, key=lambda name: qos[name])] if qos else None


def _first_runs(names: Iterable[str]) -> list[str]:
    """Return the first run of each router, and the other policies."""
    return list({router_of(name): name for name in reversed(list(names))}.values())[::-1]


def _timeline(config: ServingConfig, policy: Policy, case: Case, expert_names: Sequence[str]) -> Any:
    """The figure of seed 0 of a case, run again with the experts' load looked at before each arrival."""
    runs = case.runs
    assert isinstance(runs, Runs)
    first = runs.take(slice(1))
    load = simulate(config, policy, first, keep_snapshots=True).snapshots
    assert load is not None
    return plots.timeline(
        first.arrival_s[0] - first.arrival_s[0, 0],
        np.asarray(load.running[0]),
        np.asarray(load.waiting[0]),
        np.asarray(load.kv_tokens[0]) / np.asarray(runs.profile.kv_capacity_tokens),
        expert_names,
        title=f"{case.workload}, {case.arrival_rate_per_s:.4g} requests/s, {policy.name}, seed 0",
    )
