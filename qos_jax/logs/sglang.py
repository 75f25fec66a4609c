"""SGLang: JSON lines of ``python -m sglang.bench_serving --output-details``, a run a line.

Source: sgl-project/sglang, python/sglang/bench_serving.py (0.4 to 0.5): ``input_lens``, ``output_lens``,
``ttfts``, ``itls``, ``errors`` in seconds and tokens; it writes no start times.
"""

from __future__ import annotations

from qos_jax.logs.layout import Layout
from qos_jax.logs.parallel import read_runs

SGLANG_BENCH = Layout(
    "SGLang bench_serving result",
    ("total_output_tokens_retokenized", "completed"),
    read=lambda source: read_runs(source, "SGLang bench_serving result", "--output-details"),
)
