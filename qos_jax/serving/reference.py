"""The reference: one expert served iteration by iteration, in plain Python floats.

It is written to be read, not to be fast. The simulator skips over iterations in closed form; this module
steps through every one of them, following the rules of README.md in their own order, so that a
disagreement of the two is settled by reading.

One iteration is: queue the arrivals, let the scheduler plan (preempt, admit, price), let the time pass,
hand out tokens. Only the plan differs between the schedulers. An outage cuts an iteration off and
fails every request that the expert holds or is sent while it lasts. Prefix caches are those of
`reference_cache`, block by block.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from qos_jax.checks import COUNT, check_one_of, check_range
from qos_jax.errors import input_error
from qos_jax.serving.reference_cache import BLOCK_TOKENS, BlockPool, SlotCache, content_ids

if TYPE_CHECKING:
    from qos_jax.serving.profile import FleetProfile

COMPLETED, REJECTED, DROPPED = "completed", "rejected", "dropped"
REJECTED_TOO_LONG, FAILED = "rejected_too_long", "failed"
LLAMA_CPP = "llama_cpp"


@dataclass(frozen=True)
class ReferenceProfile:
    """One expert's limits and iteration times: the fields of ``FleetProfile`` as Python scalars."""

    max_running: int  # requests batched at once, >= 1
    max_waiting: int  # requests queued before rejection, >= 1
    max_batched_tokens: int  # prompt tokens (chunked: all tokens) of one iteration, >= max_running
    kv_capacity_tokens: int  # tokens the KV cache holds
    prefill_base_s: float  # seconds
    prefill_per_token_s: float  # seconds / token
    prefill_per_token_sq_s: float  # seconds / token^2
    decode_base_s: float  # seconds
    decode_per_seq_s: float  # seconds / running request
    decode_per_context_token_s: float  # seconds / context token
    network_rtt_s: float = 0.0  # seconds, added to the E2E latency of each request served
    busy_power_w: float = 0.0  # watts while an iteration runs (not used here)
    idle_power_w: float = 0.0  # watts otherwise (not used here)
    # Decode times by batch size in place of the affine law: (batch, seconds, seconds / context token) each.
    decode_knots: tuple[tuple[float, float, float], ...] = ()
    context_limit_tokens: int | None = None  # most prompt + output tokens of a request; None = no limit

    @classmethod
    def from_fleet(cls, profile: FleetProfile, n: int) -> ReferenceProfile:
        """Return expert ``n`` of a fleet whose leaves are arrays [N].

        Raises:
          InputError: the fleet has no expert ``n``.
        """
        num_experts = np.shape(profile.max_running)[-1]
        if not 0 <= n < num_experts:
            fault = f"no expert {n} in a fleet of {num_experts}"
            raise input_error(fault, remedy=f"give an index from 0 to {num_experts - 1}", field="n")
        names = [f.name for f in fields(cls) if f.name not in ("decode_knots", "context_limit_tokens")]
        numbers = {name: np.asarray(getattr(profile, name))[n].item() for name in names}
        knots = tuple(
            (float(k.batch[n]), float(k.fixed_s[n]), float(k.per_context_token_s[n]))
            for k in profile.decode_knots
        )
        limits = profile.context_limit_tokens
        limit = None if limits is None else int(np.asarray(limits)[n])
        return cls(**numbers, decode_knots=knots, context_limit_tokens=limit)

    def decode_law(self, batch: int) -> tuple[float, float]:
        """Rule 4: return a decode iteration's seconds but for the context, and those per context token."""
        if not self.decode_knots:
            return self.decode_base_s + self.decode_per_seq_s * batch, self.decode_per_context_token_s
        low, high = self.decode_knots[:2]
        for knot in self.decode_knots[2:]:
            if high[0] <= batch:
                low, high = high, knot
        share = (batch - low[0]) / (high[0] - low[0])
        fixed_s = low[1] + share * (high[1] - low[1])
        return fixed_s, low[2] + min(share, 1.0) * (high[2] - low[2])


