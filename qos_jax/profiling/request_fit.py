"""Fit an expert's profile to request logs of one server by replaying them in the simulator."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qos_jax.errors import input_error
from qos_jax.profiling.coefficients import CoefficientFit
from qos_jax.profiling.linear_fit import check_identified, free_columns
from qos_jax.profiling.price_law import AFFINE, PriceLaw
from qos_jax.profiling.replay import Replay, ServerLimits
from qos_jax.profiling.replay_search import Problem, StartResult
from qos_jax.profiling.request_log import RequestLog

Mask = npt.NDArray[np.bool_]

MIN_REQUESTS = 10
# Of relative errors, below which a replay differs by rounding alone: the simulator's own tolerance
# (serving/README.md, rule 15).
EXACT = 1e-4
AGREED_ERROR = 1.05  # of the least error: a start that ends within it, and whose times ...
AGREED_SHARE = 0.25  # ... differ from the best's by at most this share of the error, found the same minimum
BY_CHANCE = 1.05  # of the least error: errors of starts differ by so much without meaning
POLISHED = 3  # best starts that are refined without the log's clock
SUBSET = 0.1  # of the rows: what a further start is fitted to
RECOVERY_STARTS = 1  # of a recovery, beside the first
BLOCKS = 20  # of requests in a row, which share their errors: they waited in one queue


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How widely to search for the coefficients."""

    starts: int = 12  # searches; fewer once one reproduces the log to rounding
    evaluations: int = 6  # most replays of each search
    recoveries: int = 4  # refits of a log replayed with the fit, for the error of the search; none if exact
    seed: int = 0  # of the starts and recoveries


@dataclasses.dataclass(frozen=True, eq=False)
class RequestFit:
    """Coefficients fitted to request logs, and the replays with them."""

    fit: CoefficientFit
    starts: tuple[StartResult, ...]  # best first
    replays: tuple[Replay, ...]  # of each log


def check_requests(
    logs: Sequence[RequestLog],
    limits: ServerLimits,
    fixed: Mapping[str, float],
    rows: Sequence[Mask] | None = None,
) -> None:
    """Raise InputError as :func:`fit_requests` does, after one replay of each log, without the fit."""
    count = sum(log.num_requests for log in logs) if rows is None else sum(int(r.sum()) for r in rows)
    if count < MIN_REQUESTS:
        remedy = f"give at least {MIN_REQUESTS}, or a smaller --test_share"
        raise input_error(f"{count} requests to fit are too few", file=logs[0].file, remedy=remedy)
    for log in logs:
        check_capacity(log, limits)
    if len(free_columns(fixed)):
        problem = Problem(logs, limits, fixed, rows)
        # What the log's own clock shows of the iterations that each time is a sum of.
        design = problem.rows(problem.scale, follow=True, paced=True).design
        facts = _facts(logs[0]) if len(logs) == 1 else []
        check_identified(design, fixed, ", ".join(log.file for log in logs), facts)


def check_capacity(log: RequestLog, limits: ServerLimits) -> None:
    """Raise InputError if the server could not have held the log's largest request."""
    largest = int(np.max(log.prompt_tokens + log.output_tokens))
    most = limits.request_capacity_tokens
    if largest > most:
        limited = most == limits.context_limit_tokens
        field = "context_limit_tokens" if limited else "kv_capacity_tokens"
        share = "" if limited or most == limits.kv_capacity_tokens else " of a slot (/ max_running)"
        fault = f"{most} tokens{share} hold no request of {largest}, which {log.file} has"
        remedy = f"give the {'context limit' if limited else 'KV capacity'} that the server logged"
        raise input_error(fault, field=field, remedy=remedy)


