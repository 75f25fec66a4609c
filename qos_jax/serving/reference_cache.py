"""The prefix caches of real servers for the reference: vLLM's pool of blocks, llama.cpp's slots."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

BLOCK_TOKENS = 16  # vLLM's default block size
SIMILARITY = 0.1  # llama.cpp's --slot-prompt-similarity
WORTH_KEEPING = 0.5  # share of a slot's tokens that must be reused, or else they are saved first
WORTH_LOADING = 0.25  # least share of a saved prompt that a new one must share for it to be loaded


def content_ids(
    prefix_group: ArrayLike, prefix_tokens: ArrayLike, total_tokens: ArrayLike, block_tokens: int
) -> list[list[int]]:
    """Return the identity of each whole block of every request's prompt and answer, equal where equal.

    A request shares the blocks within its first ``prefix_tokens`` with the request of its group that had
    them last, prompt or answer; all its others are its own.

    Args:
      prefix_group: [T] integers, in the order of arrival; below 0 = shares nothing.
      prefix_tokens: [T] tokens.
      total_tokens: [T] tokens, prompt and answer.
      block_tokens: tokens of a block.
    """
    fresh = itertools.count()
    streams: dict[int, list[int]] = {}
    found = []
    requests = zip(
        *(np.asarray(a).tolist() for a in (prefix_group, prefix_tokens, total_tokens)), strict=True
    )
    for group, shared, total in requests:
        stream = streams.get(group, []) if group >= 0 else []
        known = min(shared // block_tokens, total // block_tokens, len(stream))
        ids = stream[:known] + [next(fresh) for _ in range(total // block_tokens - known)]
        if group >= 0:
            streams[group] = ids + stream[len(ids) :]
        found.append(ids)
    return found


def hashed_content(
    hash_ids: Sequence[Sequence[int]],
    prompt_tokens: ArrayLike,
    total_tokens: ArrayLike,
    hash_tokens: int,
    block_tokens: int,
) -> list[list[int]]:
    """Return :func:`content_ids` of prompts whose blocks have hashes; answers are a request's own.

    Args:
      hash_ids: T lists, each of the prompt's blocks from the first; equal beginnings are equal tokens.
      prompt_tokens: [T] tokens.
      total_tokens: [T] tokens, prompt and answer.
      hash_tokens: tokens of a block that has a hash, a multiple of ``block_tokens``.
      block_tokens: tokens of a block of the cache.
    """
    fresh = itertools.count()
    # Identities within each block, by the last one before it and its hash.
    known: dict[tuple[int, int], list[int]] = {}
    found = []
    lengths = zip(*(np.asarray(a).tolist() for a in (prompt_tokens, total_tokens)), strict=True)
    for blocks, (prompt, total) in zip(hash_ids, lengths, strict=True):
        ids: list[int] = []
        for block in blocks:
            before = ids[-1] if ids else -1
            if (before, block) not in known:
                known[before, block] = [next(fresh) for _ in range(hash_tokens // block_tokens)]
            ids += known[before, block]
        del ids[min(prompt, total) // block_tokens :]
        found.append(ids + [next(fresh) for _ in range(total // block_tokens - len(ids))])
    return found


@dataclass
class BlockPool:
    """vLLM's KV cache (README.md, rules 20 to 23): blocks held by running requests, and the free ones.

    A free block may still hold a prefix. Those longest free are first in the queue and taken first.
    """

    capacity_tokens: int
    block_tokens: int = BLOCK_TOKENS
    holders: dict[Any, int] = field(default_factory=dict)  # requests that hold each block in use
    free: OrderedDict[Any, None] = field(default_factory=OrderedDict)
    held: dict[int, list[Any]] = field(default_factory=dict)  # blocks of each running request
    _anonymous: Any = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        for _ in range(self.capacity_tokens // self.block_tokens):
            self.free[self._unnamed()] = None

    @property
    def whole_tokens(self) -> int:
        """Tokens of all blocks."""
        return self.capacity_tokens // self.block_tokens * self.block_tokens

    def hit_tokens(self, ids: Sequence[int], context_tokens: int) -> int:
        """Return the leading tokens of a context that are cached; at least its last is to be computed."""
        most = min((context_tokens - 1) // self.block_tokens, len(ids))
        hits = next((i for i in range(most) if not self._knows(ids[i])), most)
        return hits * self.block_tokens

    def has_room(self, ids: Sequence[int], tokens: int, hit_tokens: int) -> bool:
        """Return whether a newcomer's blocks fit: new ones, and those hit that are free until then."""
        hits = hit_tokens // self.block_tokens
        revived = sum(ids[i] in self.free for i in range(hits))
        return self._blocks(tokens) - hits + revived <= len(self.free)

    def admit(self, order: int, ids: Sequence[int], tokens: int, hit_tokens: int) -> None:
        """Give a request its blocks: those hit, now held by it too, and new ones."""
        blocks = list(ids[: hit_tokens // self.block_tokens])
        for block in blocks:
            self.free.pop(block, None)
            self.holders[block] = self.holders.get(block, 0) + 1
        self.held[order] = blocks
        self.grow(order, tokens)

    def missing_blocks(self, order: int, tokens: int) -> int:
        """Return the blocks that a running request lacks to hold so many tokens."""
        return max(self._blocks(tokens) - len(self.held[order]), 0)

    def grow(self, order: int, tokens: int) -> None:
        """Take free blocks, longest free first, until the request can hold so many tokens."""
        for _ in range(self.missing_blocks(order, tokens)):
            self.free.popitem(last=False)
            block = self._unnamed()
            self.holders[block] = 1
            self.held[order].append(block)

    def enter(self, order: int, ids: Sequence[int], computed_tokens: int) -> None:
        """Make a request's whole computed blocks known; one that is known already stays its own copy."""
        blocks = self.held[order]
        for at in range(min(computed_tokens // self.block_tokens, len(ids))):
            if blocks[at] != ids[at] and not self._knows(ids[at]) and isinstance(blocks[at], tuple):
                self.holders[ids[at]] = self.holders.pop(blocks[at])
                blocks[at] = ids[at]

    def release(self, order: int) -> None:
        """Let go of a request's blocks, its last first, so that the ends of prefixes are taken first."""
        for block in reversed(self.held.pop(order)):
            self.holders[block] -= 1
            if self.holders[block] == 0:
                del self.holders[block]
                self.free[block] = None

    def _knows(self, block: int) -> bool:
        return block in self.holders or block in self.free

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _unnamed(self) -> tuple[int]:
        return (next(self._anonymous),)


@dataclass
class _Slot:
    ids: Sequence[int] = ()
    last_used: int = -1
    order: int | None = None  # of the request that it serves


class SlotCache:
    """llama.cpp's slots (README.md, rule 24): each keeps its last request, others' are saved.

    The host memory that they are saved to (``--cache-ram``, 8 GiB by default) is taken to be without end.
    """

    def __init__(self, slots: int) -> None:
        self._slots = [_Slot() for _ in range(slots)]
        self._saved: list[Sequence[int]] = []
        self._uses = itertools.count()

    def admit(self, order: int, ids: Sequence[int], prompt_tokens: int) -> int:
        """Choose an idle slot for a request, and return how many of its prompt's tokens are cached there."""
        prompt = ids[:prompt_tokens]
        idle = [slot for slot in self._slots if slot.order is None]
        common = [_common(slot.ids, prompt) for slot in idle]
        best = max(range(len(idle)), key=lambda at: (common[at], -at))
        if common[best] <= SIMILARITY * len(prompt):
            best = min(range(len(idle)), key=lambda at: idle[at].last_used)
            spare = True
        else:
            spare = common[best] < WORTH_KEEPING * len(idle[best].ids)
        slot = idle[best]
        if spare and slot.ids:
            self._save(slot.ids)
        if spare:
            slot.ids = self._load(slot.ids, prompt)
        hit = min(_common(slot.ids, prompt), prompt_tokens - 1)
        slot.order, slot.ids = order, ids
        return hit

    def release(self, order: int, computed_tokens: int) -> None:
        """Make a request's slot idle; it keeps the tokens computed."""
        slot = next(slot for slot in self._slots if slot.order == order)
        slot.order, slot.ids, slot.last_used = None, slot.ids[:computed_tokens], next(self._uses)

    def _save(self, ids: Sequence[int]) -> None:
        if not any(_common(saved, ids) == len(ids) for saved in self._saved):
            self._saved = [saved for saved in self._saved if _common(saved, ids) < len(saved)]
            self._saved.append(ids)

    def _load(self, ids: Sequence[int], prompt: Sequence[int]) -> Sequence[int]:
        """Return the saved tokens that keep more of themselves and cover more of the prompt, or ``ids``."""
        shared = _common(ids, prompt)
        keep, chosen = shared / len(ids) if ids else -1.0, None
        for at, saved in enumerate(self._saved):
            found = _common(saved, prompt)
            if found / len(saved) >= WORTH_LOADING and found / len(saved) > keep and found > shared:
                keep, shared, chosen = found / len(saved), found, at
        return ids if chosen is None else self._saved.pop(chosen)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