@dataclass(frozen=True)
class ReferenceOutcome:
    """The outcome of one request."""

    request_id: int  # as given, by default the position in routing order
    # "completed", "rejected" (full queue), "rejected_too_long" (exceeds the KV cache or the context limit),
    # "failed" (outage), or "dropped"
    status: str
    ttft_s: float | None  # seconds from arrival to the first token, at the server; None unless completed
    latency_s: float | None  # seconds from arrival to the last token + network_rtt_s; None likewise
    preemptions: int  # times it lost its KV cache and had to prefill again
    expert: int | None = None  # index of the expert it was routed to; None if dropped, or outside a fleet
    output_tokens: int = 0  # tokens generated, fewer than asked for where the context limit cut it
    cached_tokens: int = 0  # prompt tokens found in the prefix cache when it was first admitted


@dataclass(frozen=True)
class ReferenceRun:
    """The run of one expert over its trace, until everything has completed."""

    outcomes: list[ReferenceOutcome]  # [T] in routing order
    busy_s: float  # seconds, the sum of the iterations' durations
    # Token-seconds: sum of duration x context tokens held at its start, shared ones by each that holds them.
    kv_token_s: float
    # Most context tokens held at the end of an iteration; above the capacity only where prefixes are shared.
    peak_kv_tokens: int
    iterations: int  # number of iterations
    # Seconds: the smallest difference, other than exactly zero, between any arrival, change of pace or end of
    # an outage and any start or end of an iteration or failure; inf if there is none. A float32 simulator may
    # order a pair closer than its own rounding the other way round, so comparisons discard traces where this
    # is tiny.
    closest_tie_s: float


class Outage(NamedTuple):
    """One outage of an expert, and when its requests are seen to fail."""

    start_s: float  # instants, on the clock of the arrivals
    end_s: float  # the expert is up again at this very instant
    failure_s: float  # seconds a request is stuck before it is seen to fail
    detection_s: float  # seconds after which all there are failed

    def fails_s(self, arrival_s: float) -> float:
        """Return the instant at which a request fails that is there from ``arrival_s`` or the start on."""
        noticed_s = max(arrival_s, self.start_s + self.detection_s)
        return min(arrival_s + self.failure_s, noticed_s, self.end_s)


@dataclass
class _Request:
    """The state of one request at an expert."""

    order: int  # position in routing order: arrivals are sorted, so also its position in every queue
    prompt_tokens: int
    output_tokens: int
    generated_tokens: int = 0
    prefill_left_tokens: int = 0  # chunked only, while running: prompt tokens still to process
    first_token_s: float | None = None  # instants, on the clock of the arrivals
    finish_s: float | None = None
    rejected: str | None = None  # REJECTED or REJECTED_TOO_LONG where it was not queued
    fails_s: float | None = None  # instant at which it fails, of an expert that is down
    preemptions: int = 0
    content: Sequence[int] = ()  # identities of its blocks, see `content_ids`
    cached_tokens: int | None = None  # found in the prefix cache when it was first admitted

    @property
    def context_tokens(self) -> int:
        """Return the tokens to prefill when admitted, which are those in the KV cache while running."""
        return self.prompt_tokens + self.generated_tokens


