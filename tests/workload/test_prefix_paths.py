"""What prompts share, as paths of nested groups."""

import numpy as np
import pytest

from qos_jax.workload import RequestTable
from qos_jax.workload.prefix_paths import block_tokens_of, prefix_paths, with_paths
from qos_jax.workload.request_table import with_prefixes


def common_blocks(one, other):
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def common_tokens(paths, one, other):
    """What the paths of two requests say that they share."""
    found = [0]
    for level in paths.path:
        if level.group[one] == level.group[other] >= 0:
            found.append(min(level.end_tokens[one], level.end_tokens[other]))
    return max(found)


def test_any_two_requests_share_what_their_hashes_do():
    rng = np.random.default_rng(0)
    for branches in (1, 2, 3):
        hashes = [rng.integers(0, branches, rng.integers(0, 7)).tolist() for _ in range(60)]
        prompt = np.array([max(64 * len(blocks) - rng.integers(0, 63), 1) for blocks in hashes])
        paths = prefix_paths(hashes, prompt, 64)
        for i in range(60):
            shared = [common_blocks(hashes[i], hashes[j]) for j in range(60) if j != i]
            for j in range(60):
                if i != j:
                    most = min(64 * common_blocks(hashes[i], hashes[j]), prompt[i], prompt[j])
                    assert common_tokens(paths, i, j) == most
            assert paths.tokens[i] == min(64 * max(shared), prompt[i])
            assert paths.repeated_tokens[i] == min(64 * max(shared[:i], default=0), prompt[i])
            last = [int(level.group[i]) for level in paths.path if level.group[i] >= 0]
            assert paths.group[i] == (last[-1] if last else -1)
        assert len(paths.path) <= 1 + np.log2(60)


def test_a_line_of_turns_and_a_root_for_all_need_two_groups():
    sessions = [[0, *range(100 * s + 1, 100 * s + 2 + 3 * turn)] for turn in range(4) for s in range(1, 6)]
    assert len(prefix_paths(sessions, [512 * len(s) for s in sessions], 512).path) == 2
    assert prefix_paths([[1, 2], [3], []], [9, 9, 9], 512) is None


@pytest.mark.parametrize(
    ("prompt", "count", "tokens"),
    [([600, 1024], [2, 2], 512), ([64, 200], [1, 3], 64), ([20, 40], [2, 5], None), ([7], [0], 512)],
)
def test_the_size_of_a_block_follows_from_how_many_there_are(prompt, count, tokens):
    assert block_tokens_of([[0] * n for n in count], prompt) == tokens


def test_runs_of_one_and_of_several_groups_have_one_form():
    """A group that is not nested goes on to the end of the answer, where other levels have nothing."""
    prompt, ones = np.array([600, 700], np.int32), np.ones((2, 1), np.float32)
    table = RequestTable(prompt, ones, ones.astype(np.int32), ones, ones)
    nested = with_prefixes(with_paths(table, prefix_paths([[1, 2], [1, 3]], prompt, 512)), 2)
    plain = with_prefixes(
        RequestTable(
            **{
                **vars(table),
                "prefix_group": np.array([3, -1], np.int32),
                "prefix_tokens": np.array([20, 0], np.int32),
            }
        ),
        2,
    )
    assert [level.group.tolist() for level in nested.prefix_path] == [[0, 0], [-1, -1]]
    assert [level.group.tolist() for level in plain.prefix_path] == [[3, -1], [-1, -1]]
    assert plain.prefix_path[0].end_tokens.tolist() == [np.iinfo(np.int32).max, 0]
    assert with_prefixes(table).prefix_path is None
