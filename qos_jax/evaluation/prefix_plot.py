"""The plot of what prefix caches spare each expert, policy by policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qos_jax.runs import plot_style
from qos_jax.serving import FleetProfile
from qos_jax.simulation.prefix_spared import prefix_spared
from qos_jax.simulation.records import RequestRecords


def prefix_hits(
    records: Mapping[str, RequestRecords], profile: FleetProfile, expert_names: Sequence[str]
) -> Any:
    """Return a figure of each expert's hit rate in tokens and of the prefill that its cache saved.

    A policy that sent an expert nothing has no point there.

    Args:
      records: per policy, of any shape, with prefix caching; all its runs are pooled.
      profile: the fleet, leaves [N].
      expert_names: the N experts' names, by index.

    Returns:
      A ``matplotlib.figure.Figure``, with the errors of :func:`qos_jax.runs.plot_style.new_figure`.
    """
    styles = plot_style.policy_styles(list(records))
    figure, panels = plot_style.new_panels(2, 4.4, 1.2 + 0.45 * len(expert_names), margin_in=2.4, sharey=True)
    rows = np.arange(len(expert_names))
    for index, (policy, run) in enumerate(records.items()):
        spared = {name: values.reshape(-1, rows.size) for name, values in prefix_spared(run, profile).items()}
        prompt, cached = (spared[name].sum(0) for name in ("prompt_tokens", "cached_tokens"))
        rate = np.where(prompt > 0, 100 * cached / np.maximum(prompt, 1), np.nan)
        saved_s = np.where(prompt > 0, spared["prefill_saved_s"].mean(0), np.nan)
        shift = (index + 1) / (len(records) + 1) - 0.5
        for axes, values in zip(panels, (rate, saved_s), strict=True):
            style = styles[policy]
            axes.plot(
                values,
                rows + 0.7 * shift,
                linestyle="",
                color=style.colour,
                marker=style.marker,
                label=policy,
            )
    for axes, label in zip(
        panels, ("prompt tokens found in the cache (%)", "prefill saved (s, mean run)"), strict=True
    ):
        axes.set_yticks(rows, list(expert_names))
        axes.set_xlim(left=0)
        plot_style.tidy(axes, label, "")
    panels[0].invert_yaxis()
    figure.legend(handles=panels[0].get_lines(), loc="outside right center", frameon=False)
    return figure