@dataclass
class _Expert:
    """The queues of one expert between two iterations."""

    profile: ReferenceProfile
    # A heap by routing order, so that its head is the earliest arrival and a preempted request returns to its
    # position by arrival; its length is the length of the queue.
    waiting: list[tuple[int, _Request]] = field(default_factory=list)
    running: list[_Request] = field(default_factory=list)
    blocks: BlockPool | None = None  # with prefix caching, but for llama.cpp
    slots: SlotCache | None = None  # with prefix caching, of llama.cpp

    def arrive(self, request: _Request) -> None:
        """Rules 1 and 18: queue a request, its output cut, or reject it, by the queue at this instant."""
        limit = self.profile.context_limit_tokens
        if limit is not None:
            request.output_tokens = min(request.output_tokens, limit - request.prompt_tokens)
        tokens = request.prompt_tokens + request.output_tokens
        never_fits = request.output_tokens < 1 or tokens > self.profile.kv_capacity_tokens
        queue_full = len(self.waiting) >= self.profile.max_waiting
        if never_fits or queue_full:
            request.rejected = REJECTED_TOO_LONG if never_fits else REJECTED
        else:
            heapq.heappush(self.waiting, (request.order, request))

    def held_tokens(self) -> int:
        """Return the context tokens of the running; a partly prefilled request counts its whole prompt."""
        return sum(r.context_tokens for r in self.running)

    def preempt_until_memory_suffices(self) -> None:
        """Rule 4: send the latest arrivals back to wait until each running request could gain one token.

        One request alone always has room: it was rejected at arrival unless prompt + output fit.
        """
        while self._memory_is_short():
            latest = max(self.running, key=lambda r: r.order)
            self.running.remove(latest)
            latest.preemptions += 1
            heapq.heappush(self.waiting, (latest.order, latest))
            if self.blocks is not None:
                self.blocks.release(latest.order)
        if self.blocks is not None:
            for request in self.running:
                self.blocks.grow(request.order, request.context_tokens + 1)
                if request.prefill_left_tokens == 0:
                    self.blocks.enter(request.order, request.content, request.context_tokens)

    def _memory_is_short(self) -> bool:
        if self.blocks is None:
            return self.held_tokens() + len(self.running) > self.profile.kv_capacity_tokens
        missing = (self.blocks.missing_blocks(r.order, r.context_tokens + 1) for r in self.running)
        return sum(missing) > len(self.blocks.free)

    def cached_tokens(self, request: _Request) -> int:
        """Rule 21: return the context tokens of a waiting request that the blocks hold; 0 without them."""
        return 0 if self.blocks is None else self.blocks.hit_tokens(request.content, request.context_tokens)

    def has_room(self, request: _Request, held_tokens: int, cached_tokens: int) -> bool:
        """Rules 2 and 22: return whether a waiting request's context and one token more fit."""
        tokens = request.context_tokens + 1
        if self.blocks is None:
            return held_tokens + tokens <= self.profile.kv_capacity_tokens
        return self.blocks.has_room(request.content, tokens, cached_tokens)

    def admit(self, request: _Request, cached_tokens: int) -> int:
        """Give the first waiting request its memory; return the tokens of its context that are cached."""
        heapq.heappop(self.waiting)
        if self.blocks is not None:
            tokens = request.context_tokens + 1
            self.blocks.admit(request.order, request.content, tokens, cached_tokens)
        if self.slots is not None:
            cached_tokens = self.slots.admit(request.order, request.content, request.prompt_tokens)
        if request.cached_tokens is None:
            request.cached_tokens = cached_tokens
        return cached_tokens

    def computes(self, request: _Request, tokens: int) -> None:
        """Rule 21: the whole blocks among its first ``tokens``, scheduled now, may be hit from now on."""
        if self.blocks is not None:
            self.blocks.enter(request.order, request.content, tokens)

    def release(self, request: _Request) -> None:
        """Rule 23: let go of the memory of a request that has completed; its prefix stays for now."""
        if self.blocks is not None:
            self.blocks.release(request.order)
        if self.slots is not None:
            self.slots.release(request.order, request.context_tokens - 1)

    def fail_until(self, now_s: float) -> None:
        """Rule 17: let go of those that have failed by now."""

        def stays(request: _Request) -> bool:
            return request.fails_s is None or request.fails_s > now_s

        self.running = [r for r in self.running if stays(r)]
        self.waiting = [entry for entry in self.waiting if stays(entry[1])]
        heapq.heapify(self.waiting)

    def go_down(self, outage: Outage, arriving: Iterable[tuple[float, _Request]]) -> None:
        """Rule 17: fail all that the expert holds, and all that arrive in [start, end) of the outage."""
        for request in (*self.running, *(r for _, r in self.waiting)):
            request.fails_s = outage.fails_s(outage.start_s)
        if self.blocks is not None:
            self.blocks = BlockPool(self.blocks.capacity_tokens)
        if self.slots is not None:
            self.slots = SlotCache(self.profile.max_running)
        for arrival_s, request in arriving:
            self.fail_until(arrival_s)
            self.arrive(request)
            if request.rejected is None:
                request.fails_s = outage.fails_s(arrival_s)
        self.fail_until(outage.end_s)