def fit_requests(
    logs: Sequence[RequestLog],
    limits: ServerLimits,
    fixed: Mapping[str, float],
    search: SearchConfig,
    *,
    rows: Sequence[Mask] | None = None,
    law: PriceLaw = AFFINE,
    finished: Sequence[StartResult] = (),
    on_start: Callable[[StartResult], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> RequestFit:
    """Return the coefficients with which the simulator best replays the TTFTs and TPOTs of some logs.

    As long as no two events of a replay swap, every time is linear in the coefficients (:class:`Replay`), so
    that a robust, non-negative least squares on one replay's rows gives the next coefficients. The first
    search begins from the batches that the log's own clock shows, and needs no guess; further ones begin from
    fits to random subsets of the rows (random sample consensus: Fischler and Bolles, CACM 1981). The best are
    refined by replays that run free of the log's clock.

    The fit has converged if it reproduces the logs to rounding, or if several starts found its minimum. Its
    covariance is that of the linearised problem, robust to errors that neighbouring requests share; unless
    the fit is exact, that of recoveries is added: how far beside the fit the search ends on logs replayed
    with it, with the fit's own residuals drawn anew in blocks.

    Args:
      logs: request logs of one server, each replayed apart; errors count in units of their own log's.
      limits: how the server batches.
      fixed: values of coefficients that are given, by name.
      search: how widely to search.
      rows: of each log [T], the requests whose times are fitted; all by default. The others load the server.
      law: whose coefficients to fit; of a table, one that :func:`choose_law` found identified.
      finished: results of the first searches and recoveries, of an interrupted fit with the same arguments.
      on_start: called with the result of each further one.
      on_progress: called with the number of replays done, :func:`num_replays` in all at most.

    Raises:
      InputError: too few requests, one the KV cache cannot hold, or times that cannot identify a coefficient
        beside the others, naming it.
    """
    check_requests(logs, limits, fixed, rows)
    problem = Problem(logs, limits, fixed, rows, on_progress, law)
    done = list(finished)

    def result(at: int, search_once: Callable[[], StartResult]) -> StartResult:
        if at == len(done):
            done.append(search_once())
            if on_start is not None:
                on_start(done[at])
        return done[at]

    starts: list[StartResult] = []
    for at in range(search.starts if problem.free else 1):
        starts.append(result(at, functools.partial(_start, problem, search, starts)))
        if min(start.error for start in starts) <= EXACT:
            break
    starts = _preferred(starts)
    exact = starts[0].error <= EXACT
    best = _preferred([problem.polish(start) for start in starts[: 1 if exact else POLISHED]])[0]
    if exact and best.error > EXACT:
        best = starts[0]  # right but for a near tie, after which a free replay goes another way
    rows_at_best = problem.rows(best.value, follow=best is starts[0])
    covariance = problem.covariance(rows_at_best, best.value, BLOCKS, EXACT / 10)
    if problem.free and not exact:
        missed = []
        for draw in range(search.recoveries):
            recovery = functools.partial(_recovery, problem, search, best, draw)
            missed.append(result(len(starts) + draw, recovery).value - best.value)
        if missed:
            covariance = covariance + np.stack(missed).T @ np.stack(missed) / len(missed)
    converged = exact or not problem.free or _agreed(problem, starts)
    replays = tuple(problem.replay(log, best.value) for log in logs)
    degrees = min(BLOCKS, int(rows_at_best.request.max()) + 1) - 1
    found = CoefficientFit(best.value, covariance, tuple(fixed), law, converged, degrees)
    return RequestFit(found, tuple(starts), replays)


def _preferred(results: Sequence[StartResult]) -> list[StartResult]:
    """Return results by their errors; the first stays first unless another is better by more than noise.

    The first search begins from the batches that the logs show. One from a random subset of the rows may be
    a little better by chance alone, and then says less of other loads.
    """
    by_error = sorted(results, key=lambda result: result.error)
    first = results[0]
    if by_error[0].error > EXACT and first.error <= BY_CHANCE * by_error[0].error:
        by_error.sort(key=lambda result: result is not first)
    return by_error


def num_replays(search: SearchConfig, num_logs: int = 1) -> int:
    """Return how many replays a fit takes at most."""
    of_start, of_polish = Problem.replays(search.evaluations)
    fit = 1 + search.starts * of_start + POLISHED * of_polish + 2
    return num_logs * (fit + search.recoveries * ((1 + RECOVERY_STARTS) * of_start + of_polish + 1))


def _start(problem: Problem, search: SearchConfig, before: Sequence[StartResult]) -> StartResult:
    """Return the next search's result: the first from the logs' own clock, others from subsets of rows."""
    if not before:
        return problem.settle(problem.scale, search.evaluations, paced=True)
    rng = np.random.default_rng((search.seed, len(before)))
    best = min(before, key=lambda start: start.error)
    return problem.settle(problem.subset_fit(best.value, SUBSET, rng), search.evaluations)


def _recovery(problem: Problem, search: SearchConfig, best: StartResult, draw: int) -> StartResult:
    """Return the search's result on logs replayed with ``best``, its residuals drawn anew in blocks."""
    rng = np.random.default_rng((search.seed, 1, draw))
    again = problem.redrawn(best.value, BLOCKS, rng)
    starts: list[StartResult] = []
    small = dataclasses.replace(search, seed=search.seed + 1 + draw)
    for _ in range(1 + RECOVERY_STARTS):
        starts.append(_start(again, small, starts))
    return again.polish(min(starts, key=lambda start: start.error))


def _agreed(problem: Problem, starts: Sequence[StartResult]) -> bool:
    """Return whether a second start found the minimum of the first; ``starts`` are best first."""
    best = starts[0]
    rows = problem.rows(best.value, follow=True)
    for other in starts[1:]:
        apart = float(np.mean(np.abs(rows.design @ (other.value - best.value))))
        if other.error <= AGREED_ERROR * best.error and apart <= AGREED_SHARE * best.error:
            return True
    return False


def _facts(log: RequestLog) -> list[str]:
    """Return what never varies in the log, in words."""
    facts = []
    if np.all(log.output_tokens == 1):
        facts.append("no request has a second token")
    if np.all(log.arrival_s[1:] >= np.maximum.accumulate(log.last_token_s)[:-1]):
        facts.append("no two requests overlap")
    for name in ("prompt_tokens", "output_tokens"):
        values = getattr(log, name)
        if np.ptp(values) == 0:
            facts.append(f"every request has {values[0]} {name.replace('_', ' ')}")
    return facts
