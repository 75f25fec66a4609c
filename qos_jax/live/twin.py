"""The live router's state on the host: own requests in flight, what was seen of them, and each decision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from qos_jax.live.program import PREFIX_EVENTS, Step
from qos_jax.routing.belief import BEGUN, NO_TOKEN, UNSEEN

_MAX_ID = 2**31 - 1
MAX_PENDING_S = 0.25  # events are taken in this soon, also where no request arrives


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the policy says of a request."""

    expert: int | None  # None = refused
    reason: str = ""  # why it is: "dropped", "full" or "too_long"


@dataclasses.dataclass(frozen=True)
class SharedPrefix:
    """The groups that a prompt belongs to, as a request's ``prefix_path`` has them; -1 = none."""

    system_group: int  # of its system prompt
    system_tokens: int  # of that
    group: int  # of its conversation, within
    tokens: int  # that it may share with earlier prompts


@dataclasses.dataclass(frozen=True, eq=False)
class Newcomer:
    """A request as predicted for N experts."""

    prompt_tokens: int
    predicted_output_tokens: np.ndarray  # [N] float32, medians
    predicted_quality: np.ndarray  # [N] float32
    prefix: SharedPrefix | None = None  # what its prompt shares, where the twin follows prefix caches


class Twin:
    """The state between decisions, not for several threads; ids count up with decisions."""

    def __init__(
        self, step: Step, start: list[Any], events: dict[str, Any], clock: Callable[[], float]
    ) -> None:
        """Start with nothing in flight; ``clock`` gives seconds."""
        self._step, self._state, self._idle = step, start, events
        self._clock, self._then_s = clock, clock()
        num_experts = events["up"].shape[0]
        self._said = events["said"].copy()  # by tag
        self._nobody = len(self._said) - 1
        self._free = list(range(self._nobody))
        self._tag: dict[int, int] = {}  # of a request, by its id
        self._ended: set[int] = set()
        self._next_id = 0
        self.follows_caches = PREFIX_EVENTS[0] in events
        self._pending_since_s: float | None = None
        self.up = np.ones(num_experts, np.bool_)
        self._counts: dict[int, tuple[int, int, int]] = {}
        self._pace: Any = np.ones(num_experts, np.float32)

    def decide(
        self, newcomer: Newcomer, age_s: float = 0.0, avoided: Collection[int] = ()
    ) -> tuple[int, Decision]:
        """Route a request; return its id and the decision, which counts it as sent there.

        Args:
          newcomer: what is predicted of it.
          age_s: seconds since it arrived, above 0 if it is routed again.
          avoided: experts that it is not to go to, since they just failed it.
        """
        request_id, self._next_id = self._next_id, self._next_id + 1
        not_there = np.zeros_like(self.up)
        not_there[list(avoided)] = True
        prefix = newcomer.prefix if self.follows_caches else None
        shares = {} if prefix is None else {n: np.int32(getattr(prefix, n)) for n in PREFIX_EVENTS}
        tag = self._free.pop() if self._free else self._nobody
        found = self._call(
            **shares,
            avoided=not_there,
            arrives=np.bool_(True),
            newcomer_id=np.int32(request_id & _MAX_ID),
            newcomer_tag=np.int32(tag),
            age_s=np.float32(age_s),
            prompt_tokens=np.int32(newcomer.prompt_tokens),
            predicted_output_tokens=newcomer.predicted_output_tokens,
            predicted_quality=newcomer.predicted_quality,
        )
        expert = int(found["action"])
        if bool(found["accepted"]):
            if tag != self._nobody:
                self._tag[request_id], self._said[tag] = tag, NO_TOKEN
            return request_id, Decision(expert)
        if tag != self._nobody:
            self._free.append(tag)
        fits = np.asarray(found["fits"])
        if not fits.any():
            return request_id, Decision(None, "too_long")
        return request_id, Decision(None, "full" if 0 <= expert < len(fits) else "dropped")

    @property
    def pace(self) -> np.ndarray:
        """[N] float32, as last estimated."""
        return np.asarray(self._pace)

    def unseen(self, request_id: int) -> None:
        """Note that the first token of a request will not be seen: its answer comes in one piece."""
        self._say(request_id, UNSEEN)

    def began(self, request_id: int) -> None:
        """Note the first token of a request."""
        self._say(request_id, BEGUN)

    def ended(self, request_id: int, output_tokens: int) -> None:
        """Note the end of a request: its output tokens, or 0 where it failed or was abandoned."""
        if request_id in self._tag and request_id not in self._ended:
            self._say(request_id, max(output_tokens, 0))
            self._ended.add(request_id)

    def scraped(self, expert: int, running: int, waiting: int, kv_tokens: int) -> None:
        """Note what a server publishes: requests running and waiting, tokens in its KV cache (-1 unknown)."""
        self._counts[expert] = (running, waiting, kv_tokens)
        self._note()

    def catch_up(self) -> None:
        """Take in what was noted, unless that is recent: a decision soon does."""
        since_s = self._pending_since_s
        if since_s is not None and self._clock() - since_s >= MAX_PENDING_S:
            self._call()

    def _call(self, **request: Any) -> dict[str, Any]:
        now_s = self._clock()
        events = {**self._idle, **request, "elapsed_s": np.float32(max(now_s - self._then_s, 0.0))}
        # Copies: the arrays change before the program that reads them may have run.
        events |= {"said": self._said.copy(), "up": self.up.copy()}
        if self._counts:
            names = ("scraped", "running", "waiting", "kv_tokens")
            columns = {name: self._idle[name].copy() for name in names}
            for expert, counts in self._counts.items():
                for name, value in zip(columns, (True, *counts), strict=True):
                    columns[name][expert] = value
            events |= columns
        self._state, found = self._step(self._state, events)
        self._then_s, self._pending_since_s = now_s, None
        self._counts.clear()
        for request_id in self._ended:
            tag = self._tag.pop(request_id)
            self._said[tag] = 0
            self._free.append(tag)
        self._ended.clear()
        self._pace = found["pace"]
        return found

    def _say(self, request_id: int, said: int) -> None:
        if request_id in self._tag:
            self._said[self._tag[request_id]] = said
            self._note()

    def _note(self) -> None:
        if self._pending_since_s is None:
            self._pending_since_s = self._clock()
