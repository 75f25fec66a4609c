"""Choose how decode times depend on the batch, affine or by a table, by the error on requests held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from qos_jax.profiling.linear_fit import unexplained
from qos_jax.profiling.price_law import AFFINE, PREFILL, PriceLaw
from qos_jax.profiling.replay import ServerLimits
from qos_jax.profiling.replay_search import PACED, Problem
from qos_jax.profiling.request_log import RequestLog

Mask = npt.NDArray[np.bool_]

FOLDS = 4  # stretches of requests in a row are dealt out to them in turn
STRETCHES = 5  # of each fold and log
MIN_GAIN, MIN_POINTS = 0.05, 0.005  # of the held-out error, and of the times: a table must save both
EVALUATIONS = 6  # most replays of a fit
CHOICE_REPLAYS = 2 * FOLDS * (PACED + EVALUATIONS + 1) + 4  # of each log, at most
EXACT = 1e-4  # relative error that no law improves on: the simulator's own tolerance


def choose_law(
    logs: Sequence[RequestLog],
    limits: ServerLimits,
    rows: Sequence[Mask] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[PriceLaw, dict[str, float]]:
    """Return the law that predicts requests held out of its fit, and the error of each law tried.

    The table has the powers of two up to the most requests that decode at once, as far as the logs tell
    their prices apart. It is chosen where it saves ``MIN_GAIN`` of the affine error (mean relative error
    of times predicted from the log's last instant before them, :class:`Clock`), and half a point.

    Args:
      logs: request logs of one server.
      limits: how the server batches.
      rows: of each log [T], the requests to judge by; all by default.
      on_progress: called with the number of replays done.
    """
    masks = [np.ones(log.num_requests, bool) for log in logs] if rows is None else list(rows)
    laws = {"affine": AFFINE}
    table = identified_table(logs, limits, masks)
    if table.batches:
        laws["table"] = table
    errors = {}
    for name, law in laws.items():
        held_out = [_held_out_error(logs, limits, masks, law, fold, on_progress) for fold in range(FOLDS)]
        errors[name] = float(np.mean(held_out))
        if errors[name] <= EXACT:
            break
    enough = min((1 - MIN_GAIN) * errors["affine"], errors["affine"] - MIN_POINTS)
    chosen = "table" if errors.get("table", np.inf) <= enough else "affine"
    return laws[chosen], errors


def identified_table(logs: Sequence[RequestLog], limits: ServerLimits, rows: Sequence[Mask]) -> PriceLaw:
    """Return the law with the largest table whose prices the logs tell apart; affine if none does."""
    most = max(most_decoding(log) for log in logs)
    most = min(most, limits.max_running)
    batches = tuple(sorted({*(2**k for k in range(most.bit_length()) if 2**k < most), most}))
    while len(batches) >= 2:
        law = PriceLaw(batches)
        problem = Problem(logs, limits, {}, rows, law=law)
        design = problem.rows(problem.scale, follow=True, paced=True).design
        length = np.linalg.norm(design, axis=0)
        lost = np.flatnonzero(length == 0).tolist() or unexplained(design / np.where(length > 0, length, 1.0))
        of_batch = {(at - len(PREFILL)) % len(batches) for at in lost if at >= len(PREFILL)}
        if not of_batch:
            return law if not lost else AFFINE
        # The first stays: a table begins with one request.
        gone = max(of_batch) or 1
        batches = (*batches[:gone], *batches[gone + 1 :])
    return AFFINE


def most_decoding(log: RequestLog) -> int:
    """Return the most requests of a log between their first and last token at once."""
    several = log.output_tokens > 1
    instants = np.concatenate([log.last_token_s[several], log.first_token_s[several]])
    steps = np.repeat([-1, 1], int(several.sum()))
    return max(int(np.max(np.cumsum(steps[np.argsort(instants, kind="stable")]), initial=0)), 1)


def _held_out_error(
    logs: Sequence[RequestLog],
    limits: ServerLimits,
    masks: Sequence[Mask],
    law: PriceLaw,
    fold: int,
    on_progress: Callable[[int], None] | None,
) -> float:
    held_out = []
    for mask in masks:
        order = np.cumsum(mask) - 1
        stretch = order * FOLDS * STRETCHES // max(int(mask.sum()), 1)
        held_out.append(mask & (stretch % FOLDS == fold))
    seen = [mask & ~out for mask, out in zip(masks, held_out, strict=True)]
    problem = Problem(logs, limits, {}, seen, on_progress, law)
    value = problem.settle(problem.scale, EVALUATIONS, paced=True).value
    return Problem(logs, limits, {}, held_out, on_progress, law).rows(value, follow=True).error(value)
