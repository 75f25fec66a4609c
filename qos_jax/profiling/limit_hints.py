"""What request logs show of a server's limits: most requests and tokens held at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qos_jax.profiling.replay import ServerLimits
from qos_jax.profiling.request_log import RequestLog

PREEMPTED = 1.5  # x the capacity: preempted requests hold no tokens, yet the log does not tell them apart
FULL_SHARE = 0.05  # of the log's time, with the most requests decoding and others waiting: that is a limit


def limit_hints(logs: Sequence[RequestLog], limits: ServerLimits) -> list[str]:
    """Return notes on limits that the logs contradict, each with what to give instead."""
    hints = []
    peaks = [_peak(log) for log in logs]
    most = max((peak for peak, _, _ in peaks), default=0)
    tokens = max((held for _, held, _ in peaks), default=0)
    full = any(peak == most and share > FULL_SHARE for peak, _, share in peaks)
    if most > limits.max_running:
        hints.append(f"{most} requests decoded at once, more than max_running: give --max_running={most}")
    elif full and most < limits.max_running:
        hints.append(
            f"at most {most} requests decoded at once, though others waited, and max_running is "
            f"{limits.max_running}: give --max_running={most} if that is the server's limit"
        )
    if tokens > PREEMPTED * limits.kv_capacity_tokens:
        hints.append(
            f"about {tokens} tokens were in work at once, far more than kv_capacity_tokens "
            f"{limits.kv_capacity_tokens}: give --kv_capacity_tokens={tokens} or more"
        )
    return hints


def _peak(log: RequestLog) -> tuple[int, int, float]:
    """Return most requests decoding, most tokens held, and the share of time full with others waiting."""
    several = log.last_token_s > log.first_token_s
    first_s, last_s = np.sort(log.first_token_s[several]), np.sort(log.last_token_s[several])
    instants_s = np.unique(np.concatenate([log.arrival_s, log.first_token_s, log.last_token_s]))

    def until(times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(np.sort(times_s), instants_s, side="right")

    decoding = until(first_s) - until(last_s)
    waiting = until(log.arrival_s) - until(log.first_token_s)
    most = int(decoding.max(initial=0))
    spans_s = np.diff(instants_s, append=instants_s[-1])
    is_full = (decoding == most) & (waiting > 0) & (most > 0)
    share = float(spans_s[is_full].sum() / max(instants_s[-1], 1e-9))
    held = 0
    for at in instants_s[np.argsort(-decoding, kind="stable")[:64]]:
        on = several & (log.first_token_s <= at) & (at < log.last_token_s)
        age = (at - log.first_token_s[on]) / (log.last_token_s - log.first_token_s)[on]
        held = max(held, int(np.sum(log.prompt_tokens[on] + age * log.output_tokens[on])))
    return most, held, share
