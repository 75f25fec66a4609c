"""Fit an expert's profile to measurements of a server: iteration logs, request logs, or a roofline."""

from __future__ import annotations

import contextlib
from typing import Any

from absl import flags

from qos_jax.profiling import COEFFICIENTS, RooflineConfig
from qos_jax.profiling.profile_plan import ProfileConfig, load_profile
from qos_jax.profiling.profile_report import render_profile
from qos_jax.profiling.profile_run import execute_profile
from qos_jax.runs.folder import check_run_folder, open_run_folder
from qos_jax.runs.progress import progress
from qos_jax.serving import SCHEDULERS

from . import common

_EXPERT = flags.DEFINE_string("expert", None, "Name of the expert in the fleet.", required=True)
_ITERATIONS = flags.DEFINE_string(
    "iterations",
    None,
    "CSV file of iterations: batch, context_tokens, duration_s, and for prefill prefill_tokens with "
    "prefill_tokens_sq, or prompt_tokens (lengths separated by spaces).",
)
_REQUESTS = flags.DEFINE_string(
    "requests",
    None,
    "JSON lines or CSV of all requests of one server: arrival_s, prompt_tokens, output_tokens and "
    "first_token_s, last_token_s or ttft_s, latency_s; names of vLLM's benchmark logs are known.",
)
_ROOFLINE = flags.DEFINE_bool("roofline", False, "No measurement: a roofline of the model and GPU below.")
_COLUMN = flags.DEFINE_multi_string("column", [], "OURS=THEIRS: the log's own name of a column; repeatable.")
_FIX = flags.DEFINE_multi_string(
    "fix",
    [],
    f"NAME=VALUE in seconds: a coefficient given, one of {', '.join(COEFFICIENTS)}; repeatable.",
)
_SCHEDULER = flags.DEFINE_enum(
    "scheduler",
    ProfileConfig.scheduler,
    list(SCHEDULERS),
    "Scheduler of the logged server.",
)
_MAX_RUNNING = flags.DEFINE_integer("max_running", ProfileConfig.max_running, "Requests batched at once.")
_MAX_WAITING = flags.DEFINE_integer(
    "max_waiting", ProfileConfig.max_waiting, "Requests queued before rejection, for the fleet's row."
)
_BUDGET = flags.DEFINE_integer(
    "max_batched_tokens", ProfileConfig.max_batched_tokens, "Tokens of an iteration."
)
_KV = flags.DEFINE_integer(
    "kv_capacity_tokens",
    None,
    "Tokens the KV cache holds; default for a roofline: what --memory_gb leaves.",
)
_RTT = flags.DEFINE_float("network_rtt_s", ProfileConfig.network_rtt_s, "For the fleet's row, seconds.")
_BUSY = flags.DEFINE_float("busy_power_w", ProfileConfig.busy_power_w, "For the fleet's row, watts.")
_IDLE = flags.DEFINE_float("idle_power_w", ProfileConfig.idle_power_w, "For the fleet's row, watts.")
_TEST = flags.DEFINE_float(
    "test_share",
    ProfileConfig.test_share,
    "Share kept out of a second fit that predicts it: the last requests, or iterations at random.",
)
_SEED = flags.DEFINE_integer(
    "seed", ProfileConfig.seed, "Of the starting points and of the choice of test iterations."
)
_APPEND = flags.DEFINE_string("append_to", None, "Fleet CSV that gets the row too.")

