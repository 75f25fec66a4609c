"""Search for the coefficients whose replays meet request logs: rows, robust fits, and their covariance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qos_jax.profiling.linear_fit import free_columns, robust_covariance, solve
from qos_jax.profiling.price_law import AFFINE, PREFILL, PriceLaw
from qos_jax.profiling.replay import Array, Clock, Replay, ServerLimits, replay_requests
from qos_jax.profiling.request_log import RequestLog

PACED = 2  # replays at the pace of the log's tokens, before those that follow first and last tokens alone
POLISHES = 5  # most replays of a refinement without the log's clock
REWEIGHTINGS = 30  # most of one robust fit
CAUCHY_SCALE = 1.4 / 0.6745  # x median of absolute errors, 1.4 standard deviations of normal ones
LEAST_CURVATURE = 0.25  # of the mean weight: below it a loss is too flat to speak of its curvature
SMALLEST_SCALE = 1e-6  # of relative errors, float32 rounding: the robust loss looks no closer
SMALLEST_BASE_SHARE = 1e-3  # of the guessed scale: lower bound of decode_base_s, which must stay above 0
MIN_GAIN, MIN_STEP = 1e-3, 0.05  # of the error, by which a step must lower it; of a step, halved twice if not
SETTLED = 1e-9  # relative change of the times: a search ends
MIN_MEASURED_S = 1e-9  # seconds, of a span to divide by


@dataclasses.dataclass(frozen=True, eq=False)
class StartResult:
    """Where one search ended."""

    value: Array  # [C] seconds per unit
    error: float  # mean relative error of times, the geometric mean over kinds of time and logs
    is_recovery: bool = False  # of a log replayed with the fit


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Relative errors of R times as linear in the coefficients: ``design @ value - target``."""

    design: Array  # [R, C] over the measured seconds
    target: Array  # [R]
    group: npt.NDArray[np.int64]  # [R] log and kind of time (TTFT, or first to last token)
    request: npt.NDArray[np.int64]  # [R] counted over the fitted requests of all logs

    def error(self, value: Array) -> float:
        """Return the geometric mean over groups of the mean absolute relative error."""
        return float(np.exp(np.mean(np.log(self._means(np.abs(self.design @ value - self.target)) + 1e-12))))

    def _means(self, values: Array) -> Array:
        count = np.bincount(self.group)
        return (np.bincount(self.group, values) / np.maximum(count, 1))[count > 0]

    def weights(self, value: Array) -> Array:
        """Return the weights [R] of least squares that minimise a Cauchy loss near ``value`` [C].

        An error counts in units of its group's own scale, and large ones hardly at all, so that neither a
        server's warm-up nor a log in overload rules.
        """
        residuals = np.abs(self.design @ value - self.target)
        scale = np.full(self.group.max() + 1, np.inf)
        for group in np.unique(self.group):
            median = float(np.median(residuals[self.group == group]))
            scale[group] = max(CAUCHY_SCALE * median, SMALLEST_SCALE)
        own = scale[self.group]
        return 1.0 / (own**2 + residuals**2)

    def subset(self, chosen: npt.NDArray[np.bool_]) -> Rows:
        """Return the rows where ``chosen`` [R] is true."""
        return Rows(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


class Problem:
    """Request logs of one server, and how well coefficients replay them."""

    def __init__(
        self,
        logs: Sequence[RequestLog],
        limits: ServerLimits,
        fixed: Mapping[str, float],
        rows: Sequence[npt.NDArray[np.bool_]] | None = None,
        on_progress: Callable[[int], None] | None = None,
        law: PriceLaw = AFFINE,
    ) -> None:
        self.logs, self.limits, self.fixed, self.law = logs, limits, fixed, law
        self.free = free_columns(fixed, law.names)
        self.masks = [np.ones(log.num_requests, bool) for log in logs] if rows is None else rows
        guesses = [guess_scale(log, limits, mask) for log, mask in zip(logs, self.masks, strict=True)]
        self.scale = law.from_affine(np.exp(np.mean(np.log(guesses), axis=0)))
        for name, value in fixed.items():
            self.scale[law.names.index(name)] = value
        self._lower = np.zeros(len(law.names))
        base = len(PREFILL)  # the coefficient that keeps a decode iteration above 0
        if base in self.free:
            self._lower[base] = SMALLEST_BASE_SHARE * self.scale[base]
        self._on_progress = on_progress

    @staticmethod
    def replays(evaluations: int) -> tuple[int, int]:
        """Return how many replays of each log a search and a refinement take at most."""
        return PACED + evaluations + 1, POLISHES + 1

    def rows(self, value: Array, *, follow: bool, paced: bool = False) -> Rows:
        """Return the rows of the replays by ``value`` [C].

        Args:
          value: coefficients, seconds per unit.
          follow: whether the fitted requests of the log set the clock (:class:`Clock`).
          paced: whether they do so at each of their tokens.
        """
        parts: list[tuple[Array, Array, Array, int, npt.NDArray[np.int64]]] = []
        before = 0
        for at, (log, mask) in enumerate(zip(self.logs, self.masks, strict=True)):
            replay = self.replay(log, value, Clock(mask, paced) if follow else None)
            index = before + np.cumsum(mask) - 1
            several = mask & (log.output_tokens > 1)
            spans_s = log.last_token_s - log.first_token_s
            none = np.zeros(log.num_requests)
            for kind, kept, design, offset_s, measured_s in (
                (0, mask, replay.ttft_rows, replay.ttft_offset_s, log.ttft_s),
                (1, several, replay.decode_rows, none, spans_s),
            ):
                scale_s = np.maximum(measured_s[kept], MIN_MEASURED_S)
                target = (measured_s - offset_s)[kept] / scale_s
                parts.append((design[kept] / scale_s[:, None], target, scale_s, 2 * at + kind, index[kept]))
            before += int(mask.sum())
        if self._on_progress is not None:
            self._on_progress(len(self.logs))
        return Rows(
            np.concatenate([p[0] for p in parts]),
            np.concatenate([p[1] for p in parts]),
            np.concatenate([np.full(len(p[1]), p[3]) for p in parts]),
            np.concatenate([p[4] for p in parts]),
        )

    def replay(self, log: RequestLog, value: Array, clock: Clock | None = None) -> Replay:
        """Return the replay of a log by ``value`` [C]."""
        return replay_requests(log, self.limits, value, clock, self.law)

    def fit(self, rows: Rows) -> Array:
        """Return the coefficients [C] of the robust fit to rows: iteratively reweighted least squares."""
        if not self.free:
            return self.scale
        target = rows.target - rows.design @ self._lower
        weight = np.ones(len(target))
        value = self._lower
        for _ in range(REWEIGHTINGS):
            above = solve(rows.design * weight[:, None], target * weight, self.fixed, self.law.names)
            value = self._lower + above
            before, weight = weight, np.sqrt(rows.weights(value))
            if np.allclose(weight, before, rtol=1e-3):
                break
        return value

    def settle(self, value: Array, evaluations: int, *, paced: bool = False) -> StartResult:
        """Return the best coefficients met in fits by turns with replays that follow the logs' clock.

        Args:
          value: [C] to start from.
          evaluations: most replays.
          paced: whether to begin with ``PACED`` replays at the pace of the logs' tokens.
        """
        if paced and self.free:
            for _ in range(PACED):
                value = self.fit(self.rows(value, follow=True, paced=True))
        best = StartResult(value, np.inf)
        for _ in range(evaluations):
            rows = self.rows(value, follow=True)
            error = rows.error(value)
            if error < best.error:
                best = StartResult(value, error)
            new = self.fit(rows)
            if np.max(np.abs(rows.design @ (new - value))) < SETTLED:
                break
            value = new
        return best

    def polish(self, start: StartResult) -> StartResult:
        """Return the best coefficients that damped fits to free replays reach from a start."""
        rows = self.rows(start.value, follow=False)
        best, step = StartResult(start.value, rows.error(start.value)), 1.0
        for _ in range(POLISHES if self.free else 0):
            value = best.value + step * (self.fit(rows) - best.value)
            tried = self.rows(value, follow=False)
            error = tried.error(value)
            if error < (1 - MIN_GAIN) * best.error:
                rows, best, step = tried, StartResult(value, error), 1.0
            else:
                step /= 4
            if step < MIN_STEP:
                break
        return best

    def subset_fit(self, value: Array, share: float, rng: np.random.Generator) -> Array:
        """Return the coefficients [C] fitted to a random share of the rows of the replay by ``value`` [C]."""
        rows = self.rows(value, follow=True)
        chosen = rng.random(len(rows.target)) < share
        chosen[rng.choice(len(chosen), min(len(self.free) + 2, len(chosen)), replace=False)] = True
        return self.fit(rows.subset(chosen))

    def covariance(self, rows: Rows, value: Array, blocks: int, floor: float) -> Array:
        """Return the covariance [C, C] of coefficients ``value`` [C] fitted to these rows.

        Args:
          rows: of the replay by ``value``.
          value: the coefficients.
          blocks: groups of requests in a row that share their errors.
          floor: independent relative error of each time, beside the residuals.
        """
        if not self.free:
            return np.zeros((len(value), len(value)))
        root = np.sqrt(rows.weights(value))[:, None]
        residuals = (rows.design @ value - rows.target) * root[:, 0]
        count = rows.request.max() + 1
        block = rows.request * min(blocks, count) // count
        design, alone, names = rows.design * root, np.arange(len(residuals)), self.law.names
        covariance = robust_covariance(design, residuals, block, self.fixed, names)
        # The loss is less curved than its weights say, since they fall as errors grow.
        share = rows.weights(value) * (rows.design @ value - rows.target) ** 2  # u^2 / (1 + u^2)
        curvature = float(np.mean((1 - share) * (1 - 2 * share)) / np.mean(1 - share))
        covariance = covariance / max(curvature, LEAST_CURVATURE) ** 2
        return covariance + robust_covariance(design, floor * root[:, 0], alone, self.fixed, names)

    def redrawn(self, value: Array, blocks: int, rng: np.random.Generator) -> Problem:
        """Return the problem of logs replayed by ``value`` [C], whose residuals are drawn anew in blocks."""
        logs = []
        for log in self.logs:
            replay = self.replay(log, value)
            spans = (log.last_token_s - log.first_token_s, replay.latency_s - replay.ttft_s)
            ratios = [log.ttft_s / replay.ttft_s, spans[0] / np.maximum(spans[1], MIN_MEASURED_S)]
            length = max(log.num_requests // blocks, 1)
            begins = rng.integers(log.num_requests, size=-(-log.num_requests // length))
            drawn = (begins[:, None] + np.arange(length)).ravel()[: log.num_requests] % log.num_requests
            first_s = log.arrival_s + replay.ttft_s * ratios[0][drawn]
            several = log.output_tokens > 1
            last_s = first_s + np.where(several, spans[1] * np.where(several, ratios[1], 1.0)[drawn], 0.0)
            logs.append(
                dataclasses.replace(log, start_s=log.arrival_s, first_token_s=first_s, last_token_s=last_s)
            )
        return Problem(logs, self.limits, self.fixed, self.masks, self._on_progress, self.law)


def guess_scale(log: RequestLog, limits: ServerLimits, rows: npt.NDArray[np.bool_]) -> Array:
    """Return the order of magnitude of each coefficient [C], from the quickest of ``rows`` [T].

    A decode iteration takes about the TPOT of the quickest tenth, of which batch and context may each cause a
    quarter; a prompt token about what the quickest tenth took for one from scheduling to first token.
    """
    several = rows & (log.output_tokens > 1)
    batch, context = typical_load(log, limits)
    prompt_s = np.quantile(((log.first_token_s - log.start_s) / log.prompt_tokens)[rows], 0.1)
    spans_s = (log.last_token_s - log.first_token_s)[several]
    iteration_s = np.quantile(spans_s / (log.output_tokens[several] - 1), 0.1) if several.any() else prompt_s
    prefill = (iteration_s, prompt_s, prompt_s / np.mean(log.prompt_tokens) / 2)
    return np.array([*prefill, iteration_s, iteration_s / batch / 4, iteration_s / context / 4])


def typical_load(log: RequestLog, limits: ServerLimits) -> tuple[float, float]:
    """Return how many requests decode at once and the sum of their contexts, roughly."""
    makespan_s = log.last_token_s.max() - log.arrival_s[0]
    batch = max(float(np.sum(log.last_token_s - log.first_token_s)) / makespan_s, 1.0)
    context = batch * float(np.mean(log.prompt_tokens + log.output_tokens / 2))
    return batch, min(context, limits.kv_capacity_tokens)
