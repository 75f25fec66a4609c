"""Fit an expert's profile (six coefficients) to a request log by replaying it in the simulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.stats import qmc

from qos_jax.errors import input_error
from qos_jax.profiling.coefficients import COEFFICIENTS, CoefficientFit
from qos_jax.profiling.goodness import Goodness, goodness
from qos_jax.profiling.linear_fit import Array, check_identified, free_columns, robust_covariance
from qos_jax.profiling.request_log import RequestLog
from qos_jax.serving.reference import ReferenceProfile, simulate_expert

MIN_REQUESTS = 10
# Of a log-ratio; errors well above it count linearly, so that a server's warm-up cannot rule. Under load a
# TTFT is the sum of all that went before, and so are its errors, which queued requests share; TPOT is local.
TTFT_LOG_SCALE, TPOT_LOG_SCALE = 0.1, 0.02
STEP = 1e-7  # relative, of exact derivatives: so small that no two events of a replay swap
BLOCKS = 20  # of requests in a row, which share their errors: they waited in one queue
SPREAD = (0.1, 2.0)  # of the candidates around the scale guessed from the log, log-uniform
RESTART_SHARE = 1e-3  # of its scale: where a stage starts a coefficient that the last one left at 0
SMALLEST_BASE_SHARE = 1e-3  # of its scale: lower bound of decode_base_s, which must stay above 0


@dataclasses.dataclass(frozen=True)
class ServerLimits:
    """How the server batches, as it was configured; ``kv_capacity_tokens`` as it logged."""

    scheduler: str  # "prefill_first" or "chunked_prefill"
    max_running: int  # requests
    max_batched_tokens: int  # tokens an iteration
    kv_capacity_tokens: int  # tokens


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How widely to search for the coefficients."""

    candidates: int = 24  # profiles tried around the scale of the log, before any is refined
    starts: int = 2  # best candidates that are refined, each to its own minimum
    recoveries: int = 2  # refinements of a log replayed with the fit itself, for the error of the search
    evaluations: int = 5  # most steps of each of the stages of a refinement, each step of C + 1 replays
    # Relative steps of the derivatives, stage by stage. A replay is piecewise smooth, with jumps where two
    # events swap: wide differences average over the jumps, the last are so small that they meet none.
    steps: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, STEP)
    seed: int = 0  # of the candidates


@dataclasses.dataclass(frozen=True, eq=False)
class StartResult:
    """Where one refinement ended."""

    value: npt.NDArray[np.float64]  # [C]
    cost: float  # robust sum of squares, lower is better


@dataclasses.dataclass(frozen=True, eq=False)
class RequestFit:
    """Coefficients fitted to T requests, and the replay with them."""

    fit: CoefficientFit
    starts: tuple[StartResult, ...]  # best first
    ttft_s: npt.NDArray[np.float64]  # [T] replayed with the fit
    latency_s: npt.NDArray[np.float64]  # [T] likewise


