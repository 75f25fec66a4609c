"""Requests read quickly and exactly; every fault is named."""

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.workload import Requests, RequestTable, read_requests, write_requests
from tests.workload.contract import check_contract

NAMES = ("llama-3.1", "gemma")
HEAD = "arrival_s,prompt_tokens,output_tokens,quality"


def read(tmp_path, text):
    path = tmp_path / "r.csv"
    path.write_text(text)
    return read_requests(path, NAMES)


def test_shared_columns_and_defaults(tmp_path, caplog):
    arrival_s, table, expert = read(tmp_path, f"{HEAD}\n0.5,10,20,1\n0.5,11,21,0.25\n")
    np.testing.assert_array_equal(arrival_s, [0.5, 0.5])
    np.testing.assert_array_equal(table.output_tokens, [[20, 20], [21, 21]])
    np.testing.assert_array_equal(table.predicted_output_tokens, [[20, 20], [21, 21]])
    np.testing.assert_array_equal(table.predicted_quality, table.quality)
    assert expert is None
    assert table.predicted_output_tokens.dtype == np.float32
    check_contract(table)


def test_columns_per_expert_and_assignment(tmp_path):
    head = (
        "arrival_s,prompt_tokens,output_tokens.gemma,output_tokens.llama-3.1,quality,predicted_quality,expert"
    )
    requests = read(tmp_path, f"{head}\n0,10,20,30,1,0.5,gemma\n1,10,20,30,1,0.5,\n2,1,2,3,1,1,drop\n")
    np.testing.assert_array_equal(requests.table.output_tokens, [[30, 20], [30, 20], [3, 2]])
    np.testing.assert_array_equal(requests.expert, [1, -1, -1])
    assert requests.table.predicted_quality[0, 0] == 0.5


NESTED = f"{HEAD},prefix_group,prefix_tokens,prefix_path\n"


def test_nested_prefixes_are_read_and_written_again(tmp_path):
    requests = read(tmp_path, f"{NESTED}0,10,20,1,7,9,3:4 7:\n1,9,2,1,,5,\n2,9,2,1,3,9,3:6\n")
    outer, inner = requests.table.prefix_path
    np.testing.assert_array_equal(outer.group, [3, -1, 3])
    np.testing.assert_array_equal(outer.end_tokens, [4, 0, 6])
    np.testing.assert_array_equal(inner.group, [7, -1, -1])
    np.testing.assert_array_equal(inner.end_tokens, [2**31 - 1, 0, 0])
    write_requests(tmp_path / "again.csv", requests, NAMES)
    again = read_requests(tmp_path / "again.csv", NAMES)
    jax.tree.map(np.testing.assert_array_equal, again.table, requests.table)


