"""Write what a comparison came to: tables as CSV and JSON, plots as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qos_jax.evaluation import plots
from qos_jax.evaluation.compare import Compared
from qos_jax.evaluation.plot_style import save_figure
from qos_jax.evaluation.run_folder import RunFolder
from qos_jax.evaluation.tables import (
    Comparison,
    comparison_table,
    write_comparison_csv,
    write_comparison_json,
)


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
    folder: RunFolder, compared: Compared, expert_names: Sequence[str], latency_limit_s: float
) -> list[Path]:
    """Write the plots under ``plots/`` and return their paths.

    QoS against rate for every workload; for each case whose records were kept, the distribution of
    latency per token and the share of requests of each expert.

    Raises:
      InputError: matplotlib is not installed.
    """
    figures = {"qos_vs_rate": plots.qos_vs_rate(compared.results)}
    for (workload, rate_per_s), records in compared.records.items():
        name = f"{workload}_{rate_per_s:.3g}"
        figures[f"latency_cdf_{name}"] = plots.latency_cdf(records, latency_limit_s)
        figures[f"expert_shares_{name}"] = plots.expert_shares(records, expert_names)
    paths = []
    for name, figure in figures.items():
        path = folder.file(f"plots/{name}.png")
        save_figure(figure, path)
        paths.append(path)
    return paths