class IterationWork(NamedTuple):
    """What one iteration works on, all that its duration depends on."""

    batch: int  # B, requests that decode in it
    context_tokens: int  # sum of their contexts
    prompt_tokens: int = 0  # T, of the prompts or chunks prefilled in it; 0 = it only decodes
    prompt_tokens_sq: int = 0  # Q, sum over them of (done + chunk)^2 - done^2


def iteration_s(profile: ReferenceProfile, work: IterationWork) -> float:
    """Return the seconds of an iteration: rules 3, 4 and 8."""
    p = profile
    fixed_s, per_context_token_s = p.decode_law(max(work.batch, 1))
    if work.prompt_tokens > 0:
        tokens = work.prompt_tokens + work.batch
        fixed_s = p.prefill_base_s + p.prefill_per_token_s * tokens
        fixed_s += p.prefill_per_token_sq_s * work.prompt_tokens_sq
    return fixed_s + per_context_token_s * work.context_tokens


# Called at each iteration with its start and duration in seconds, its work, and the positions of the requests
# that gain a token at its end; returns that end in seconds.
Clock = Callable[[float, float, IterationWork, list[int]], float]

# A scheduler plans one iteration: it moves requests between the queues and returns the work and the requests
# that gain a token at its end.
_Plan = tuple[IterationWork, list[_Request]]


def _decode_work(decoding: Sequence[_Request]) -> IterationWork:
    return IterationWork(len(decoding), sum(r.context_tokens for r in decoding))


def _plan_prefill_first(expert: _Expert) -> _Plan:
    """Apply rules 2 to 4: prompts go first and alone; the running wait for them."""
    p = expert.profile
    admitted: list[_Request] = []
    held = expert.held_tokens()
    prefill_tokens, squares = 0, 0
    while expert.waiting:
        _, head = expert.waiting[0]
        c = head.context_tokens
        cached = expert.cached_tokens(head)
        slot = len(expert.running) + len(admitted) + 1 <= p.max_running
        memory = expert.has_room(head, held, cached)
        # A prompt longer than the budget would wait for ever, so the first one is always within it.
        budget = not admitted or prefill_tokens + c - cached <= p.max_batched_tokens
        if not (slot and memory and budget):
            break
        cached = expert.admit(head, cached)
        expert.computes(head, c)
        admitted.append(head)
        held += c + 1
        prefill_tokens += c - cached
        squares += c**2 - cached**2

    if admitted:
        expert.running += admitted
        return IterationWork(0, 0, prefill_tokens, squares), admitted

    expert.preempt_until_memory_suffices()
    return _decode_work(expert.running), list(expert.running)


def _plan_chunked_prefill(expert: _Expert, shares_memory: bool = True) -> _Plan:
    """Apply rules 6 to 8: decoding and chunks of prompts share every iteration's token budget."""
    p = expert.profile
    if shares_memory:
        expert.preempt_until_memory_suffices()
    decoding = [r for r in expert.running if r.prefill_left_tokens == 0]
    prefilling = [r for r in expert.running if r.prefill_left_tokens > 0]  # at most one
    # Each of the running may gain a token in the very iteration that admits a newcomer.
    held = expert.held_tokens() + len(expert.running)
    budget = p.max_batched_tokens - len(decoding)
    prompt_tokens = 0  # T
    squares = 0  # Q
    gaining = list(decoding)

    def process_chunk(request: _Request) -> None:
        nonlocal budget, prompt_tokens, squares
        chunk = min(request.prefill_left_tokens, budget)
        done = request.context_tokens - request.prefill_left_tokens
        budget -= chunk
        prompt_tokens += chunk
        squares += (done + chunk) ** 2 - done**2
        request.prefill_left_tokens -= chunk
        expert.computes(request, done + chunk)
        if request.prefill_left_tokens == 0:
            gaining.append(request)

    for request in prefilling:
        process_chunk(request)
    while expert.waiting and budget > 0:
        _, head = expert.waiting[0]
        c = head.context_tokens
        cached = expert.cached_tokens(head)
        slot = len(expert.running) + 1 <= p.max_running
        memory = not shares_memory or expert.has_room(head, held, cached)
        if not (slot and memory):
            break
        # All that is not cached: whatever else was prefilled before a preemption is lost.
        head.prefill_left_tokens = c - expert.admit(head, cached)
        expert.running.append(head)
        held += c + 1
        process_chunk(head)

    return _decode_work(decoding)._replace(prompt_tokens=prompt_tokens, prompt_tokens_sq=squares), gaining


