"""Conversations: each turn holds what was said before, and shares it with the turn before."""

import dataclasses

import jax
import numpy as np

from qos_jax.workload import RequestTable
from qos_jax.workload.conversations import SystemPrompts, as_conversations, draw_conversations
from qos_jax.workload.sessions import as_sessions

RUNS, COUNT, EXPERTS, LIMIT = 2, 600, 2, 1500


def drawn():
    rng = np.random.default_rng(0)
    output = rng.integers(20, 80, (RUNS, COUNT, EXPERTS))
    quality = np.ones(output.shape, np.float32)
    prompt = rng.integers(10, 100, (RUNS, COUNT))
    return RequestTable(prompt, quality, output, quality, output.astype(np.float32))


SEEDS = np.arange(RUNS, dtype=np.uint32)


def conversations(mean_turns, limit=10**6, **system):
    return as_conversations(
        drawn(), SEEDS, mean_turns=mean_turns, open_conversations=20, limit_tokens=limit, **system
    )


def assert_turns(before, table):
    """Each turn of a run holds the turns of its conversation before it, and their answers."""
    answer = np.round(before.output_tokens.mean(-1)).astype(int)
    said = {}
    for i, group in enumerate(np.asarray(table.prefix_group).tolist()):
        assert table.prefix_tokens[i] == said.get(group, 0)
        assert table.prompt_tokens[i] == said.get(group, 0) + before.prompt_tokens[i]
        said[group] = table.prompt_tokens[i] + answer[i]


def run_of(table, run):
    return jax.tree.map(lambda leaf: leaf[run], table)


def test_a_turn_shares_the_turns_before_it_and_their_answers():
    table = conversations(4.0)
    for run in range(RUNS):
        assert_turns(run_of(drawn(), run), run_of(table, run))
    assert not np.array_equal(table.prefix_group[0], table.prefix_group[1])


def test_turns_are_drawn_by_a_key_within_a_program_too():
    wide = drawn()
    before = dataclasses.replace(
        wide,
        prompt_tokens=wide.prompt_tokens.astype(np.int32),
        output_tokens=wide.output_tokens.astype(np.int32),
    )

    @jax.jit
    @jax.vmap
    def draw(key, table):
        return draw_conversations(key, table, mean_turns=4.0, open_conversations=20, limit_tokens=LIMIT)

    table = jax.device_get(draw(jax.random.split(jax.random.key(0), RUNS), before))
    for run in range(RUNS):
        assert_turns(run_of(before, run), run_of(table, run))
    assert (table.prompt_tokens[..., None] + table.output_tokens).max() <= LIMIT
    assert not np.array_equal(table.prefix_group[0], table.prefix_group[1])
    turns = COUNT / (table.prefix_group.max(-1) + 1 - 20)
    assert np.all((turns > 2.5) & (turns < 5.0))


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


def test_a_conversation_begins_with_one_system_prompt_by_popularity():
    plain, table = conversations(4.0), conversations(4.0, system=SystemPrompts(8, 50, 1.0))
    np.testing.assert_array_equal(table.prefix_group, plain.prefix_group)
    np.testing.assert_array_equal(table.prompt_tokens, plain.prompt_tokens + 50)
    np.testing.assert_array_equal(table.prefix_tokens, plain.prefix_tokens + 50)
    assert plain.prefix_path is None
    outer, inner = table.prefix_path
    np.testing.assert_array_equal(outer.end_tokens, 50)
    np.testing.assert_array_equal(inner.group, table.prefix_group)
    assert inner.end_tokens.min() > table.prompt_tokens.max()
    for run in range(RUNS):
        of = {}
        for system, group in zip(outer.group[run].tolist(), inner.group[run].tolist(), strict=True):
            assert of.setdefault(group, system) == system
    # Zipf's first of eight has 1 / 2.718 of the conversations, its last an eighth of that.
    share = np.bincount(outer.group.ravel(), minlength=8) / outer.group.size
    assert 0.25 < share[0] < 0.5
    assert share[-1] < 0.1


def test_sessions_have_conversations_in_a_row():
    users, turns = 20, COUNT // 20
    table, times = as_sessions(
        drawn(),
        SEEDS,
        sessions=users,
        mean_turns=4.0,
        mean_think_s=9.0,
        limit_tokens=LIMIT,
        system=SystemPrompts(3, 40),
    )
    before, shape = drawn(), (RUNS, users, turns)
    group, prefix, prompt = (
        leaf.reshape(shape) for leaf in (table.prefix_group, table.prefix_tokens, table.prompt_tokens)
    )
    answer = np.round(before.output_tokens.mean(-1)).astype(int).reshape(shape)
    goes_on = group[..., 1:] == group[..., :-1]
    # A turn holds the one before and its answer, or begins a conversation of no other session.
    np.testing.assert_array_equal(prefix[..., 1:], np.where(goes_on, prompt[..., :-1] + answer[..., :-1], 40))
    np.testing.assert_array_equal(prompt - prefix, before.prompt_tokens.reshape(shape))
    assert np.all(group % users == np.arange(users)[:, None])
    assert 0.65 < goes_on.mean() < 0.85
    assert (prompt + before.output_tokens.max(-1).reshape(shape)).max() <= LIMIT
    assert times.think_s.shape == shape
    assert 8.0 < times.think_s.mean() < 10.0
    assert times.start_s.shape == shape[:2]
