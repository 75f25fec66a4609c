"""What a file of requests is refused for, and which mappings of its columns are read."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.logs import read_logged
from qos_jax.profiling import read_iterations, read_request_log
from qos_jax.workload import read_trace
from tests.logs.shapes import SHAPES
from tests.logs.tool_files import LATENCY_S, REQUESTS, TTFT_S, VLLM, lines, run_of_lists, table

SGLANG = {"total_output_tokens_retokenized": 18, "max_concurrency": 2, "request_rate": float("inf")}
LISTS = ("input_lens", "output_lens", "ttfts", "itls", "errors", "generated_texts")


@pytest.fixture
def given(tmp_path):
    """Return a writer of a file of a text."""

    def write(text, name="given.txt"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(("fields", "flag"), [(VLLM, "--save-detailed"), (SGLANG, "--output-details")])
def test_summaries_alone_are_refused_with_the_flag_to_give(given, fields, flag):
    run = {name: value for name, value in run_of_lists(**fields).items() if name not in LISTS}
    run |= {"latencies": [0.5], "queue_times": [0.0]}
    with pytest.raises(InputError, match=f"written without {flag}; run the benchmark again with {flag}"):
        read_logged(given(json.dumps(run)))


def test_starts_without_stamps_follow_from_the_limit_or_are_refused(given):
    logged = read_logged(given(lines([run_of_lists(**SGLANG)])))
    # Two at once: the third starts as the second ends, the fourth as the first does, the failed one last.
    np.testing.assert_allclose(logged.values["arrival_s"], [0.0, 0.0, 0.0625, 0.5, 0.75])
    assert "rebuilt for 2 requests at once" in logged.all_notes()[1]
    with pytest.raises(
        InputError, match=r"field 'start_times': holds no time of arrival.* request_rate 4 .*inf"
    ):
        read_logged(given(lines([run_of_lists(**SGLANG | {"request_rate": 4})])))


@pytest.mark.parametrize("value", [[0.1], "x", [0.1, "x", 0.1, 0.1, 0.1]])
def test_lists_that_do_not_match_are_refused(given, value):
    with pytest.raises(InputError, match="row 1, field 'ttfts': is no list of"):
        read_logged(given(lines([run_of_lists(**VLLM, start_times=[0.0] * 5, ttfts=value)])))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arrived_at,num_prefill_tokens,tokens\n1,2,3\n", "Vidur processed trace .* lacks num_decode_tokens"),
        (
            '{"arrival_time_ms": 1, "input_length": 2, "output_length": 3}\n',
            "ai-dynamo.* lacks first_token_ms",
        ),
        ("arrival_s,prompt_tokens\n1,2\n", "generic .* lacks output_tokens"),
        (
            '{"a": 1,\n "records": [{"index": 1}]}\n',
            "one JSON document of no known layout: it has a, records;",
        ),
        (
            ",".join(f"a_long_name_of_column_{k}" for k in range(99)) + "\n",
            r"it has a_long_name_of_column_0.* \.\.\.",
        ),
        ('{"a": [' + "1," * 9_999 + "1]}\n", "of no known layout"),
    ],
)
def test_no_known_layout(given, tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)  # the path counts in the length, so a short one
    with pytest.raises(InputError, match=says) as raised:
        read_logged(given(text).name)
    assert len(str(raised.value)) <= 400
    assert "Mooncake" in str(raised.value)
    assert "; name arrival_s, prompt_tokens, output_tokens, or give one of" in str(raised.value)
    with pytest.raises(InputError, match="; map columns, as --column=arrival_s=THEIRS:ms, or give one of"):
        read_request_log(given(text))


def test_a_document_where_lines_are_meant_and_a_damaged_file(given, tmp_path):
    records = [json.loads(line) for line in SHAPES["mooncake"].text.splitlines()]
    assert read_trace(given(json.dumps(records, indent=1))).num_requests == 4
    with pytest.raises(InputError, match="is one JSON document where one JSON object a line is meant"):
        read_logged(given(lines(records[:1]) + json.dumps(records, indent=1)))
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(SHAPES["burstgpt"].text.encode())[:40])
    with pytest.raises(InputError, match="is a damaged gzip file"):
        read_logged(tmp_path / "cut.csv.gz")


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_implausible_times_are_refused_with_the_likely_unit(given, unit):
    per_s = {"ms": 1e3, "us": 1e6, "ns": 1e9}[unit]
    names = ("t0", "prompt_tokens", "output_tokens", "t1", "t2")
    rows = [(a * per_s, p, n, (a + t) * per_s, (a + e) * per_s) for a, p, n, t, e in REQUESTS]
    path = given(table(",".join(names), rows))
    columns = {"arrival_s": "t0", "first_token_s": "t1", "last_token_s": "t2"}
    with pytest.raises(InputError, match=rf"field 't2': a median .* likely in {unit}, not s; .*=t2:{unit}"):
        read_request_log(path, columns)
    log = read_request_log(path, {ours: f"{theirs}:{unit}" for ours, theirs in columns.items()})
    np.testing.assert_allclose(log.latency_s, LATENCY_S)
    np.testing.assert_allclose(log.ttft_s, TTFT_S)


def test_prefill_in_another_unit_is_refused(given):
    rows = [(a, p, n, t * 1e6, t * 1e6 + e) for a, p, n, t, e in REQUESTS]
    path = given(table("arrival_s,prompt_tokens,output_tokens,ttft_s,latency_s", rows))
    with pytest.raises(InputError, match=r"field 'ttft_s': at least .* s per prompt token .* likely in us"):
        read_request_log(path)


def test_mapping_reaches_nested_fields_and_names_with_colons(given):
    records = [
        {"at:ms": a, "n": {"in": p, "out": n}, "ttft": t, "e2e": {"ms": 1e3 * e}}
        for a, p, n, t, e in REQUESTS
    ]
    columns = {"arrival_s": "at:ms", "prompt_tokens": "n.in", "output_tokens": "n.out", "ttft_s": "ttft:s"}
    log = read_request_log(given(lines(records)), columns | {"latency_s": "e2e.ms:ms"})
    np.testing.assert_allclose(log.latency_s, LATENCY_S)
    with pytest.raises(InputError, match="field 'output_tokens': 'ms' is no unit of it"):
        read_request_log(given(lines(records)), columns | {"output_tokens": "n.out:ms"})
    with pytest.raises(InputError, match="'min' is no unit; write ttft_s=ttft:unit, of s, ms, us, ns"):
        read_request_log(given(lines(records)), columns | {"ttft_s": "ttft:min"})
    with pytest.raises(
        InputError, match="the fields of the aiperf profile export are known; leave out --column"
    ):
        read_logged(given(SHAPES["aiperf"].text), columns)


@pytest.mark.parametrize("unit", ["", ":ms"])
def test_a_mapping_without_a_unit_takes_that_of_the_name(given, unit):
    log = read_request_log(given(SHAPES["dynamo"].text), {"arrival_s": f"arrival_time_ms{unit}"})
    np.testing.assert_allclose(log.ttft_s, TTFT_S)
    path = given(
        table(
            "t_ms,prompt_tokens,output_tokens,x,e_us",
            [(1e3 * a, p, n, t, 1e6 * e) for a, p, n, t, e in REQUESTS],
        )
    )
    log = read_request_log(path, {"arrival_s": f"t_ms{unit}", "ttft_s": "x", "latency_s": "e_us"})
    np.testing.assert_allclose(log.latency_s, LATENCY_S)


def test_a_missing_column_suggests_only_what_is_like_it(given):
    path = given("arrival_s,prompt_tokens,output_tokens,latency_s,first_tok_s\n0,5,5,1,0.5\n")
    with pytest.raises(InputError, match=r"'first_token_s': column is missing \(did you mean 'first_tok_s'"):
        read_request_log(path)
    path = given("arrival_s,prompt_tokens,output_tokens,latency_s,session\n0,5,5,1,0.5\n")
    with pytest.raises(
        InputError, match="'first_token_s': column is missing; give arrival_s, first_token_s, lat"
    ):
        read_request_log(path)


def test_nothing_answered_and_a_time_left_out(given):
    header = "queued_ts,first_token_ts,last_token_ts,input_toks,output_toks"
    with pytest.raises(InputError, match=r"holds no answered request \(1 aborted\)"):
        read_request_log(given(table(header, [(1, 0, 0, 5, 0)])))
    # One that was aborted after three tokens is load of three tokens; one with tokens needs its times.
    log = read_request_log(given(table(header, [(1, 0, 0, 5, 0), (2, 3, 4, 5, 3), (1, 2, 2, 5, 0)])))
    assert (log.output_tokens.tolist(), log.left_out) == ([3], {"aborted": 2})
    with pytest.raises(InputError, match="row 2, field 'last_token_ts': is empty"):
        read_request_log(given(table(header, [(1, 2, "", 5, 7)])))


def test_iterations_in_other_units(given):
    path = given("batch,context_tokens,dt,prefill_tokens,prefill_tokens_sq\n2,30,25,0,0\n", "log.csv")
    assert read_iterations(path, {"duration_s": "dt:ms"}).duration_s.tolist() == [0.025]
    path = given("batch,context_tokens,dt\n2,30,soon\n", "log.csv")
    with pytest.raises(InputError, match="row 2, field 'duration_s': 'soon' is not a number"):
        read_iterations(path, {"duration_s": "dt:ms"})


@pytest.mark.parametrize(
    ("shape", "old", "new", "says"),
    [
        ("guidellm", '"request_start_time": ', '"request_start_time": "x', "is no JSON"),
        ("guidellm", '"errored": [{', '"errored": [7, {', "is not as the guidellm benchmarks is written"),
        ("aiperf", '"unit": "ms"', '"unit": "h"', "is not as the aiperf profile export is written"),
        ("aiperf", '"request_start_ns": 1', '"request_start_ns": 0.1', "row 1, .*is no time in nanoseconds"),
        ("inference_perf", '"completion_tokens": 1', '"completion_tokens": 1.5', "'1.5' is out of range"),
        ("inference_perf", '"prompt_tokens": 20', '"prompt_tokens": Infinity', "row 3, .* is not finite"),
        ("dynamo", '"reused_input_tokens": 15', '"reused_input_tokens": "x"', "is not as the ai-dynamo"),
        ("mooncake", "[1, 2]", "[[1], 2]", "is not as the Mooncake trace is written"),
        (
            "burstgpt",
            "5.0,s,1,GPT-4,30",
            "5.0,s,1,GPT-4,3.5",
            "row 2, field 'Request tokens': '3.5' is not an int",
        ),
    ],
)
def test_spoilt_files_are_refused_in_one_line(given, shape, old, new, says):
    text = SHAPES[shape].text
    assert old in text
    with pytest.raises(InputError, match=says) as raised:
        read_request_log(given(text.replace(old, new, 1)))
    assert "\n" not in str(raised.value)


def test_cached_tokens_of_a_generic_log_are_said_and_one_that_is_no_number_is_refused(given):
    names = "arrival_s,prompt_tokens,output_tokens,ttft_s,latency_s,cached_tokens"
    rows = [(*row, cached) for row, cached in zip(REQUESTS, ("", 0, *[5] * len(REQUESTS)), strict=False)]
    notes = read_logged(given(table(names, rows))).all_notes()
    share = 100 * 5 * (len(rows) - 2) / sum(row[1] for row in rows)
    assert any(note.startswith(f"shared prefixes are not simulated: they are {share:.3g}%") for note in notes)
    rows[1] = (*rows[1][:-1], "many")
    with pytest.raises(InputError, match="row 3, field 'cached_tokens': 'many' is no number; give tokens"):
        read_logged(given(table(names, rows)))