def _plan_llama_cpp(expert: _Expert) -> _Plan:
    """Apply rule 19: chunks as in rules 7 and 8, and no test of memory, since each slot has its own."""
    return _plan_chunked_prefill(expert, shares_memory=False)


_SCHEDULERS: dict[str, Callable[[_Expert], _Plan]] = {
    "prefill_first": _plan_prefill_first,
    "chunked_prefill": _plan_chunked_prefill,
    LLAMA_CPP: _plan_llama_cpp,
}


def simulate_expert(
    profile: ReferenceProfile,
    arrival_s: ArrayLike,
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    *,
    request_id: Iterable[int] | None = None,
    scheduler: str = "prefill_first",
    content: Sequence[Sequence[int]] | None = None,
    clock: Clock | None = None,
    pace: Sequence[tuple[float, float]] = (),
    outages: Sequence[tuple[float, float]] = (),
    failure_delay_s: float = np.inf,
    detection_delay_s: float = np.inf,
) -> ReferenceRun:
    """Serve a trace on one expert until every request has completed, failed or was rejected.

    Args:
      profile: the expert.
      arrival_s: [T] seconds, never decreasing; simultaneous requests are in routing order.
      prompt_tokens: [T] integers, at least 1.
      output_tokens: [T] integers, at least 1.
      request_id: [T] names for the outcomes; 0 .. T-1 if None.
      scheduler: "prefill_first" (vLLM v0, the paper's), "chunked_prefill" (vLLM v1) or "llama_cpp".
      content: [T] identities of each request's blocks (:func:`content_ids`), of ``BLOCK_TOKENS`` tokens, or
        of one under "llama_cpp"; None = no prefix caching.
      clock: gives the end of each iteration, to observe them or to set them right; start + duration if None.
      pace: (instant in seconds, factor) by rising instants: an iteration takes its duration times the factor
        in force at its start, 1 before the first.
      outages: (start, end) in seconds, one after the other; an end of inf is never.
      failure_delay_s: seconds from the later of its arrival and an outage's start until a request fails.
      detection_delay_s: seconds from an outage's start until all requests there have failed.

    Returns:
      The outcomes in routing order, with the expert's totals.

    Raises:
      InputError: an unknown scheduler, unsorted arrivals, a length below 1, or impossible limits.

    Source: rules 1 to 8 and 16 to 24 of README.md; vLLM (Kwon et al., SOSP 2023) and, for chunks,
    Sarathi-Serve (Agrawal et al., OSDI 2024).
    """
    _check_limits(profile)
    _check_faults(pace, outages)
    check_one_of("scheduler", scheduler, _SCHEDULERS)
    plan = _SCHEDULERS[scheduler]
    arrivals, prompts, outputs = _check_trace(arrival_s, prompt_tokens, output_tokens)
    requests = [_Request(i, p, o) for i, (p, o) in enumerate(zip(prompts, outputs, strict=True))]
    ids = list(range(len(requests))) if request_id is None else [int(i) for i in request_id]
    if len(ids) != len(requests):
        raise input_error(
            f"{len(ids)} ids for {len(requests)} requests", remedy="give one each", field="request_id"
        )

    if scheduler == LLAMA_CPP:  # rule 19: the KV cache is divided among the slots
        share = profile.kv_capacity_tokens // profile.max_running
        given = profile.context_limit_tokens
        profile = replace(profile, context_limit_tokens=share if given is None else min(given, share))
    expert = _with_cache(profile, scheduler, requests, content)
    to_come = [Outage(start, end, failure_delay_s, detection_delay_s) for start, end in outages]
    changes_s = [from_s for from_s, _ in pace]
    factors = [1.0, *(factor for _, factor in pace)]
    now_s = -np.inf
    arrived = 0
    iterations, busy_s, kv_token_s, peak_kv_tokens = 0, 0.0, 0.0, 0
    boundaries_s: list[float] = []

    while arrived < len(requests) or expert.waiting or expert.running:
        # An idle expert sleeps until the next arrival (which may already lie behind: it came during the
        # iteration that has just ended).
        if not expert.waiting and not expert.running:
            now_s = max(now_s, arrivals[arrived])
        if to_come and to_come[0].start_s <= now_s:
            outage = to_come.pop(0)
            while arrived < len(requests) and arrivals[arrived] < outage.start_s:
                expert.arrive(requests[arrived])
                arrived += 1
            until = bisect.bisect_left(arrivals, outage.end_s)
            expert.go_down(outage, zip(arrivals[arrived:until], requests[arrived:until], strict=True))
            arrived = max(arrived, until)
            now_s = max(now_s, outage.end_s)
            continue
        # All that arrived up to and including this instant. Those that came during the last iteration are
        # judged only here, but by the same queue: between two starts nothing but arrivals changes it.
        while arrived < len(requests) and arrivals[arrived] <= now_s:
            expert.arrive(requests[arrived])
            arrived += 1
        if not expert.waiting and not expert.running:
            continue  # every one of them was rejected

        work, gaining = plan(expert)
        duration_s = iteration_s(profile, work) * factors[bisect.bisect_right(changes_s, now_s)]
        iterations += 1
        kv_token_s += duration_s * expert.held_tokens()
        start_s = now_s
        if clock is None:
            now_s += duration_s
        else:
            now_s = clock(now_s, duration_s, work, [r.order for r in gaining])
        boundaries_s += [start_s, now_s]
        if to_come and to_come[0].start_s < now_s:
            now_s = to_come[0].start_s  # cut off: nobody gains a token
            busy_s += now_s - start_s
            continue
        busy_s += duration_s

        for request in gaining:
            request.generated_tokens += 1
            # A preempted request keeps its tokens, and with them the instant of its first.
            if request.first_token_s is None:
                request.first_token_s = now_s
            if request.generated_tokens == request.output_tokens:
                request.finish_s = now_s
                expert.release(request)
        peak_kv_tokens = max(peak_kv_tokens, expert.held_tokens())
        expert.running = [r for r in expert.running if r.finish_s is None]

    return ReferenceRun(
        outcomes=[
            _outcome(i, request, arrival, profile.network_rtt_s)
            for i, request, arrival in zip(ids, requests, arrivals, strict=True)
        ],
        busy_s=busy_s,
        kv_token_s=kv_token_s,
        peak_kv_tokens=peak_kv_tokens,
        iterations=iterations,
        closest_tie_s=_closest_tie_s(
            [*arrivals, *changes_s, *(instant for outage in outages for instant in outage)],
            sorted([*boundaries_s, *(r.fails_s for r in requests if r.fails_s is not None)]),
        ),
    )


