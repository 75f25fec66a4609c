"""Turn drawn requests into turns of conversations, each of whose prompts holds what was said before."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import struct

from qos_jax.checks import Interval
from qos_jax.devices import vary_alike
from qos_jax.serving.state import PrefixLevel
from qos_jax.workload.request_table import RequestTable

# Mean turns of a conversation in ShareGPT (Gao et al., "CachedAttention", USENIX ATC 2024, section 4.2);
# LMSYS-Chat-1M has 2.0 (Zheng et al., ICLR 2024, table 1).
MEAN_TURNS = 5.75
MEAN_TURNS_RANGE = Interval(1, 1e6)
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
    silent, start = _silent_of(open_conversations), system.start_tokens
    drawn = np.stack(
        [np.random.default_rng((seed, 7)).random((added.shape[1], 2)) for seed in seeds.tolist()]
    )
    drawn_turns = DrawnTurns(
        added_tokens=added.astype(np.int32),
        answer_tokens=np.round(output.mean(axis=-1)).astype(np.int32),
        longest_tokens=output.max(axis=-1).astype(np.int32),
        choice=(drawn[..., 0] * silent).astype(np.int32),
        ends=drawn[..., 1] < 1.0 / mean_turns,
    )
    limit = min(limit_tokens, np.iinfo(np.int32).max)
    limits = np.int32(limit), np.int32(start)
    # Run by run: half of what it takes to compile all at once, and it takes milliseconds.
    runs = [
        _turns_of(open_conversations, jax.tree.map(operator.itemgetter(run), drawn_turns), *limits)
        for run in range(len(added))
    ]
    group, prefix = (np.stack(leaf).astype(added.dtype) for leaf in zip(*runs, strict=True))
    turns: dict[str, Any] = {"prefix_group": group, "prefix_tokens": prefix, "prompt_tokens": prefix + added}
    return dataclasses.replace(table, **turns, prefix_path=path_of(group, seeds, system))


def draw_conversations(
    key: jax.Array,
    table: RequestTable,
    *,
    mean_turns: float,
    open_conversations: int,
    limit_tokens: int,
) -> RequestTable:
    """Return the requests of one run as turns, as :func:`as_conversations` does, drawn by a key; jittable.

    Args:
      key: [] key.
      table: leaves [T] and [T, N].
      mean_turns: of a conversation that reaches no limit, >= 1.
      open_conversations: at a time, >= 1.
      limit_tokens: most tokens of a prompt and its longest answer, where a first turn does not exceed it.
    """
    choice_key, end_key = jax.random.split(key)
    added, output = jnp.asarray(table.prompt_tokens), jnp.asarray(table.output_tokens)
    drawn = DrawnTurns(
        added_tokens=added,
        answer_tokens=jnp.round(jnp.mean(output.astype(jnp.float32), axis=-1)).astype(jnp.int32),
        longest_tokens=jnp.max(output, axis=-1),
        choice=jax.random.randint(choice_key, added.shape, 0, _silent_of(open_conversations), jnp.int32),
        ends=jax.random.bernoulli(end_key, 1.0 / mean_turns, added.shape),
    )
    group, prefix = turns_of(open_conversations, drawn, jnp.int32(limit_tokens), jnp.int32(0))
    return dataclasses.replace(table, prefix_group=group, prefix_tokens=prefix, prompt_tokens=prefix + added)


@struct.dataclass
class DrawnTurns:
    """The T turns of a run before it is known which conversation each belongs to; leaves [T]."""

    added_tokens: Any  # int32, that the user adds
    answer_tokens: Any  # int32, of the answer that later turns contain
    longest_tokens: Any  # int32, of the longest answer
    choice: Any  # int32, index among the longest silent conversations, the longest first
    ends: Any  # bool, whether its conversation ends after it


def turns_of(
    open_conversations: int, drawn: DrawnTurns, limit_tokens: jax.Array, start_tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the conversation of each turn, and the tokens said in it before, [T] int32 both.

    Args:
      open_conversations: at a time.
      drawn: the turns, leaves [T].
      limit_tokens: [] int32, most tokens of a prompt and its longest answer.
      start_tokens: [] int32, that a conversation begins with.
    """
    # The open conversations, the longest silent first: which, and the tokens said.
    which = jnp.arange(open_conversations, dtype=jnp.int32)
    said = jnp.full((open_conversations,), start_tokens, jnp.int32)
    order = which

    def turn(
        carry: tuple[jax.Array, jax.Array, jax.Array], now: DrawnTurns
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        which, said, fresh = carry
        group, before = which[now.choice], said[now.choice]
        over = before + now.added_tokens + now.longest_tokens > limit_tokens
        group, before = jnp.where(over, fresh, group), jnp.where(over, start_tokens, before)
        fresh = fresh + over.astype(jnp.int32)
        after = before + now.added_tokens + now.answer_tokens
        last = jnp.where(now.ends, fresh, group), jnp.where(now.ends, start_tokens, after)
        fresh = fresh + now.ends.astype(jnp.int32)

        def moved_up(row: jax.Array, last: jax.Array) -> jax.Array:
            return jnp.where(order >= now.choice, jnp.append(row[1:], last), row)

        return (moved_up(which, last[0]), moved_up(said, last[1]), fresh), (group, before)

    start = vary_alike((which, said, jnp.int32(open_conversations)), drawn, limit_tokens, start_tokens)
    return jax.lax.scan(turn, start, drawn)[1]


_turns_of = jax.jit(turns_of, static_argnums=0)


def _silent_of(open_conversations: int) -> int:
    """Return how many of the open conversations the next turn may be of."""
    return max(int(open_conversations * _SILENT_SHARE), 1)


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
