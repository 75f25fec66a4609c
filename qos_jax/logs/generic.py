"""The generic layout: our own names, those with other units, and the names that several tools share."""

from __future__ import annotations

import numpy as np

from qos_jax.logs.layout import Layout, Texts
from qos_jax.logs.logged import Logged
from qos_jax.logs.refine import CACHED, with_cause, with_lost, with_reuse
from qos_jax.logs.units import SPANS, STAMPS, UNITS

_NAMES = {
    # Of several stamps of the arrival the engine's own clock comes first.
    "queued_ts": "arrival_s",
    "queued_s": "arrival_s",
    "arrival_time": "arrival_s",
    "scheduled_ts": "scheduled_s",
    "first_token_ts": "first_token_s",
    "last_token_ts": "last_token_s",
    "input_toks": "prompt_tokens",
    "input_tokens": "prompt_tokens",
    "output_toks": "output_tokens",
}
# arrival_ms, ttft_us and the like.
_IN_UNITS = {f"{name[:-1]}{unit}:{unit}": name for unit in UNITS if unit != "s" for name in (*STAMPS, *SPANS)}
_NO_ERROR = ("", "none", "null", "false", "0", "[]")


def _refine(logged: Logged, texts: Texts) -> Logged:
    for name, cells in texts.items():
        if name == CACHED:
            continue
        failed = [
            cell.lower() in ("false", "0") if name == "success" else cell.lower() not in _NO_ERROR
            for cell in cells
        ]
        logged = with_cause(logged, np.array(failed, bool), "failed")
    first = next((logged.values[n] for n in ("first_token_s", "ttft_s") if n in logged.values), None)
    if first is None or "output_tokens" not in logged.values:
        return logged
    # A time of a token without a token is a contradiction, which the check of the counts names.
    no_token = ~(logged.values["output_tokens"] > 0) & ~(first > 0)
    return with_reuse(with_lost(with_cause(logged, no_token, "aborted")), texts)


GENERIC = Layout(
    "generic",
    ("arrival_s", "prompt_tokens", "output_tokens"),
    _NAMES | _IN_UNITS,
    ("success", "error", CACHED),
    _refine,
)