def test_prefixes_are_read_and_written_again(tmp_path):
    text = f"{HEAD},prefix_group,prefix_tokens\n0,10,20,1,7,4\n1,9,2,1,,5\n2,9,2,1,7,9\n"
    requests = read(tmp_path, text)
    np.testing.assert_array_equal(requests.table.prefix_group, [7, -1, 7])
    np.testing.assert_array_equal(requests.table.prefix_tokens, [4, 0, 9])
    write_requests(tmp_path / "w.csv", requests, NAMES)
    again = read_requests(tmp_path / "w.csv", NAMES)
    np.testing.assert_array_equal(again.table.prefix_group, requests.table.prefix_group)
    np.testing.assert_array_equal(again.table.prefix_tokens, requests.table.prefix_tokens)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("arrival_s,prompt_tokens,quality\n0,1,1\n", "field 'output_tokens': column is missing"),
        (f"{HEAD},output_tokens.gemma\n0,1,1,1,1\n", "both"),
        ("arrival_s,prompt_tokens,quality,output_tokens.gemma\n0,1,1,1\n", "output_tokens.llama-3.1"),
        (f"{HEAD},predicted_quality.gema\n0,1,1,1,1\n", "did you mean 'gemma'"),
        (f"{HEAD},colour\n0,1,1,1,1\n", "unknown"),
        (f"{HEAD}\n", "no request"),
        (f"{HEAD}\n0,1,1,1.5\n", "row 2, field 'quality'"),
        (f"{HEAD}\n0,1,0,1\n", "row 2, field 'output_tokens'"),
        (f"{HEAD}\n0,1.5,1,1\n", "row 2, field 'prompt_tokens'"),
        (f"{HEAD}\n-1,1,1,1\n", "row 2, field 'arrival_s'"),
        (f"{HEAD}\n1,1,1,1\n# note\n0.5,1,1,1\n", "row 4, field 'arrival_s'"),
        (f"{HEAD}\nnan,1,1,1\n", "not finite"),
        (f"{HEAD}\n0,1,1\n", "3 cells"),
        (f"{HEAD},predicted_output_tokens\n0,1,1,1,0\n", "predicted_output_tokens"),
        (
            f"{NESTED}0,9,1,1,2,8,4:8\n",
            "row 2, field 'prefix_path': '4:8' does not end with its prefix_group 2",
        ),
        (f"{NESTED}0,9,1,1,2,8,4:8 2:8\n", "row 2, field 'prefix_path': '4:8 2:8' has ends that do not rise"),
        (f"{NESTED}0,9,1,1,2,8,4: 2:8\n", "row 2, field 'prefix_path': '4: 2:8' is no list of groups"),
        (f"{HEAD},prefix_path\n0,9,1,1,2:\n", "field 'prefix_group': column is missing"),
        (f"{HEAD},prefix_group\n0,1,1,1,0\n", "field 'prefix_tokens': column is missing"),
        (f"{HEAD},prefix_group,prefix_tokens\n0,3,1,1,0,4\n", "row 2, field 'prefix_tokens': '4' is above"),
        (f"{HEAD},prefix_group,prefix_tokens\n0,3,1,1,-1,2\n", "row 2, field 'prefix_group'"),
        (f"{HEAD},expert\n0,1,1,1,gemmma\n", "did you mean 'gemma'"),
    ],
)
def test_faults_are_named(tmp_path, text, fault):
    with pytest.raises(InputError, match=fault) as error:
        read(tmp_path, text)
    assert "r.csv" in str(error.value)


def test_a_hundred_thousand_rows_are_read_in_chunks(tmp_path):
    rows = [f"{k / 8},{k % 1000 + 1},{k % 300 + 1},0.5" for k in range(100_000)]
    requests = read(tmp_path, "\n".join([HEAD, *rows]))
    assert requests.table.num_rows == 100_000
    assert requests.arrival_s[-1] == 99_999 / 8


@pytest.mark.parametrize("assigned", [False, True])
def test_what_is_written_reads_back_the_same(tmp_path, assigned):
    rng = np.random.default_rng(5)
    names = ("a", "b,c", 'd"e')
    shape = (40, len(names))
    table = RequestTable(
        prompt_tokens=rng.integers(1, 5000, 40, dtype=np.int32),
        quality=rng.random(shape, dtype=np.float32),
        output_tokens=rng.integers(1, 5000, shape, dtype=np.int32),
        predicted_quality=rng.random(shape, dtype=np.float32),
        predicted_output_tokens=rng.lognormal(5, 1, shape).astype(np.float32),
    )
    expert = rng.integers(-1, len(names), 40, dtype=np.int32) if assigned else None
    requests = Requests(np.sort(rng.random(40)) * 1e6, table, expert)
    path = tmp_path / "requests.csv"
    write_requests(path, requests, names, comments=["made here"])
    again = read_requests(path, names)
    np.testing.assert_array_equal(again.arrival_s, requests.arrival_s)
    for field in (
        "prompt_tokens",
        "quality",
        "output_tokens",
        "predicted_quality",
        "predicted_output_tokens",
    ):
        np.testing.assert_array_equal(getattr(again.table, field), getattr(table, field))
    assert (again.expert is None) == (expert is None)
    if expert is not None:
        np.testing.assert_array_equal(again.expert, expert)
