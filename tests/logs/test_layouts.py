"""Every layout reads to the same requests, as a request log and as a trace, gzipped or not."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.logs import LAYOUTS, read_logged
from qos_jax.profiling import read_request_log
from qos_jax.workload import read_trace
from tests.logs.shapes import SHAPES
from tests.logs.tool_files import ARRIVAL_S, LATENCY_S, OUTPUT_TOKENS, PROMPT_TOKENS, TTFT_S

REBUILT = ("vllm_appended",)  # its second run is put a second after the first


def test_every_layout_has_a_shape():
    assert {shape.layout for shape in SHAPES.values()} == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize("name", SHAPES)
def test_read_as_the_same_requests(tmp_path, name):
    shape = SHAPES[name]
    path = tmp_path / "given.txt.gz"  # a layout is recognised by its content
    path.write_bytes(gzip.compress(shape.text.encode()))
    logged = read_logged(path)
    assert logged.layout == shape.layout
    assert logged.left_out == shape.left_out
    notes = " | ".join(logged.all_notes())
    assert all(part in notes for part in shape.notes), notes

    trace = read_trace(path)
    # The request without output of the replay report asks for the one token that stands for it.
    np.testing.assert_array_equal(trace.output_tokens, OUTPUT_TOKENS)
    np.testing.assert_array_equal(trace.prompt_tokens, PROMPT_TOKENS)
    if name not in REBUILT:
        np.testing.assert_allclose(trace.arrival_s, ARRIVAL_S, atol=1e-6)
    assert not any(note.startswith("times: ") for note in trace.notes)
    assert (trace.name, trace.skipped_rows) == ("given", sum(shape.left_out.values()))
    if not shape.has_times:
        with pytest.raises(InputError, match="holds no times of tokens"):
            read_request_log(path)
        return
    log = read_request_log(path)
    np.testing.assert_array_equal(log.arrival_s, trace.arrival_s)
    np.testing.assert_array_equal(log.prompt_tokens, PROMPT_TOKENS)
    np.testing.assert_allclose(log.ttft_s, TTFT_S, atol=1e-6)
    np.testing.assert_allclose(log.latency_s, LATENCY_S, atol=1e-6)
    assert (log.left_out, log.notes) == (shape.left_out, logged.all_notes())
