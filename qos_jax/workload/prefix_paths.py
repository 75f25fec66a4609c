"""Prompts given as lists of block hashes: which earlier requests each shares its beginning with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qos_jax.serving.state import PrefixLevel
from qos_jax.workload.request_table import RequestTable


class PrefixPaths(NamedTuple):
    """What T requests share, as :class:`RequestTable` has it; NumPy leaves."""

    group: npt.NDArray[np.int32]  # [T] int32, the last of its groups, -1 = shares nothing
    tokens: npt.NDArray[np.int32]  # [T] int32, that it shares with any other request
    path: tuple[PrefixLevel, ...]  # leaves [T], its groups from the root
    repeated_tokens: npt.NDArray[np.int32]  # [T] int32, that an earlier request had: an endless cache's hits

    def at(self, rows: slice) -> PrefixPaths:
        """Return those of some requests."""
        path = tuple(PrefixLevel(level.group[rows], level.end_tokens[rows]) for level in self.path)
        return PrefixPaths(self.group[rows], self.tokens[rows], path, self.repeated_tokens[rows])


def prefix_paths(
    hash_ids: Sequence[Sequence[int]], prompt_tokens: npt.ArrayLike, block_tokens: int
) -> PrefixPaths | None:
    """Return the groups that requests share their beginnings with; None if no two share a block.

    Lists of hashes are paths in a tree of blocks, in which equal beginnings are one. Blocks of a single
    request are left out. The rest is cut into chains, each going on to the child whose tree branches most
    (Horton-Strahler number), so that a path follows as few of them as it can: 3 in Mooncake's conversations.
    A chain is a group, and those that a path follows, with the tokens at which it leaves each, tell how much
    any two requests have in common.

    Args:
      hash_ids: T lists, in order of arrival, of the prompt's blocks from the first; empty = none known.
      prompt_tokens: [T] tokens; the last block may be part of one.
      block_tokens: tokens of a block.
    """
    prompt = np.asarray(prompt_tokens, np.int64)
    nodes: dict[tuple[int, int], int] = {}
    above: list[int] = []  # parent of each node, -1 = none; a child's number exceeds its parent's
    flat: list[int] = []  # the node of each block of each request
    for blocks in hash_ids:
        at = -1
        for block in blocks:
            known = nodes.setdefault((at, block), len(above))
            if known == len(above):
                above.append(at)
            flat.append(known)
            at = known
    node, lengths = np.array(flat, np.int64), np.array([len(blocks) for blocks in hash_ids], np.int64)
    visits = np.bincount(node, minlength=len(above))
    if not len(visits) or visits.max() < 2:
        return None
    level_of, chain_of = _chains(above, visits.tolist())
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first = np.zeros(len(above), np.int64)
    first[node[::-1]] = owner[::-1]

    def counted(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return how many of each request's blocks are among those chosen, [T]."""
        return np.bincount(owner[chosen], minlength=len(lengths))

    def tokens(blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        return np.minimum(blocks * block_tokens, prompt).astype(np.int32)

    start = np.cumsum(lengths) - lengths
    level, chain = level_of[node], chain_of[node]
    path, before = [], np.zeros(len(lengths), np.int64)
    group = np.full(len(lengths), -1, np.int32)
    for number in range(int(level_of.max()) + 1):
        count = counted((level >= 0) & (level <= number))
        follows = count > before
        last = chain[np.where(follows, start + count - 1, 0)]
        here = np.where(follows, last, -1).astype(np.int32)
        path.append(PrefixLevel(here, np.where(follows, tokens(count), 0).astype(np.int32)))  # type: ignore[arg-type]
        group, before = np.where(follows, here, group), count
    return PrefixPaths(group, tokens(before), tuple(path), tokens(counted(first[node] < owner)))


def _chains(above: list[int], visits: list[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the level and the chain of each node, -1 for those that one request alone visits."""
    strahler, heavy = [0] * len(above), [-1] * len(above)
    best: list[tuple[int, int]] = [(0, 0)] * len(above)  # of its children: the number and the visits
    for node in reversed(range(len(above))):
        if visits[node] < 2:
            continue
        strahler[node] = max(strahler[node], 1)
        parent = above[node]
        if parent < 0:
            continue
        mine = (strahler[node], visits[node])
        most = best[parent][0]
        strahler[parent] = most + 1 if mine[0] == most else max(mine[0], strahler[parent])
        if mine > best[parent]:
            best[parent], heavy[parent] = mine, node
    level, chain, chains = np.full(len(above), -1), np.full(len(above), -1), 0
    for node, parent in enumerate(above):
        if visits[node] < 2:
            continue
        if parent >= 0 and heavy[parent] == node:
            level[node], chain[node] = level[parent], chain[parent]
        else:
            level[node], chain[node] = level[parent] + 1 if parent >= 0 else 0, chains
            chains += 1
    return level, chain


def block_tokens_of(
    hash_ids: Sequence[Sequence[int]], prompt_tokens: npt.ArrayLike, usual: int = 512
) -> int | None:
    """Return the tokens of a block, a power of two, that explains how many hashes each prompt has.

    Args:
      hash_ids: T lists, an empty one says nothing.
      prompt_tokens: [T] tokens.
      usual: taken if it explains them.

    Returns:
      The number; None if none does, whole blocks alone counting or a last part of one too.
    """
    count = np.array([len(blocks) for blocks in hash_ids])
    prompt = np.asarray(prompt_tokens)[count > 0]
    count = count[count > 0]
    for tokens in (usual, *(2**power for power in range(12, 3, -1))):
        if np.all((count == prompt // tokens) | (count == -(-prompt // tokens))):
            return tokens
    return None


def with_paths(table: RequestTable, paths: PrefixPaths) -> RequestTable:
    """Return requests [T], or those of S runs [S, T], that share what T requests of a trace do."""
    shape = np.shape(table.prompt_tokens)

    def spread(leaf: Any) -> Any:
        return np.broadcast_to(leaf, shape)

    path = tuple(PrefixLevel(spread(level.group), spread(level.end_tokens)) for level in paths.path)
    return dataclasses.replace(
        table, prefix_group=spread(paths.group), prefix_tokens=spread(paths.tokens), prefix_path=path
    )