_PARAMETERS = flags.DEFINE_float("parameters", None, "Roofline: weights of the model, such as 8.03e9.")
_LAYERS = flags.DEFINE_integer("layers", None, "Roofline: layers.")
_HIDDEN = flags.DEFINE_integer("hidden_size", None, "Roofline: hidden size.")
_KV_HEADS = flags.DEFINE_integer("kv_heads", None, "Roofline: key-value heads.")
_HEAD_DIM = flags.DEFINE_integer("head_dim", None, "Roofline: size of a head.")
_BANDWIDTH = flags.DEFINE_float("bandwidth_gb_per_s", None, "Roofline: memory bandwidth, 10^9 bytes / s.")
_TFLOP = flags.DEFINE_float("tflop_per_s", None, "Roofline: dense TFLOP/s at the weights' precision.")
_MEMORY = flags.DEFINE_float("memory_gb", None, "Roofline: memory, 10^9 bytes, for the KV capacity.")
_WEIGHT_BYTES = flags.DEFINE_float("weight_bytes", RooflineConfig.weight_bytes, "Roofline: bytes per weight.")
_KV_BYTES = flags.DEFINE_float("kv_bytes", RooflineConfig.kv_bytes, "Roofline: bytes per cached value.")
_BANDWIDTH_SHARE = flags.DEFINE_float(
    "bandwidth_efficiency", RooflineConfig.bandwidth_efficiency, "Roofline: share of the bandwidth reached."
)
_COMPUTE_SHARE = flags.DEFINE_float(
    "compute_efficiency", RooflineConfig.compute_efficiency, "Roofline: share of the FLOP/s reached."
)
_MEMORY_SHARE = flags.DEFINE_float(
    "memory_utilisation",
    RooflineConfig.memory_utilisation,
    "Roofline: share of the memory for weights and KV.",
)
_OVERHEAD = flags.DEFINE_float(
    "overhead_s", RooflineConfig.overhead_s, "Roofline: seconds on every iteration."
)

_OUT = flags.DEFINE_string(
    "out", None, "Folder for config.json, profile.json, profile.csv and plots/.", required=True
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the results of another run in --out.")
_RESUME = flags.DEFINE_bool("resume", False, "Go on with the same fit of requests where it was stopped.")
_PLOT = flags.DEFINE_bool("plot", None, "Draw a plot; by default wherever matplotlib is installed.")

_ROOFLINE_FLAGS = (
    *(_PARAMETERS, _LAYERS, _HIDDEN, _KV_HEADS, _HEAD_DIM, _BANDWIDTH, _TFLOP, _MEMORY, _WEIGHT_BYTES),
    *(_KV_BYTES, _BANDWIDTH_SHARE, _COMPUTE_SHARE, _MEMORY_SHARE, _OVERHEAD),
)


def _roofline() -> RooflineConfig:
    given: dict[str, Any] = {flag.name: flag.value for flag in _ROOFLINE_FLAGS}
    return RooflineConfig(**given)


def main() -> None:
    """Check everything the flags name, then fit."""
    plan = load_profile(
        ProfileConfig(
            expert=_EXPERT.value,
            iterations=_ITERATIONS.value,
            requests=_REQUESTS.value,
            roofline=_roofline() if _ROOFLINE.value else None,
            column=tuple(_COLUMN.value),
            fix=tuple(_FIX.value),
            scheduler=_SCHEDULER.value,
            max_running=_MAX_RUNNING.value,
            max_waiting=_MAX_WAITING.value,
            max_batched_tokens=_BUDGET.value,
            kv_capacity_tokens=_KV.value,
            network_rtt_s=_RTT.value,
            busy_power_w=_BUSY.value,
            idle_power_w=_IDLE.value,
            test_share=_TEST.value,
            seed=_SEED.value,
            append_to=_APPEND.value,
        )
    )
    plot = common.wants_plots(_PLOT)
    check_run_folder(_OUT.value, plan.settings, overwrite=_OVERWRITE.value)
    folder = open_run_folder(_OUT.value, plan.settings, overwrite=_OVERWRITE.value, resume=_RESUME.value)
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(progress(plan.replays, "replays")) if plan.replays else None
        summary = execute_profile(plan, folder, plot=plot, on_progress=advance)
    print(f"{render_profile(summary)}\n\nwritten to {folder.path}")


if __name__ == "__main__":
    common.run(main)
