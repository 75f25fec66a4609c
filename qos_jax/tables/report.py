"""Report on a fitted table by split: predictions against each expert's mean, and the cost frontier."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from qos_jax.predictors import Predictions, mean_predictions
from qos_jax.runs import plot_style
from qos_jax.runs.folder import RunFolder
from qos_jax.serving.latency import alone_s
from qos_jax.serving.profile import FleetProfile
from qos_jax.tables.answers.rows import TEST, TRAIN
from qos_jax.tables.cost_frontier import (
    STATIC,
    CostFrontier,
    cost_frontier,
    render_frontier,
    write_frontier_csv,
)
from qos_jax.tables.fitted_table import Prepared
from qos_jax.tables.predictor_report import (
    predictor_report,
    render_predictor_report,
    write_predictor_report_csv,
)
from qos_jax.tables.preparation import Preparation, fitted_answers
from qos_jax.workload.named_table import SPLITS


def write_reports(folder: RunFolder, plan: Preparation, prepared: Prepared, *, plot: bool) -> str:
    """Write ``predictor_report_SPLIT.csv``, with a fleet ``cost_frontier_SPLIT.csv``; return those of test.

    Filled answers are not judged: they are missing here, as they were when predictors were fitted.
    """
    texts = []
    for k, name in enumerate(SPLITS):
        rows = plan.split == k
        if not rows.any():
            continue
        report = _report(plan, prepared, rows)
        write_predictor_report_csv(folder.file(f"predictor_report_{name}.csv"), report)
        if k == TEST:
            texts.append(f"predictions of {name} rows:\n{render_predictor_report(report)}")
        if plan.fleet is None:
            continue
        frontier = fleet_frontier(plan, prepared, rows)
        write_frontier_csv(folder.file(f"cost_frontier_{name}.csv"), frontier)
        if k == TEST:
            texts.append(f"{name} rows, busy seconds of {plan.config.fleet}:\n{render_frontier(frontier)}")
            if plot:
                plot_style.save_figure(frontier_figure(frontier), folder.file("plots/cost_frontier.png"))
    return "\n\n".join(texts)


def _report(plan: Preparation, prepared: Prepared, rows: npt.NDArray[np.bool_]) -> Any:
    _, quality, output_tokens, experts = fitted_answers(plan.rows, rows)
    _, known_quality, known_tokens, _ = fitted_answers(plan.rows, plan.split == TRAIN)
    baseline = mean_predictions(plan.config.predictor, known_quality, known_tokens, int(rows.sum()))
    return predictor_report(_rows_of(prepared.predictions, rows), baseline, quality, output_tokens, experts)


def fleet_frontier(plan: Preparation, prepared: Prepared, rows: npt.NDArray[np.bool_]) -> CostFrontier:
    """Return what quality costs on the plan's fleet: busy seconds of each request alone on its expert.

    The router knows the cost of a request of the predicted mean length.
    """
    assert plan.fleet is not None
    log = plan.rows.log
    at = [log.experts.index(name) for name in plan.fleet.names]
    _, quality, _, _ = fitted_answers(plan.rows, rows)
    predictions = _rows_of(prepared.predictions, rows)
    prompt_tokens = log.prompt_tokens[rows]
    cost_s, predicted_cost_s = (
        busy_alone_s(plan.fleet.profile, prompt_tokens, tokens[:, at])
        for tokens in (log.output_tokens[rows], np.maximum(predictions.output_mean_tokens, 1.0))
    )
    return cost_frontier(
        quality[:, at],
        predictions.quality[:, at],
        cost_s,
        plan.fleet.names,
        predicted_cost_s=predicted_cost_s,
        tasks=None if log.task is None else [log.task[k] for k in np.flatnonzero(rows)],
    )


def busy_alone_s(
    profile: FleetProfile, prompt_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Return the busy seconds of each of M requests alone on each of N experts.

    Args:
      profile: leaves [N].
      prompt_tokens: [M].
      output_tokens: [M, N], >= 1.

    Returns:
      [M, N] seconds.
    """
    of_each = jax.vmap(alone_s, (None, 0, 0))
    return np.asarray(
        of_each(profile, jnp.asarray(prompt_tokens, jnp.float32), jnp.asarray(output_tokens, jnp.float32))
    )


def frontier_figure(frontier: CostFrontier) -> Any:
    """Return a figure of mean quality against mean busy seconds per request, a curve per way of routing.

    The points of single experts are marked; a static mixture reaches what lies between any two of them.
    """
    figure = plot_style.new_figure(7.0, 4.8)
    axes = figure.subplots()
    names = list(dict.fromkeys(point.frontier for point in frontier.points))
    for name, style in zip(names, plot_style.expert_styles(names), strict=True):
        points = sorted((point.busy_s, point.quality) for point in frontier.points if point.frontier == name)
        line = "" if name == STATIC else style.dashes
        marker = "o" if name == STATIC else ""
        axes.plot(
            *np.transpose(points), color=style.colour, linestyle=line or "none", marker=marker, label=name
        )
    for point in frontier.points:
        if point.frontier == STATIC:
            axes.annotate(f" {point.expert}", (point.busy_s, point.quality), fontsize=7, va="top")
    plot_style.tidy(axes, "mean busy seconds per request", "mean quality")
    figure.legend(loc="outside lower center", frameon=False, ncols=4)
    return figure


def _rows_of(predictions: Predictions, rows: npt.NDArray[np.bool_]) -> Predictions:
    return dataclasses.replace(
        predictions,
        quality=predictions.quality[rows],
        bucket_probability=predictions.bucket_probability[rows],
    )
