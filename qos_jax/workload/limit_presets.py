"""Service levels that published benchmarks hold servers to, by name."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class LimitPreset:
    """Limits on one request, as a benchmark states them; those it does not state are infinite."""

    ttft_limit_s: float  # seconds to the first token
    tpot_limit_s: float  # seconds per output token after the first
    source: str  # who states them, for what

    @property
    def limits(self) -> dict[str, float]:
        """The limits by their names in ``serving.LIMITS``."""
        return {"ttft_limit_s": self.ttft_limit_s, "tpot_limit_s": self.tpot_limit_s}


# inference_rules.adoc of github.com/mlcommons/inference_policies at ac93e89 (2026-07-23), the table of
# benchmarks.
_MLPERF = "MLPerf Inference rules, 2026-07-23"
# evaluation/ae-scripts/e2e/_plot.py of github.com/LLMServe/DistServe at 82831f1, figures 8 and 9 of Zhong et
# al., "DistServe", OSDI 2024, which counts the share of requests that keep both.
_DISTSERVE = "DistServe, OSDI 2024, artifact"

LIMIT_PRESETS = {
    "mlperf_llama2_70b": LimitPreset(2.0, 0.2, f"{_MLPERF}: Llama2-70b, conversational"),
    "mlperf_llama2_70b_interactive": LimitPreset(0.45, 0.04, f"{_MLPERF}: Llama2-70b, interactive"),
    "mlperf_llama3_8b": LimitPreset(2.0, 0.1, f"{_MLPERF}: Llama3.1-8B, conversational"),
    "mlperf_llama3_8b_interactive": LimitPreset(0.5, 0.03, f"{_MLPERF}: Llama3.1-8B, interactive"),
    "mlperf_llama3_405b": LimitPreset(6.0, 0.175, f"{_MLPERF}: Llama3.1-405B, server"),
    "mlperf_llama3_405b_interactive": LimitPreset(4.5, 0.08, f"{_MLPERF}: Llama3.1-405B, interactive"),
    "distserve_chat_13b": LimitPreset(0.25, 0.1, f"{_DISTSERVE}: OPT-13B on ShareGPT"),
    "distserve_chat_66b": LimitPreset(0.4, 0.1, f"{_DISTSERVE}: OPT-66B on ShareGPT"),
    "distserve_code_66b": LimitPreset(0.125, 0.2, f"{_DISTSERVE}: OPT-66B on HumanEval"),
    "distserve_summary_66b": LimitPreset(15.0, 0.15, f"{_DISTSERVE}: OPT-66B on LongBench"),
}

PRESET_HELP = (
    "limits on TTFT and TPOT that a published benchmark sets, and none on latency per token; each limit flag "
    "given replaces its own: "
    + "; ".join(
        f"{name} = {preset.ttft_limit_s:g} s, {preset.tpot_limit_s:g} s/token ({preset.source})"
        for name, preset in LIMIT_PRESETS.items()
    )
)
