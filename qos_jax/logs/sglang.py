"""SGLang: JSON lines of ``python -m sglang.bench_serving --output-details``, a run a line.

Source: sgl-project/sglang at commit 0033168, python/sglang/bench_serving.py: ``input_lens``, ``output_lens``,
``ttfts``, ``itls`` and ``errors`` in seconds and tokens. It writes no start times: those of a run at
--request-rate inf follow from --max-concurrency.
"""

from __future__ import annotations

from qos_jax.logs.layout import Layout
from qos_jax.logs.parallel import read_runs

SGLANG_BENCH = Layout(
    "SGLang bench_serving result",
    ("total_output_tokens_retokenized", "completed"),
    read=lambda source: read_runs(source, "SGLang bench_serving result", "--output-details"),
)
