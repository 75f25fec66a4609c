"""Turn drawn requests into turns of conversations, each of whose prompts holds what was said before."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from qos_jax.serving.state import PrefixLevel
from qos_jax.workload.request_table import RequestTable

# Mean turns of a conversation in ShareGPT (Gao et al., "CachedAttention", USENIX ATC 2024, section 4.2);
# LMSYS-Chat-1M has 2.0 (Zheng et al., ICLR 2024, table 1).
MEAN_TURNS = 5.75
# The next turn is that of one of the longest silent conversations, this share of those open.
_SILENT_SHARE = 1 / 3


@dataclasses.dataclass(frozen=True)
class SystemPrompts:
    """The system prompts of applications: a conversation begins with one of them, drawn by popularity."""

    count: int = 0  # 0 = conversations begin with what the user says
    tokens: int = 256  # of each
    skew: float = 1.0  # Zipf's exponent: the k-th has a share in proportion to k^-skew; 0 = all alike

    @property
    def start_tokens(self) -> int:
        """Tokens that a conversation begins with."""
        return self.tokens if self.count else 0

    def drawn(self, rng: np.random.Generator, conversations: int) -> npt.NDArray[np.int32]:
        """Return the system prompt of each conversation, an index, by popularity."""
        share = np.cumsum(np.arange(1, self.count + 1) ** -float(self.skew))
        return np.searchsorted(share / share[-1], rng.random(conversations), side="right").astype(np.int32)


def as_conversations(
    table: RequestTable,
    seeds: npt.NDArray[np.uint32],
    *,
    mean_turns: float,
    open_conversations: int,
    limit_tokens: int,
    system: SystemPrompts = SystemPrompts(),
) -> RequestTable:
    """Return the requests of S runs as turns: a drawn prompt is what the user adds to what was said.

    So many conversations are open at a time that a user thinks for about as many arrivals: arrivals and
    contents are drawn apart, and the same at every rate. One ends with chance 1 / ``mean_turns`` after each
    turn, or where the next would exceed the limit, and a new one takes its place. What was said includes the
    mean of the experts' answers, since the next prompt is drawn before it is known who answers. Qualities
    and predictions stay those drawn. With system prompts the group of one lies around those of the
    conversations that begin with it.

    Args:
      table: NumPy leaves [S, T] and [S, T, N].
      seeds: [S], of each run's conversations.
      mean_turns: of a conversation that reaches no limit, >= 1.
      open_conversations: at a time, >= 1.
      limit_tokens: most tokens of a prompt and its longest answer, where a first turn does not exceed it.
      system: what conversations begin with.
    """
    added, output = np.asarray(table.prompt_tokens), np.asarray(table.output_tokens)
    answer = np.round(output.mean(axis=-1)).astype(int)
    longest = output.max(axis=-1)
    group, prefix, start = np.zeros_like(added), np.zeros_like(added), system.start_tokens
    silent = max(int(open_conversations * _SILENT_SHARE), 1)
    for run, seed in enumerate(seeds.tolist()):
        rng = np.random.default_rng((seed, 7))
        drawn = rng.random((added.shape[1], 2))
        said = dict.fromkeys(range(open_conversations), start)  # tokens of each open conversation
        fresh = open_conversations
        waiting = list(said)  # the longest silent first
        for turn in range(added.shape[1]):
            which = waiting.pop(int(drawn[turn, 0] * silent))
            before = said.pop(which)
            if before + added[run, turn] + longest[run, turn] > limit_tokens:
                which, before, fresh = fresh, start, fresh + 1
            group[run, turn], prefix[run, turn] = which, before
            now = before + int(added[run, turn] + answer[run, turn])
            if drawn[turn, 1] < 1.0 / mean_turns:
                which, now, fresh = fresh, start, fresh + 1
            said[which] = now
            waiting.append(which)
    turns: dict[str, Any] = {"prefix_group": group, "prefix_tokens": prefix, "prompt_tokens": prefix + added}
    return dataclasses.replace(table, **turns, prefix_path=path_of(group, seeds, system))


def path_of(
    group: npt.NDArray[Any], seeds: npt.NDArray[np.uint32], system: SystemPrompts
) -> tuple[PrefixLevel, ...] | None:
    """Return the groups of conversations [S, ...] within those of their system prompts; None without."""
    if not system.count:
        return None
    outer = np.stack(
        [
            system.drawn(np.random.default_rng((seed, 8)), int(each.max()) + 1)[each]
            for seed, each in zip(seeds.tolist(), group, strict=True)
        ]
    )
    levels: Any = (
        (outer, np.full(group.shape, system.tokens, np.int32)),
        (group.astype(np.int32), np.full(group.shape, np.iinfo(np.int32).max, np.int32)),
    )
    return tuple(PrefixLevel(*level) for level in levels)
