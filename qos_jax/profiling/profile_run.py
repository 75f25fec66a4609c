"""Fit a loaded profile plan and write its run folder: profile.json, profile.csv, plot and fleet row."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qos_jax.errors import input_error
from qos_jax.profiling import (
    CoefficientFit,
    IterationLog,
    RequestFit,
    fit_iterations,
    fit_requests,
    roofline,
)
from qos_jax.profiling.choose_law import choose_law, identified_table
from qos_jax.profiling.coefficients import typical_iterations
from qos_jax.profiling.goodness import Goodness
from qos_jax.profiling.iteration_fit import iteration_design, iteration_quality, iteration_subset
from qos_jax.profiling.prediction import fit_faults, prediction, request_agreement, request_quality
from qos_jax.profiling.price_law import AFFINE, DECODE, PriceLaw
from qos_jax.profiling.profile_files import append_expert, fleet_of_one, knot_lists
from qos_jax.profiling.profile_plan import ProfilePlan, profile_row
from qos_jax.profiling.profile_report import Agreement, predicted_against_measured
from qos_jax.profiling.replay import replay_requests
from qos_jax.profiling.replay_search import StartResult, typical_load
from qos_jax.runs import plot_style
from qos_jax.runs.folder import RunFolder
from qos_jax.workload import write_fleet


def execute_profile(
    plan: ProfilePlan, folder: RunFolder, *, plot: bool, on_progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Fit a profile and write ``profile.json``, ``profile.csv``, with ``plot`` a plot, and the fleet's row.

    Each refined start of a request log is in ``metrics.jsonl`` as soon as it is done, and a run resumed takes
    it from there.

    Returns:
      The content of ``profile.json``.

    Raises:
      InputError: a log that cannot identify a coefficient, naming it.
    """
    fit, report, agreement = _fitted(plan, folder, on_progress)
    config = plan.config
    coefficients = fit.law.affine(fit.value)
    if coefficients["decode_base_s"] <= 0:
        fault = "the log is fitted best by 0, and an iteration takes some time"
        remedy = "add decode iterations of small batches, or give --fix=decode_base_s=VALUE in seconds"
        raise input_error(fault, file=plan.config.iterations, field="decode_base_s", remedy=remedy)
    row = profile_row(config, plan.kv_capacity_tokens, coefficients) | knot_lists(fit.law.knots(fit.value))
    source, notes = _source(plan)
    summary = {
        "expert": config.expert,
        "source": source,
        "notes": notes,
        "row": row,
        "coefficients": {
            name: {
                "value": fit.value[at],
                "standard_error": fit.standard_error[at],
                "ci_low": fit.low[at],
                "ci_high": fit.high[at],
                "confidence": fit.confidence(name),
            }
            for at, name in enumerate(fit.law.names)
        },
        **report,
    }
    comments = [f"{config.expert}: {notes}"]
    if plot:
        figure = predicted_against_measured(agreement)
        plot_style.save_figure(figure, folder.file("plots/predicted_against_measured.png"))
    write_fleet(folder.file("profile.csv"), fleet_of_one(config.expert, row), comments)
    folder.write_json("profile.json", summary)
    if config.append_to is not None:
        append_expert(config.append_to, config.expert, row, comments)
    return summary


_Fitted = tuple[CoefficientFit, dict[str, Any], dict[str, Agreement]]


def _fitted(plan: ProfilePlan, folder: RunFolder, on_progress: Callable[[int], None] | None) -> _Fitted:
    """Return the fit, what ``profile.json`` says of it and what to plot."""
    if plan.log is not None:
        return _fit_iterations(plan, plan.log)
    if plan.requests:
        return _fit_requests(plan, folder, on_progress)
    config = plan.config
    assert config.roofline is not None
    found = roofline(config.roofline, config.max_running, config.max_batched_tokens, plan.kv_capacity_tokens)
    predicted_s = iteration_design(found.grid) @ found.fit.value
    return found.fit, {"quality": _plain(found.quality)}, _by_kind(found.grid, predicted_s, None)


def _fit_iterations(plan: ProfilePlan, log: IterationLog) -> _Fitted:
    found = fit_iterations(log, plan.fixed)
    report: dict[str, Any] = {
        "rows": len(log.duration_s),
        "quality": _plain(found.quality),
        "typical_iterations": typical_iterations(
            found.fit,
            _median(log.batch[~log.is_prefill]),
            _median(log.context_tokens[~log.is_prefill]),
            _median(log.prefill_tokens[log.is_prefill]),
        ),
    }
    held_out = None
    predicted_s = found.predicted_s
    if plan.config.test_share:
        seen = plan.fitted_rows(len(log.duration_s))
        part = fit_iterations(iteration_subset(log, seen), plan.fixed)
        held_out = ~seen
        predicted_s = iteration_design(log) @ part.fit.value
        test_log = iteration_subset(log, held_out)
        report["test"] = {
            "rows": int(held_out.sum()),
            "quality": _plain(iteration_quality(test_log, predicted_s[held_out])),
        }
    return found.fit, report, _by_kind(log, predicted_s, held_out)


