"""Compare replayed with measured requests: agreement, prediction of another log, warnings of a poor fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qos_jax.profiling.goodness import Goodness, goodness
from qos_jax.profiling.profile_report import Agreement
from qos_jax.profiling.replay import Array, Replay
from qos_jax.profiling.request_log import RequestLog

Mask = npt.NDArray[np.bool_]

TIMES = ("ttft", "tpot", "latency")
SMALL_ERROR = 0.05  # of a mean relative error: where times hardly vary, R2 says nothing
MEAN_OFF = 0.2  # of a mean: a fit whose replay is further off is a poor one


def request_pairs(
    log: RequestLog, replay: Replay, rows: Mask | None = None
) -> dict[str, tuple[Array, Array, Mask]]:
    """Return replayed and measured seconds [T], and which of ``rows`` [T] have one: ttft, tpot, latency."""
    gaps = np.maximum(log.output_tokens - 1, 1)
    kept = np.ones(log.num_requests, bool) if rows is None else rows
    several = kept & (log.output_tokens > 1)
    pairs = {
        "ttft": (replay.ttft_s, log.ttft_s, kept),
        "tpot": ((replay.latency_s - replay.ttft_s) / gaps, (log.latency_s - log.ttft_s) / gaps, several),
        "latency": (replay.latency_s, log.latency_s, kept),
    }
    return {name: pair for name, pair in pairs.items() if pair[2].any()}


def request_quality(
    logs: Sequence[RequestLog], replays: Sequence[Replay], rows: Sequence[Mask] | None = None
) -> dict[str, Goodness]:
    """Return the agreement of replayed with measured times over ``rows`` of each log: ttft, tpot, latency."""
    masks = rows or [np.ones(log.num_requests, bool) for log in logs]
    pairs = [request_pairs(*each) for each in zip(logs, replays, masks, strict=True)]
    quality = {}
    for name in ("ttft", "tpot", "latency"):
        found = [pair[name] for pair in pairs if name in pair]
        if found:
            replayed = np.concatenate([r[kept] for r, _, kept in found])
            quality[name] = goodness(replayed, np.concatenate([m[kept] for _, m, kept in found]))
    return quality


def request_agreement(
    logs: Sequence[RequestLog],
    replays: Sequence[Replay],
    fitted: int,
    held_out: Sequence[Mask] | None = None,
) -> dict[str, Agreement]:
    """Return what to plot by kind of time: replayed and measured, and which rows the fit never saw.

    Args:
      logs: the logs that were fitted, then those that were predicted.
      replays: of each.
      fitted: how many logs were fitted.
      held_out: of each fitted log [T], requests that the fit did not see; none by default.
    """
    unseen = [
        np.full(log.num_requests, at >= fitted) if held_out is None else held_out[at]
        for at, log in enumerate(logs)
    ]
    pairs = [request_pairs(log, replay) for log, replay in zip(logs, replays, strict=True)]
    agreement = {}
    for name in TIMES:
        found = [(*pair[name], rows) for pair, rows in zip(pairs, unseen, strict=True) if name in pair]
        if found:
            rows = np.concatenate([u[kept] for _, _, kept, u in found])
            agreement[name] = Agreement(
                np.concatenate([r[kept] for r, _, kept, _ in found]),
                np.concatenate([m[kept] for _, m, kept, _ in found]),
                rows if rows.any() else None,
            )
    return agreement


def prediction(
    log: RequestLog, replay: Replay, ttft_limit_s: float | None, tpot_limit_s: float | None
) -> dict[str, Any]:
    """Return measured beside predicted statistics of a log that was not fitted, for ``profile.json``.

    Args:
      log: T requests.
      replay: of them, by the fit.
      ttft_limit_s: seconds, report the share of requests within it; None = do not.
      tpot_limit_s: seconds per token, likewise.

    Returns:
      ``file``, ``rows``, and of each kind of time ``measured`` and ``predicted``: ``mean_s``, ``p50_s``,
      ``p95_s``, and with a limit ``share_within``.
    """
    limits = {"ttft": ttft_limit_s, "tpot": tpot_limit_s}
    times = {}
    for name, (replayed, measured, kept) in request_pairs(log, replay).items():
        times[name] = {
            "measured": _statistics(measured[kept], limits.get(name)),
            "predicted": _statistics(replayed[kept], limits.get(name)),
        }
    return {"file": log.file, "rows": log.num_requests, "times": times}


def fit_faults(quality: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return why a fit should not be used, by its own requests, each with what to check.

    Args:
      quality: of each kind of time, the fields of :class:`Goodness`.
    """
    check = (
        "check --max_running, --kv_capacity_tokens, --max_batched_tokens and --scheduler, and that the log "
    )
    check += "holds every request that loaded the server"
    faults = []
    for name, found in quality.items():
        if found["r2"] < 0 and found["mean_relative_error"] > SMALL_ERROR:
            faults.append(f"the fit does not explain {name} (R2 {found['r2']:.2f}): {check}")
        elif abs(found["mean_ratio"] - 1) > MEAN_OFF:
            off = f"{100 * (found['mean_ratio'] - 1):+.0f}%"
            faults.append(f"the fit's mean {name} is {off} off the measured: {check}")
    return faults


def _statistics(times_s: Array, limit_s: float | None) -> dict[str, float]:
    found = {
        "mean_s": float(times_s.mean()),
        "p50_s": float(np.quantile(times_s, 0.5)),
        "p95_s": float(np.quantile(times_s, 0.95)),
    }
    return found if limit_s is None else found | {"share_within": float(np.mean(times_s <= limit_s))}