def simulate_fleet(
    profile: FleetProfile,
    arrival_s: ArrayLike,
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    expert: ArrayLike,
    scheduler: str = "prefill_first",
    *,
    prefix_group: ArrayLike | None = None,
    prefix_tokens: ArrayLike | None = None,
    content: Sequence[Sequence[int]] | None = None,
    pace: Sequence[Sequence[tuple[float, float]]] | None = None,
    outages: Sequence[Sequence[tuple[float, float]]] | None = None,
    failure_delay_s: float = np.inf,
    detection_delay_s: float = np.inf,
) -> tuple[list[ReferenceOutcome], list[ReferenceRun]]:
    """Serve a routed trace on a fleet: each expert serves its own requests, independent of the others.

    Args:
      profile: the fleet, leaves [N].
      arrival_s: [T] seconds, never decreasing.
      prompt_tokens: [T] integers.
      output_tokens: [T, N] integers, the length of the answer that each expert would give.
      expert: [T] integers in 0 .. N-1, or -1 where the router dropped the request.
      scheduler: as in :func:`simulate_expert`, for every expert.
      prefix_group: [T] integers, below 0 = none; None = no prefix caching (rule 20).
      prefix_tokens: [T] tokens that a request shares with every earlier one of its group.
      content: [T], as in :func:`simulate_expert`, in place of both.
      pace: [N], as in :func:`simulate_expert` for each expert; None = each at its profile.
      outages: [N], likewise; None = none.
      failure_delay_s: as in :func:`simulate_expert`, for every expert.
      detection_delay_s: likewise.

    Returns:
      The outcomes [T] in request order, ``request_id`` being 0 .. T-1, and the runs [N].

    Raises:
      InputError: as :func:`simulate_expert`; shapes that disagree; an index that is no expert.
    """
    num_experts = np.shape(profile.max_running)[-1]
    arrivals, prompts = np.asarray(arrival_s, np.float64), np.asarray(prompt_tokens)
    outputs, chosen = np.asarray(output_tokens), np.asarray(expert)
    num = len(chosen)
    if not arrivals.shape == prompts.shape == (num,) or outputs.shape != (num, num_experts):
        fault = f"shapes {arrivals.shape}, {prompts.shape}, {outputs.shape} and {chosen.shape} disagree"
        remedy = "give arrival_s [T], prompt_tokens [T], output_tokens [T, N] and expert [T]"
        raise input_error(fault, remedy=remedy)
    if np.any((chosen < -1) | (chosen >= num_experts)):
        fault = f"no expert {chosen.min()} or no expert {chosen.max()}"
        remedy = f"use 0 .. {num_experts - 1}, or -1 for a dropped request"
        raise input_error(fault, remedy=remedy, field="expert")
    # Checked here too, since the share of one expert may be sorted where the whole is not.
    _check_sorted(arrivals)

    if prefix_group is not None and prefix_tokens is not None:
        total = prompts + outputs.max(axis=1)
        block = 1 if scheduler == LLAMA_CPP else BLOCK_TOKENS
        content = content_ids(prefix_group, prefix_tokens, total, block)
    outcomes = [ReferenceOutcome(i, DROPPED, None, None, 0) for i in range(num)]
    runs = []
    for n in range(num_experts):
        (mine,) = np.nonzero(chosen == n)
        run = simulate_expert(
            ReferenceProfile.from_fleet(profile, n),
            arrivals[mine],
            prompts[mine],
            outputs[mine, n],
            request_id=mine.tolist(),
            scheduler=scheduler,
            content=None if content is None else [content[i] for i in mine.tolist()],
            pace=() if pace is None else pace[n],
            outages=() if outages is None else outages[n],
            failure_delay_s=failure_delay_s,
            detection_delay_s=detection_delay_s,
        )
        run = replace(run, outcomes=[replace(o, expert=n) for o in run.outcomes])
        for outcome in run.outcomes:
            outcomes[outcome.request_id] = outcome
        runs.append(run)
    return outcomes, runs


