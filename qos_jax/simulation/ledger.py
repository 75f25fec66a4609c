"""Gather what leaves the simulator, chunk by chunk, into the records of whole runs."""

from __future__ import annotations

import jax
import numpy as np

from qos_jax.routing.fleet_state import Outcome
from qos_jax.simulation.records import COMPLETED, DROPPED, FAILED, RequestRecords, RunTotals
from qos_jax.workload.request_table import RequestTable


class Ledger:
    """The books of R runs of T requests on N experts, on the host; totals are kept in float64.

    Decisions are entered as requests arrive, outcomes as they leave their slots, which may be many chunks
    later; at the end each accepted request must have exactly one.
    """

    def __init__(self, num_runs: int, num_requests: int, num_experts: int) -> None:
        shape = (num_runs, num_requests)
        self._expert = np.zeros(shape, np.int32)
        self._status = np.zeros(shape, np.int8)
        self._ttft_s = np.full(shape, np.nan, np.float32)
        self._latency_s = np.full(shape, np.nan, np.float32)
        self._preemptions = np.zeros(shape, np.int32)
        self._cached_tokens: np.ndarray | None = None  # [R, T] int32, with prefix caching
        self._outcomes = np.zeros(shape, np.int8)
        self._busy_s = np.zeros((num_runs, num_experts))
        self._kv_token_s = np.zeros((num_runs, num_experts))
        self.rounds = np.zeros(num_runs, np.int64)  # [R], of the event loop

    def enter_totals(
        self, busy_s: np.ndarray, kv_token_s: np.ndarray, rounds: np.ndarray, run: slice
    ) -> None:
        """Add the totals of one chunk, [block, N], [block, N] and [block], to those of runs ``run``."""
        runs = run.stop - run.start
        self._busy_s[run] += busy_s[:runs]
        self._kv_token_s[run] += kv_token_s[:runs]
        self.rounds[run] += rounds[:runs]

    def enter_decisions(self, expert: np.ndarray, status: np.ndarray, run: slice, request: slice) -> None:
        """Enter where requests ``request`` of runs ``run`` went; [block, chunk] each, padding behind.

        An accepted request has status ``COMPLETED`` from the start: a run is drained at its end.
        """
        runs, size = run.stop - run.start, request.stop - request.start
        self._expert[run, request] = expert[:runs, :size]
        self._status[run, request] = status[:runs, :size]

    def enter_outcomes(self, outcome: Outcome, run: slice) -> None:
        """Enter outcomes of runs ``run``: leaves [block, ...], ``request_id`` -1 where there is none."""
        runs = run.stop - run.start
        flat = jax.tree.map(lambda x: np.asarray(x)[:runs].reshape(runs, -1), outcome)
        lane, place = np.nonzero(flat.request_id >= 0)
        at = (lane + run.start, flat.request_id[lane, place])
        self._ttft_s[at] = flat.ttft_s[lane, place]
        self._latency_s[at] = flat.latency_s[lane, place]
        self._preemptions[at] = flat.preemptions[lane, place]
        if flat.cached_tokens is not None:
            if self._cached_tokens is None:
                self._cached_tokens = np.zeros_like(self._preemptions)
            self._cached_tokens[at] = flat.cached_tokens[lane, place]
        self._expert[at] = flat.expert[lane, place]  # not the first it went to, if it was routed again
        np.add.at(self._outcomes, at, 1)

    def records(self, arrival_s: np.ndarray, requests: RequestTable) -> RequestRecords:
        """Return the records of all runs, [R, T].

        Args:
          arrival_s: [R, T] float64, seconds.
          requests: leaves [R, T] and [R, T, N].

        Raises:
          RuntimeError: a request is unaccounted for, or came out twice (a defect of the simulator).
        """
        wrong = int(np.sum(self._outcomes != (self._status == COMPLETED)))
        if wrong:
            raise RuntimeError(f"{wrong} requests are unaccounted for: this is a defect, please report it")
        dropped, failed = self._status == DROPPED, self._failed()
        chosen = np.where(dropped, 0, self._expert)[..., None]
        output = np.take_along_axis(np.asarray(requests.output_tokens), chosen, axis=-1)[..., 0]
        quality = np.take_along_axis(np.asarray(requests.quality), chosen, axis=-1)[..., 0]
        return RequestRecords(
            status=np.where(failed, FAILED, self._status),
            expert=np.where(dropped, -1, self._expert),
            arrival_s=arrival_s,
            prompt_tokens=np.asarray(requests.prompt_tokens),
            output_tokens=output,
            ttft_s=np.where(failed, np.nan, self._ttft_s),
            latency_s=np.where(failed, np.nan, self._latency_s),
            preemptions=self._preemptions,
            quality=np.where(dropped, np.nan, quality),
            cached_tokens=self._cached_tokens,
        )

    def totals(self, arrival_s: np.ndarray) -> RunTotals:
        """Return the totals of all runs; a run lasts to its last completion or arrival."""
        latency_s = np.where(self._failed(), 0.0, self._latency_s.astype(np.float64))
        end_s = arrival_s + np.nan_to_num(latency_s)
        return RunTotals(
            busy_s=self._busy_s, kv_token_s=self._kv_token_s, makespan_s=end_s.max(axis=1) - arrival_s[:, 0]
        )

    def _failed(self) -> np.ndarray:
        """Return which requests failed at a server that was down, [R, T] bool."""
        return self._latency_s < 0.0
