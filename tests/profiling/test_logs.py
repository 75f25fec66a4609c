"""Logs read the same however they are written down."""

import json

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.profiling import read_iterations, read_request_log, read_request_logs
from tests.logs.shapes import SHAPES

COLUMNS = ("arrival_s", "scheduled_s", "first_token_s", "last_token_s", "prompt_tokens", "output_tokens")
ROWS = [(10.0, 10.5, 11.0, 12.0, 30, 5), (9.0, 9.0, 9.25, 9.25, 20, 1), (11.0, 11.0, 13.0, 14.0, 40, 9)]


def csv(path, header, rows):
    path.write_text("\n".join([",".join(header), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def jsonl(path, header, rows):
    path.write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    return path


def same(a, b):
    for name, values in vars(a).items():
        if name not in ("file", "left_out", "notes"):
            np.testing.assert_allclose(values, getattr(b, name), err_msg=name)


def test_requests_are_sorted_and_start_at_zero(tmp_path):
    log = read_request_log(csv(tmp_path / "a.csv", COLUMNS, ROWS))
    np.testing.assert_array_equal(log.arrival_s, [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(log.prompt_tokens, [20, 30, 40])
    np.testing.assert_array_equal(log.start_s, [0.0, 1.5, 2.0])
    np.testing.assert_array_equal(log.ttft_s, [0.25, 1.0, 2.0])
    np.testing.assert_array_equal(log.latency_s, [0.25, 2.0, 3.0])


def test_one_log_in_five_forms(tmp_path):
    log = read_request_log(csv(tmp_path / "a.csv", COLUMNS, ROWS))
    same(log, read_request_log(jsonl(tmp_path / "a.jsonl", COLUMNS, ROWS)))
    vllm = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts", "input_toks", "output_toks")
    # The wall clock beside the engine's is not taken for the arrival.
    with_wall = [(*row, 1.7e9 + row[0]) for row in ROWS]
    same(log, read_request_log(jsonl(tmp_path / "b.jsonl", (*vllm, "arrival_time"), with_wall)))
    own = {"arrival_s": "t0", "last_token_s": "end"}
    header = ["t0" if c == "arrival_s" else "end" if c == "last_token_s" else c for c in COLUMNS]
    same(log, read_request_log(csv(tmp_path / "c.csv", header, ROWS), own))
    spans = [(a, s, f - a, e - a, p, o) for a, s, f, e, p, o in ROWS]
    header = [
        {"first_token_s": "ttft_s", "last_token_s": "latency_s"}.get(column, column) for column in COLUMNS
    ]
    same(log, read_request_log(csv(tmp_path / "d.csv", header, spans)))


def test_a_column_is_mapped_in_the_logs_that_have_it(tmp_path):
    """Of one server by three tools: one names the arrival otherwise, one the end, one is a known layout."""
    own = csv(tmp_path / "own.csv", ["t0" if c == "arrival_s" else c for c in COLUMNS], ROWS)
    other = jsonl(tmp_path / "other.jsonl", ["end" if c == "last_token_s" else c for c in COLUMNS], ROWS)
    known = tmp_path / "benchmarks.json"
    known.write_text(SHAPES["guidellm"].text)
    mapped = {"arrival_s": "t0", "last_token_s": "end:s"}
    logs = read_request_logs([own, other, known], mapped)
    plain = read_request_log(csv(tmp_path / "plain.csv", COLUMNS, ROWS))
    same(logs[0], plain)
    same(logs[1], plain)
    same(logs[2], read_request_log(known))
    with pytest.raises(InputError, match=r"own.csv, field 'prompt_tokens': the file has no column 'nobody'"):
        read_request_logs([own, other], mapped | {"prompt_tokens": "nobody"})


def test_stamps_of_two_clocks_are_refused(tmp_path):
    header = ["queued" if c == "arrival_s" else c for c in COLUMNS]
    rows = [(1.7e9 + row[0], *row[1:]) for row in ROWS]
    with pytest.raises(
        InputError, match=r"row 2, field 'scheduled_s': '10.5' is before the arrival; measure all"
    ):
        read_request_log(csv(tmp_path / "a.csv", header, rows), {"arrival_s": "queued"})


def test_prompt_lengths_stand_for_their_sums(tmp_path):
    sums = csv(
        tmp_path / "sums.csv",
        ("batch", "prefill_tokens", "prefill_tokens_sq", "context_tokens", "duration_s"),
        [(0, 30, 500, 0, 0.1), (3, 0, 0, 60, 0.02)],
    )
    each = csv(
        tmp_path / "each.csv",
        ("step", "batch", "prompt_tokens", "context_tokens", "seconds"),
        [(1, 0, "10 20", 0, 0.1), (2, 3, "", 60, 0.02)],
    )
    same(read_iterations(sums), read_iterations(each))
    assert read_iterations(each).is_prefill.tolist() == [True, False]
    renamed = csv(
        tmp_path / "mine.csv",
        ("b", "prompt_tokens", "ctx", "seconds"),
        [(0, "10 20", 0, 0.1), (3, "", 60, 0.02)],
    )
    same(read_iterations(sums), read_iterations(renamed, {"batch": "b", "context_tokens": "ctx"}))
