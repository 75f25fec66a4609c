"""Replay a request log on the reference simulator: times, and the sums of iterations behind each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qos_jax.profiling.price_law import AFFINE, PriceLaw
from qos_jax.profiling.request_log import RequestLog
from qos_jax.serving.reference import IterationWork, ReferenceProfile, simulate_expert
from qos_jax.serving.scheduler import BY_NAME

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class ServerLimits:
    """How the server batches, as it was configured; ``kv_capacity_tokens`` as it logged."""

    scheduler: str  # one of SCHEDULERS
    max_running: int  # requests
    max_batched_tokens: int  # tokens an iteration
    kv_capacity_tokens: int  # tokens
    context_limit_tokens: int | None = None  # most prompt + output tokens of a request; None = no limit

    @property
    def request_capacity_tokens(self) -> int:
        """Most prompt + output tokens that a request of this server has."""
        shares = self.max_running if BY_NAME[self.scheduler].splits_memory else 1
        limit = self.context_limit_tokens
        return min(self.kv_capacity_tokens // shares, self.kv_capacity_tokens if limit is None else limit)


@dataclasses.dataclass(frozen=True)
class Clock:
    """How far a replay follows the log's own times."""

    follow: npt.NDArray[np.bool_]  # [T], the requests whose first and last tokens set the clock
    paced: bool = False  # between them too, as if each request's tokens came at equal distances


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """The times of T requests served by some coefficients, and what they are sums of.

    With theta [C] the coefficients, and as long as no two events swap, TTFT is ``ttft_offset_s + ttft_rows @
    theta`` and the span from first to last token is ``decode_rows @ theta``.
    """

    ttft_s: Array  # [T] seconds
    latency_s: Array  # [T] seconds
    ttft_offset_s: Array  # [T] seconds from the arrival to a start of an iteration that is known; <= 0
    ttft_rows: Array  # [T, C] sums over the iterations from there to the first token
    decode_rows: Array  # [T, C] sums over the iterations from first to last token


def replay_requests(
    log: RequestLog,
    limits: ServerLimits,
    value: npt.ArrayLike,
    clock: Clock | None = None,
    law: PriceLaw = AFFINE,
) -> Replay:
    """Return the replay of a log's requests by the coefficients ``value`` [C].

    With a clock, times are set to the log's own at first and last tokens, so that errors of the coefficients
    neither add up from request to request nor change the batches that later ones meet (multiple shooting:
    Bock, 1983). TTFT is then predicted from the last such instant before the arrival.

    Args:
      log: T requests.
      limits: how the server batches.
      value: [C] coefficients, seconds per unit.
      clock: which of the log's times to follow; none by default.
      law: whose coefficients they are.
    """
    theta = np.asarray(value, np.float64)
    profile = ReferenceProfile(
        max_running=limits.max_running,
        max_waiting=log.num_requests,  # the log holds answered requests: nobody was turned away
        max_batched_tokens=limits.max_batched_tokens,
        kv_capacity_tokens=limits.kv_capacity_tokens,
        context_limit_tokens=limits.context_limit_tokens,
        decode_knots=law.knots(theta),
        **law.affine(theta),
    )
    observer = _Observer(log, clock)
    requests = (log.arrival_s, log.prompt_tokens, log.output_tokens)
    simulate_expert(profile, *requests, scheduler=limits.scheduler, clock=observer)
    works = np.array(observer.works)
    done = np.zeros((len(works) + 1, len(theta)))
    np.cumsum(law.rows(*works.T), axis=0, out=done[1:])
    known_s = np.array(observer.known_s)
    at = np.searchsorted(known_s, log.arrival_s, side="right") - 1
    first, last = np.array(observer.first_at) + 1, np.array(observer.last_at) + 1
    offset_s = known_s[at] - log.arrival_s
    ttft_rows = done[first] - done[np.array(observer.known_at)[at]]
    decode_rows = done[last] - done[first]
    ttft_s = offset_s + ttft_rows @ theta
    return Replay(ttft_s, ttft_s + decode_rows @ theta, offset_s, ttft_rows, decode_rows)


class _Observer:
    """Notes what each iteration works on and which tokens end with it; sets the clock."""

    def __init__(self, log: RequestLog, clock: Clock | None) -> None:
        self.works: list[IterationWork] = []
        # Iterations whose start is known without the coefficients: those of an idle server and those that
        # begin where the clock was set.
        self.known_at: list[int] = []
        self.known_s: list[float] = []
        # Iterations that end with the first and the last token of each request:
        self.first_at, self.last_at = [0] * log.num_requests, [0] * log.num_requests
        self._tokens = [0] * log.num_requests
        self._outputs = log.output_tokens.tolist()
        self._end_s, self._is_set = -np.inf, False
        self._follow = [False] * log.num_requests if clock is None else clock.follow.tolist()
        self._paced = clock is not None and clock.paced
        if clock is not None:
            self._first_s, self._last_s = log.first_token_s.tolist(), log.last_token_s.tolist()
            gaps = np.maximum(log.output_tokens - 1, 1)
            self._tpot_s = ((log.last_token_s - log.first_token_s) / gaps).tolist()

    def __call__(
        self, start_s: float, duration_s: float, work: IterationWork, gained: Sequence[int]
    ) -> float:
        if self._is_set or start_s != self._end_s:
            self.known_at.append(len(self.works))
            self.known_s.append(start_s)
        instants = []
        for request in gained:
            self._tokens[request] += 1
            if self._tokens[request] == 1:
                self.first_at[request] = len(self.works)
                if self._follow[request]:
                    instants.append(self._first_s[request])
            if self._tokens[request] == self._outputs[request]:
                self.last_at[request] = len(self.works)
                if self._follow[request]:
                    instants.append(self._last_s[request])
        self.works.append(work)
        end_s, self._is_set = start_s + duration_s, bool(instants)
        if instants:
            end_s = max(start_s, sorted(instants)[len(instants) // 2])
        elif self._paced:
            paced_s = [
                self._first_s[r] + (self._tokens[r] - 1) * self._tpot_s[r] for r in gained if self._follow[r]
            ]
            end_s = max(start_s, sum(paced_s) / len(paced_s)) if paced_s else end_s
        self._end_s = end_s
        return end_s
