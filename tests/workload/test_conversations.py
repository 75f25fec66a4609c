"""Conversations: each turn holds what was said before, and shares it with the turn before."""

import numpy as np

from qos_jax.workload import RequestTable
from qos_jax.workload.conversations import as_conversations

RUNS, COUNT, EXPERTS, LIMIT = 2, 600, 2, 1500


def drawn():
    rng = np.random.default_rng(0)
    output = rng.integers(20, 80, (RUNS, COUNT, EXPERTS))
    quality = np.ones(output.shape, np.float32)
    prompt = rng.integers(10, 100, (RUNS, COUNT))
    return RequestTable(prompt, quality, output, quality, output.astype(np.float32))


def conversations(mean_turns, limit=10**6):
    seeds = np.arange(RUNS, dtype=np.uint32)
    return as_conversations(drawn(), seeds, mean_turns=mean_turns, open_conversations=20, limit_tokens=limit)


def test_a_turn_shares_the_turns_before_it_and_their_answers():
    before, table = drawn(), conversations(4.0)
    answer = np.round(before.output_tokens.mean(-1)).astype(int)
    for run in range(RUNS):
        said = {}
        for i, group in enumerate(table.prefix_group[run].tolist()):
            assert table.prefix_tokens[run, i] == said.get(group, 0)
            assert table.prompt_tokens[run, i] == said.get(group, 0) + before.prompt_tokens[run, i]
            said[group] = table.prompt_tokens[run, i] + answer[run, i]
    assert not np.array_equal(table.prefix_group[0], table.prefix_group[1])


def test_turns_and_time_to_think_are_as_asked():
    turns = [np.bincount(group) for group in conversations(4.0).prefix_group]
    assert 3.0 < np.mean([each[:80].mean() for each in turns]) < 5.0
    for group in conversations(4.0).prefix_group:
        last = {}
        for i, each in enumerate(group.tolist()):
            assert i - last.get(each, -100) > 12  # of 20 open, the 6 longest silent may come next
            last[each] = i


def test_a_conversation_ends_before_it_exceeds_the_limit():
    table = conversations(100.0, LIMIT)
    assert (table.prompt_tokens[..., None] + table.output_tokens).max() <= LIMIT
    assert (table.prefix_tokens > 1000).any()