def _with_cache(
    profile: ReferenceProfile,
    scheduler: str,
    requests: Sequence[_Request],
    content: Sequence[Sequence[int]] | None,
) -> _Expert:
    """Return an idle expert; with content, its requests have it and it has the cache of its scheduler."""
    if content is None:
        return _Expert(profile)
    for request, ids in zip(requests, content, strict=True):
        request.content = ids
    if scheduler == LLAMA_CPP:
        return _Expert(profile, slots=SlotCache(profile.max_running))
    blocks = BlockPool(profile.kv_capacity_tokens)
    return _Expert(replace(profile, kv_capacity_tokens=blocks.whole_tokens), blocks=blocks)


def _outcome(request_id: int, request: _Request, arrival_s: float, network_rtt_s: float) -> ReferenceOutcome:
    if request.rejected is not None:
        return ReferenceOutcome(request_id, request.rejected, None, None, 0)
    if request.fails_s is not None:
        return ReferenceOutcome(request_id, FAILED, None, None, request.preemptions)
    if request.first_token_s is None or request.finish_s is None:
        raise AssertionError(f"request {request_id} was neither rejected nor served")
    return ReferenceOutcome(
        request_id,
        COMPLETED,
        ttft_s=request.first_token_s - arrival_s,
        latency_s=request.finish_s - arrival_s + network_rtt_s,
        preemptions=request.preemptions,
        output_tokens=request.generated_tokens,
        cached_tokens=request.cached_tokens or 0,
    )