def replay_requests(
    log: RequestLog, limits: ServerLimits, value: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return TTFT and latency, [T] seconds each, of a log's requests served by these coefficients [C]."""
    profile = ReferenceProfile(
        max_running=limits.max_running,
        max_waiting=log.num_requests,  # the log holds answered requests: nobody was turned away
        max_batched_tokens=limits.max_batched_tokens,
        kv_capacity_tokens=limits.kv_capacity_tokens,
        **dict(zip(COEFFICIENTS, np.asarray(value, np.float64).tolist(), strict=True)),
    )
    requests = (log.arrival_s, log.prompt_tokens, log.output_tokens)
    run = simulate_expert(profile, *requests, scheduler=limits.scheduler)
    return np.array([o.ttft_s for o in run.outcomes]), np.array([o.latency_s for o in run.outcomes])


def check_requests(
    log: RequestLog,
    limits: ServerLimits,
    fixed: Mapping[str, float],
    rows: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Raise InputError as :func:`fit_requests` does, after a handful of replays, without the fit."""
    count = log.num_requests if rows is None else int(rows.sum())
    if count < MIN_REQUESTS:
        remedy = f"give at least {MIN_REQUESTS}, or a smaller --test_share"
        raise input_error(f"{count} requests to fit are too few", file=log.file, remedy=remedy)
    largest = int(np.max(log.prompt_tokens + log.output_tokens))
    if largest > limits.kv_capacity_tokens:
        fault = f"{limits.kv_capacity_tokens} tokens hold no request of {largest}, which {log.file} has"
        remedy = "give the KV capacity that the server logged"
        raise input_error(fault, field="kv_capacity_tokens", remedy=remedy)
    problem = _Problem(log, limits, fixed, rows, None)
    if problem.free:
        # Where a replay is linear in the coefficients its derivatives show what the log cannot identify.
        check_identified(problem.jacobian(np.ones(len(problem.free)))[1], fixed, log.file, _facts(log))


def fit_requests(
    log: RequestLog,
    limits: ServerLimits,
    fixed: Mapping[str, float],
    search: SearchConfig,
    *,
    rows: npt.NDArray[np.bool_] | None = None,
    finished: Sequence[StartResult] = (),
    on_start: Callable[[StartResult], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> RequestFit:
    """Return the coefficients with which the simulator best replays a log's TTFTs and TPOTs.

    Residuals are the logs of replayed over measured TTFT and TPOT of each request, in a robust loss (soft
    L1). They jump wherever two events of a replay swap, so several starts are refined, with ever narrower
    differences for derivatives, and the best is kept. Two covariances are added up: that of the
    problem linearised at the best, robust to errors that neighbouring requests share, and that of the search
    itself: how far beside the fit its other starts end, and, on a log replayed with the fit, all of them. The
    latter rests on few draws, so a standard error may well be off by half.

    Args:
      log: T requests.
      limits: how the server batches.
      fixed: values of coefficients that are given, by name.
      search: how widely to search.
      rows: [T], the requests whose times are fitted; all by default. The others still load the server.
      finished: results of the first refinements, of an interrupted search with the same arguments.
      on_start: called with the result of each further refinement.
      on_progress: called with the number of replays done, :func:`num_replays` in all at most.

    Raises:
      InputError: too few requests, one the KV cache cannot hold, or times that cannot identify a coefficient
        beside the others, naming it.
    """
    check_requests(log, limits, fixed, rows)
    problem = _Problem(log, limits, fixed, rows, on_progress)
    results = list(finished)
    points = problem.candidates(search) if len(results) < search.starts + search.recoveries else []

    def refine(problem: _Problem, at: int) -> None:
        if len(results) == at:
            results.append(problem.refine(points[at % search.starts], search))
            if on_start is not None:
                on_start(results[at])

    for at in range(search.starts):
        refine(problem, at)
    starts = sorted(results[: search.starts], key=lambda start: start.cost)
    best = starts[0]
    ttft_s, latency_s = replay_requests(log, limits, best.value)
    first_s, last_s = log.arrival_s + ttft_s, log.arrival_s + latency_s
    recovery = problem.on(dataclasses.replace(log, first_token_s=first_s, last_token_s=last_s))
    for at in range(search.starts, search.starts + search.recoveries):
        refine(recovery, at)
    others = [*starts[1:], *results[search.starts :]] or starts
    missed = np.stack([result.value - best.value for result in others])
    covariance = problem.covariance(best.value) + missed.T @ missed / len(missed)
    return RequestFit(CoefficientFit(best.value, covariance, tuple(fixed)), tuple(starts), ttft_s, latency_s)


def num_replays(search: SearchConfig, fixed: Mapping[str, float]) -> int:
    """Return how many replays a search takes at most."""
    per_step = 1 + len(free_columns(fixed))
    refinements = search.starts + search.recoveries
    return search.candidates + refinements * len(search.steps) * search.evaluations * per_step + 2 * per_step


def request_pairs(
    log: RequestLog, ttft_s: npt.NDArray, latency_s: npt.NDArray, rows: npt.NDArray[np.bool_]
) -> dict[str, tuple[npt.NDArray, npt.NDArray, npt.NDArray[np.bool_]]]:
    """Return replayed and measured seconds [T], and which of ``rows`` [T] have one: ttft, tpot, latency."""
    gaps = np.maximum(log.output_tokens - 1, 1)
    several = rows & (log.output_tokens > 1)
    pairs = {
        "ttft": (ttft_s, log.ttft_s, rows),
        "tpot": ((latency_s - ttft_s) / gaps, (log.latency_s - log.ttft_s) / gaps, several),
        "latency": (latency_s, log.latency_s, rows),
    }
    return {name: pair for name, pair in pairs.items() if pair[2].any()}


def request_quality(
    log: RequestLog, ttft_s: npt.NDArray, latency_s: npt.NDArray, rows: npt.NDArray[np.bool_]
) -> dict[str, Goodness]:
    """Return the agreement of replayed with measured times over ``rows`` [T]: ttft, tpot, latency."""
    return {
        name: goodness(replayed[kept], measured[kept])
        for name, (replayed, measured, kept) in request_pairs(log, ttft_s, latency_s, rows).items()
    }


class _Problem:
    """A log's residuals as a function of x [F]: the free coefficients over their guessed scale."""

    def __init__(
        self,
        log: RequestLog,
        limits: ServerLimits,
        fixed: Mapping[str, float],
        rows: npt.NDArray[np.bool_] | None,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self.log, self.limits, self.fixed = log, limits, fixed
        self.free = free_columns(fixed)
        self.scale = guess_scale(log, limits)
        self.rows = np.ones(log.num_requests, bool) if rows is None else rows
        self.several = self.rows & (log.output_tokens > 1)
        self.lower = np.array(
            [SMALLEST_BASE_SHARE if COEFFICIENTS[at] == "decode_base_s" else 0.0 for at in self.free]
        )
        # Which request a residual is of, for blocks.
        self.request = np.concatenate([np.flatnonzero(self.rows), np.flatnonzero(self.several)])
        self._on_progress = on_progress

    def on(self, log: RequestLog) -> _Problem:
        """Return this problem with another log's times, at its scale."""
        other = _Problem(log, self.limits, self.fixed, self.rows, self._on_progress)
        other.scale = self.scale
        return other

    def value(self, x: Array) -> Array:
        """Return the coefficients [C] at x."""
        value = np.array([self.fixed.get(name, 0.0) for name in COEFFICIENTS])
        value[self.free] = x * self.scale[self.free]
        return value

    def residuals(self, x: Array) -> Array:
        """Return the log-ratios of TTFT, then of TPOT, each over its scale."""
        ttft_s, latency_s = replay_requests(self.log, self.limits, self.value(x))
        if self._on_progress is not None:
            self._on_progress(1)
        decode_s = np.maximum(latency_s - ttft_s, 1e-12)[self.several]
        measured_s = (self.log.latency_s - self.log.ttft_s)[self.several]
        ttft = np.log(ttft_s / self.log.ttft_s)[self.rows] / TTFT_LOG_SCALE
        return np.concatenate([ttft, np.log(decode_s / measured_s) / TPOT_LOG_SCALE])

    def jacobian(self, x: Array) -> tuple[Array, Array]:
        """Return the residuals at x and their derivatives by all coefficients [R, C], 0 by fixed ones."""
        at = least_squares(self.residuals, x, bounds=(self.lower, np.inf), diff_step=STEP, max_nfev=1)
        full = np.zeros((len(at.fun), len(COEFFICIENTS)))
        full[:, self.free] = at.jac / self.scale[self.free]
        return at.fun, full

    def covariance(self, value: Array) -> Array:
        """Return the covariance [C, C] of coefficients fitted as ``value`` [C], of the linearised problem."""
        if not self.free:
            return np.zeros((len(value), len(value)))
        residuals, jacobian = self.jacobian(np.maximum((value / self.scale)[self.free], self.lower))
        weight = (1.0 + residuals**2) ** -0.25  # of soft L1, as a root
        fitted = np.flatnonzero(self.rows)
        block = np.searchsorted(fitted, self.request) * min(BLOCKS, len(fitted)) // len(fitted)
        return robust_covariance(jacobian * weight[:, None], residuals * weight, block, self.fixed)

    def candidates(self, search: SearchConfig) -> list[Array]:
        """Return the best ``search.starts`` points of a Latin hypercube, best first."""
        cube = qmc.LatinHypercube(max(len(self.free), 1), rng=search.seed).random(search.candidates)
        low, high = np.log(SPREAD)
        points = np.exp(low + cube * (high - low))[:, : len(self.free)]
        costs = [_cost(self.residuals(point)) for point in points]
        return [points[k] for k in np.argsort(costs, kind="stable")[: search.starts]]

    def refine(self, x: Array, search: SearchConfig) -> StartResult:
        """Return the best point that trust-region searches reach from x, one after the other."""
        if not self.free:
            return StartResult(self.value(x), _cost(self.residuals(x)))
        best = (np.inf, x)
        for step in search.steps:
            end = least_squares(
                self.residuals,
                np.maximum(best[1], RESTART_SHARE),
                bounds=(self.lower, np.inf),
                diff_step=step,
                x_scale="jac",
                loss="soft_l1",
                max_nfev=search.evaluations,
                xtol=1e-4,
                ftol=1e-4,
            )
            if end.cost < best[0]:
                best = (float(end.cost), end.x)
        return StartResult(self.value(best[1]), best[0])


def guess_scale(log: RequestLog, limits: ServerLimits) -> Array:
    """Return the order of magnitude of each coefficient [C], from the log's quickest requests.

    A decode iteration takes about the TPOT of the quickest tenth, of which batch and context may each cause a
    quarter; a prompt token about what the quickest tenth took for one from scheduling to first token.
    """
    several = log.output_tokens > 1
    spans = (log.last_token_s - log.first_token_s)[several]
    batch, context = typical_load(log, limits)
    prompt_s = np.quantile((log.first_token_s - log.start_s) / log.prompt_tokens, 0.1)
    iteration_s = np.quantile(spans / (log.output_tokens[several] - 1), 0.1) if several.any() else prompt_s
    prefill = (iteration_s, prompt_s, prompt_s / np.mean(log.prompt_tokens) / 2)
    return np.array([*prefill, iteration_s, iteration_s / batch / 4, iteration_s / context / 4])


def typical_load(log: RequestLog, limits: ServerLimits) -> tuple[float, float]:
    """Return how many requests decode at once and the sum of their contexts, roughly."""
    makespan_s = log.last_token_s.max() - log.arrival_s[0]
    batch = max(float(np.sum(log.last_token_s - log.first_token_s)) / makespan_s, 1.0)
    context = batch * float(np.mean(log.prompt_tokens + log.output_tokens / 2))
    return batch, min(context, limits.kv_capacity_tokens)


def _cost(residuals: Array) -> float:
    """Return half the soft L1 loss, as scipy's ``cost``."""
    return float(np.sum(np.sqrt(1.0 + residuals**2) - 1.0))


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