def _by_kind(log: IterationLog, predicted_s: np.ndarray, held_out: np.ndarray | None) -> dict[str, Agreement]:
    kinds = {"prefill iteration": log.is_prefill, "decode iteration": ~log.is_prefill}
    return {
        kind: Agreement(predicted_s[rows], log.duration_s[rows], None if held_out is None else held_out[rows])
        for kind, rows in kinds.items()
        if rows.any()
    }


def _fit_requests(plan: ProfilePlan, folder: RunFolder, on_progress: Callable[[int], None] | None) -> _Fitted:
    done = folder.read_metrics()
    logs = plan.requests
    law, errors = _law(plan, on_progress)

    def fit(stage: str, rows: list[np.ndarray]) -> RequestFit:
        return fit_requests(
            logs,
            plan.limits,
            plan.fixed,
            plan.search,
            rows=rows,
            law=law,
            finished=[StartResult(np.array(d["value"]), d["error"]) for d in done if d["stage"] == stage],
            on_start=lambda s: folder.append_metrics({"stage": stage, "value": s.value, "error": s.error}),
            on_progress=on_progress,
        )

    every = [np.ones(log.num_requests, bool) for log in logs]
    found = fit("all", every)
    loads = [(*typical_load(log, plan.limits), float(np.mean(log.prompt_tokens))) for log in logs]
    left_out: Counter[str] = Counter()
    for log in logs:
        left_out.update(log.left_out)
    report: dict[str, Any] = {
        "rows": sum(log.num_requests for log in logs),
        "left_out": dict(left_out),
        "converged": found.fit.converged,
        "decode_law": {"table" if law.batches else "affine": errors},
        "quality": _plain(request_quality(logs, found.replays)),
        "typical_iterations": typical_iterations(found.fit, *np.mean(loads, axis=0).tolist()),
        "starts": [
            {"error": start.error, **dict(zip(law.names, start.value.tolist(), strict=True))}
            for start in found.starts
        ],
    }
    report["faults"] = fit_faults(report["quality"])
    shown, held_out = found, [~rows for rows in every]
    if plan.config.test_share:
        held_out = [~plan.fitted_rows(log.num_requests) for log in logs]
        shown = fit("test", [~rows for rows in held_out])
        report["test"] = {
            "rows": int(sum(rows.sum() for rows in held_out)),
            "coefficients": shown.fit.as_dict(),
            "quality": _plain(request_quality(logs, shown.replays, held_out)),
        }
    if plan.predicted:
        replays = [replay_requests(log, plan.limits, found.fit.value, law=law) for log in plan.predicted]
        report["predicted"] = [
            prediction(log, replay, plan.config.ttft_limit_s, plan.config.tpot_limit_s)
            for log, replay in zip(plan.predicted, replays, strict=True)
        ]
        agreement = request_agreement((*logs, *plan.predicted), (*found.replays, *replays), len(logs))
        return found.fit, report, agreement
    return found.fit, report, request_agreement(logs, shown.replays, len(logs), held_out)


def _law(plan: ProfilePlan, on_progress: Callable[[int], None] | None) -> tuple[PriceLaw, dict[str, float]]:
    """Return the law to fit, and the held-out error of each that was tried."""
    rows = [plan.fitted_rows(log.num_requests) for log in plan.requests]
    if plan.config.decode_law == "affine" or set(plan.fixed) & set(DECODE):
        return AFFINE, {}
    if plan.config.decode_law == "auto":
        return choose_law(plan.requests, plan.limits, rows, on_progress)
    table = identified_table(plan.requests, plan.limits, rows)
    if not table.batches:
        fault = "no two batch sizes of the log can be told apart"
        remedy = "add a log at another load, or give --decode_law=affine"
        raise input_error(fault, file=plan.requests[0].file, field="decode_law", remedy=remedy)
    return table, {}


def _source(plan: ProfilePlan) -> tuple[str, str]:
    """Return the kind of source, and a line on what the numbers rest on."""
    config = plan.config
    if config.roofline is not None:
        r = config.roofline
        return "roofline", (
            f"ROOFLINE, NOT MEASURED: {r.parameters / 1e9:.4g} B parameters x {r.weight_bytes:g} bytes, "
            f"{r.layers} layers, hidden {r.hidden_size}, {r.kv_heads} KV heads of {r.head_dim}; "
            f"{r.bandwidth_gb_per_s:g} GB/s x {r.bandwidth_efficiency:g}, "
            f"{r.tflop_per_s:g} TFLOP/s x {r.compute_efficiency:g}, overhead {r.overhead_s:g} s"
        )
    given = f"; given, not fitted: {', '.join(plan.fixed)}" if plan.fixed else ""
    if plan.log is not None:
        return "iterations", f"fitted to {len(plan.log.duration_s)} iterations of {plan.log.file}{given}"
    files = ", ".join(log.file for log in plan.requests)
    count = sum(log.num_requests for log in plan.requests)
    return "requests", f"fitted to {count} requests of {files} by replay, {config.scheduler}{given}"


def _plain(quality: Mapping[str, Goodness]) -> dict[str, Any]:
    return {name: dataclasses.asdict(value) for name, value in quality.items()}


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else 0.0
