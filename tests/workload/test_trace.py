"""Every trace format reads to the same trace, with faults named and skipped rows counted."""

import pathlib

import jax
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.workload import Trace, read_requests, read_trace, scale_rate, split, window, write_requests
from qos_jax.workload.requests import requests_of_trace
from qos_jax.workload.trace import warn_of_prefixes

FORMATS = {
    "azure2023": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.1805900,396,109\n",
    "azure2024": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00+00:00,374,44\n2024-05-10 02:00:00.500000+02:00,396,109\n",
    "mooncake": '{"timestamp": 1000, "input_length": 374, "output_length": 44, "hash_ids": [1]}\n'
    '{"timestamp": 1500, "input_length": 396, "output_length": 109, "hash_ids": [1, 2]}\n',
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,374,44,418,API log\n5.2,GPT-4,99,0,99,API log\n5.5,GPT-4,396,109,505,Conversation log\n",
    "generic": "output_tokens,arrival_s,prompt_tokens\n44,3.0,374\n109,3.5,396\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_agree(tmp_path, name):
    path = tmp_path / f"{name}.txt"
    path.write_text(FORMATS[name])
    trace = read_trace(path)
    np.testing.assert_allclose(trace.arrival_s, [0.0, 0.5], atol=1e-6)
    np.testing.assert_array_equal(trace.prompt_tokens, [374, 396])
    np.testing.assert_array_equal(trace.output_tokens, [44, 109])
    assert trace.prompt_tokens.dtype == trace.output_tokens.dtype == np.int32
    assert (trace.name, trace.skipped_rows) == (name, int(name == "burstgpt"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a,b\n1,2\n", "no known layout"),
        ("arrival_s,prompt_tokens,output_tokens\n", "no request"),
        ("arrival_s,prompt_tokens,output_tokens\n1,5,5\n0.5,5,5\n", "row 3, field 'arrival_s'"),
        ("arrival_s,prompt_tokens,output_tokens\n1,0,5\n", "row 2, field 'prompt_tokens'"),
        ("arrival_s,prompt_tokens,output_tokens\n1,5,x\n", "row 2, field 'output_tokens'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,5,5\n", "row 2, field 'TIMESTAMP'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n,5,5\n", "row 2, field 'TIMESTAMP'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,-5,5\n", "ContextTokens"),
        ('{"timestamp": 1, "input_length": 5}\n', "Mooncake trace comes nearest, but lacks output_length"),
        ('{"timestamp": 1, "input_length": 5, "output_length": "x"}\n', "output_length"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 1.5}\n', "output_length"),
        ('{"timestamp": 1,\n', "no JSON"),
    ],
)
def test_faults_are_named(tmp_path, text, fault):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=fault):
        read_trace(path)


def test_hashes_of_blocks_say_what_is_shared(tmp_path, caplog):
    path = tmp_path / "mooncake.jsonl"
    path.write_text(FORMATS["mooncake"])
    trace = read_trace(path)
    for entries, of_table, says in (
        (4, False, None),
        (0, False, "prefix_entries"),
        (4, True, "not a table's"),
    ):
        caplog.clear()
        warn_of_prefixes(trace, entries, rows_of_a_table=of_table)
        assert (says is None and not caplog.text) or says in caplog.text
    requests = requests_of_trace(trace, 2)
    write_requests(tmp_path / "w.csv", requests, ["a", "b"])
    again = read_requests(tmp_path / "w.csv", ["a", "b"])
    jax.tree.map(np.testing.assert_array_equal, again.table, requests.table)
    prefixes = trace.prefixes
    np.testing.assert_array_equal(prefixes.tokens, [256, 256])  # the one size that explains 1 and 2 blocks
    np.testing.assert_array_equal(prefixes.repeated_tokens, [0, 256])
    path.write_text(FORMATS["mooncake"].replace("[1, 2]", "[1, 2, 3, 4, 5, 6, 7]"))
    trace = read_trace(path)
    assert trace.prefixes is None
    assert "hash_ids are not read" in trace.notes[-1]
    assert trace.notes[-1] in caplog.text


def make_trace(num=10):
    whole = np.arange(1, num + 1, dtype=np.int32)
    return Trace(np.arange(num) * 2.0, whole, whole, "t")


def test_cutting_and_scaling():
    trace = make_trace()
    part = window(trace, 4.0, 10.0)
    np.testing.assert_array_equal(part.arrival_s, [0, 2, 4])
    np.testing.assert_array_equal(part.prompt_tokens, [3, 4, 5])
    first, rest = split(trace, 0.3)
    assert (first.num_requests, rest.num_requests, rest.arrival_s[0]) == (3, 7, 0.0)
    assert scale_rate(trace, 4.0).rate_per_s == pytest.approx(4 * trace.rate_per_s)
    for bad in (lambda: window(trace, 99, 100), lambda: split(trace, 1.0), lambda: scale_rate(trace, 0.0)):
        with pytest.raises(InputError):
            bad()


def test_the_real_azure_trace_reads():
    path = pathlib.Path(__file__).parents[3] / "shared/data/azure2023/AzureLLMInferenceTrace_conv.csv"
    if not path.exists():
        pytest.skip("the Azure trace is not at ../shared")
    trace = read_trace(path)
    assert (trace.num_requests, trace.skipped_rows) == (19_366, 0)
    assert trace.rate_per_s == pytest.approx(5.53, abs=0.01)
    assert np.median(trace.prompt_tokens) == 1020