def _closest_tie_s(instants: Sequence[float], boundaries: Sequence[float]) -> float:
    """Return the least non-zero seconds between any finite instant and any boundary (sorted); inf if none."""
    arrivals = np.array([instant for instant in instants if np.isfinite(instant)])
    padded = np.concatenate([[-np.inf], boundaries, [np.inf]])
    before = padded[np.searchsorted(padded, arrivals, side="left") - 1]  # the last one strictly before
    after = padded[np.searchsorted(padded, arrivals, side="right")]  # the first one strictly after
    return float(min(np.min(arrivals - before, initial=np.inf), np.min(after - arrivals, initial=np.inf)))


def _check_limits(profile: ReferenceProfile) -> None:
    check_range(profile, ("max_running", "max_waiting"), COUNT)
    if profile.max_batched_tokens < profile.max_running:
        fault = f"{profile.max_batched_tokens} is below max_running {profile.max_running}"
        remedy = "raise max_batched_tokens or lower max_running"
        raise input_error(fault, remedy=remedy, field="max_batched_tokens")


def _check_faults(pace: Sequence[tuple[float, float]], outages: Sequence[tuple[float, float]]) -> None:
    if any(factor <= 0.0 or not np.isfinite(factor) for _, factor in pace):
        raise input_error("a factor that is not above 0 and finite", remedy="correct it", field="pace")
    if any(later < earlier for (earlier, _), (later, _) in itertools.pairwise(pace)):
        raise input_error("instants that fall", remedy="sort the changes by instant", field="pace")
    instants = [instant for outage in outages for instant in outage]
    if any(later < earlier for earlier, later in itertools.pairwise(instants)):
        fault = "an outage that ends before it starts, or starts before the one it follows has ended"
        raise input_error(fault, remedy="give (start, end) one after the other", field="outages")


def _check_sorted(arrivals: np.ndarray) -> None:
    if not np.all(np.isfinite(arrivals)):
        raise input_error("an arrival that is not finite", remedy="remove it", field="arrival_s")
    if np.any(np.diff(arrivals) < 0):
        first = int(np.argmax(np.diff(arrivals) < 0)) + 1
        fault = f"request {first} arrives at {arrivals[first]} s, before the one it follows"
        raise input_error(fault, remedy="sort the requests by arrival", field="arrival_s")


def _check_trace(
    arrival_s: ArrayLike, prompt_tokens: ArrayLike, output_tokens: ArrayLike
) -> tuple[list[float], list[int], list[int]]:
    """Return the trace as Python numbers; raise InputError at the first invalid value."""
    arrivals = np.asarray(arrival_s, np.float64)
    prompts, outputs = np.asarray(prompt_tokens), np.asarray(output_tokens)
    if arrivals.ndim != 1 or prompts.shape != arrivals.shape or outputs.shape != arrivals.shape:
        fault = f"shapes {arrivals.shape}, {prompts.shape} and {outputs.shape} disagree"
        raise input_error(fault, remedy="give arrival_s, prompt_tokens and output_tokens as [T]")
    _check_sorted(arrivals)
    for name, tokens in (("prompt_tokens", prompts), ("output_tokens", outputs)):
        # Not only the sign: half a token would never be generated, and the loop would not end.
        bad = (tokens < 1) | (tokens != np.floor(tokens))
        if np.any(bad):
            first = int(np.argmax(bad))
            raise input_error(
                f"request {first} has {tokens[first]}", remedy="give whole numbers of at least 1", field=name
            )
    return arrivals.tolist(), [int(t) for t in prompts], [int(t) for t in outputs]
