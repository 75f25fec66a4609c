"""Turn drawn requests into sessions: users whose next turn comes a time to think after the last answer."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qos_jax.workload.conversations import SystemPrompts, path_of
from qos_jax.workload.request_table import RequestTable

# Mean seconds from an answer to the next turn: silent reading of 238 words a minute (Brysbaert, Journal of
# Memory and Language 109, 2019), three quarters of a word a token, makes it that of an answer of some 190
# tokens. Exponential, as between the turns of ai-dynamo's `multiturn_bench`.
MEAN_THINK_S = 36.0


class SessionTimes(NamedTuple):
    """How long U users of S runs think, M turns of each, whatever is answered."""

    think_s: npt.NDArray[np.float32]  # [S, U, M] seconds from the answer to a turn to the next
    start_s: npt.NDArray[np.float32]  # [S, U] seconds until the first turn


def as_sessions(
    table: RequestTable,
    seeds: npt.NDArray[np.uint32],
    *,
    sessions: int,
    mean_turns: float,
    mean_think_s: float,
    limit_tokens: int,
    system: SystemPrompts,
) -> tuple[RequestTable, SessionTimes]:
    """Return the requests of S runs as the turns of so many sessions, each a user's conversations in a row.

    Conversations grow and end as in :func:`~qos_jax.workload.conversations.as_conversations`; when one ends,
    the user begins another, a time to think later. All is drawn by session and turn, nothing by what is
    answered, so that routers can be compared turn by turn.

    Args:
      table: NumPy leaves [S, U * M] and [S, U * M, N]; so are those returned, a session's turns in a row.
      seeds: [S], of each run's conversations.
      sessions: U.
      mean_turns: of a conversation that reaches no limit, >= 1.
      mean_think_s: seconds.
      limit_tokens: most tokens of a prompt and its longest answer, where a first turn does not exceed it.
      system: what conversations begin with.
    """
    shape = (len(seeds), sessions, -1)
    added = np.asarray(table.prompt_tokens).reshape(shape)
    output = np.asarray(table.output_tokens).reshape(*added.shape, -1)
    answer, longest = np.round(output.mean(axis=-1)).astype(added.dtype), output.max(axis=-1)
    rng = [np.random.default_rng((seed, 9)) for seed in seeds.tolist()]
    ends = np.stack([each.random(added.shape[1:]) for each in rng]) < 1.0 / mean_turns
    think_s = np.stack([each.exponential(mean_think_s, added.shape[1:]) for each in rng])
    # The rest of an exponential time is exponential, too: users are met in the midst of thinking.
    start_s = np.stack([each.exponential(mean_think_s, sessions) for each in rng])
    group, prefix = np.zeros_like(added), np.zeros_like(added)
    user, count = np.arange(sessions, dtype=added.dtype), np.zeros(added.shape[:2], added.dtype)
    said = np.full(added.shape[:2], system.start_tokens, added.dtype)
    for turn in range(added.shape[2]):
        over = said + added[..., turn] + longest[..., turn] > limit_tokens
        count, said = count + over, np.where(over, system.start_tokens, said)
        group[..., turn], prefix[..., turn] = user + sessions * count, said
        said = said + added[..., turn] + answer[..., turn]
        ended = ends[..., turn]
        count, said = count + ended, np.where(ended, system.start_tokens, said)
    turns: dict[str, Any] = {"prefix_group": group, "prefix_tokens": prefix, "prompt_tokens": prefix + added}
    flat = {name: leaf.reshape(len(seeds), -1) for name, leaf in turns.items()}
    path = path_of(flat["prefix_group"], seeds, system)
    times = SessionTimes(think_s.astype(np.float32), start_s.astype(np.float32))
    return dataclasses.replace(table, **flat, prefix_path=path), times
