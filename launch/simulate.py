"""Route the requests of a file through a fleet by one policy: records, a summary and plots in a folder."""

from __future__ import annotations

import dataclasses

from absl import flags

from qos_jax.evaluation.single_run import (
    MAX_SEED,
    SingleRunConfig,
    execute_run,
    load_run,
    render_run,
)
from qos_jax.policies import HEURISTICS, ORACLES, REPLAYS
from qos_jax.runs.folder import open_run_folder
from qos_jax.runs.progress import progress
from qos_jax.serving import SCHEDULERS

from . import common

_FLEET = flags.DEFINE_string(
    "fleet", None, "CSV file of the experts, such as data/fleets/edge6.csv.", required=True
)
_REQUESTS = flags.DEFINE_string(
    "requests",
    None,
    "CSV file of the requests: arrival_s, prompt_tokens, and output_tokens, quality and, if known, "
    "predicted_output_tokens and predicted_quality, each once or as name.EXPERT per expert; for the policy "
    "'assigned' also expert.",
    required=True,
)
_POLICY = flags.DEFINE_string(
    "policy", None, f"Who routes: one of {', '.join((*HEURISTICS, *ORACLES, *REPLAYS))}.", required=True
)
_SCHEDULER = flags.DEFINE_enum("scheduler", SCHEDULERS[0], SCHEDULERS, "Scheduler of every expert.")
_LIMIT = flags.DEFINE_float(
    "latency_limit_s", None, "Latency limit L, seconds of E2E latency per output token.", required=True
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the policy's own randomness.", lower_bound=0, upper_bound=MAX_SEED
)
_ALLOW_DROP = flags.DEFINE_bool("allow_drop", False, "Let greedy policies drop what no expert gains from.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder for config.json, records.csv, summary.json and plots/.", required=True
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the results of another run in --out.")
_PLOT = flags.DEFINE_bool("plot", None, "Draw plots; by default wherever matplotlib is installed.")


def main() -> None:
    """Check everything the flags name, then run."""
    config = SingleRunConfig(
        fleet=_FLEET.value,
        requests=_REQUESTS.value,
        policy=_POLICY.value,
        latency_limit_s=_LIMIT.value,
        scheduler=_SCHEDULER.value,
        seed=_SEED.value,
        allow_drop=_ALLOW_DROP.value,
    )
    plot = common.wants_plots(_PLOT)
    run = load_run(config)
    folder = open_run_folder(_OUT.value, dataclasses.asdict(config), overwrite=_OVERWRITE.value)
    with progress(len(run.requests.arrival_s)) as advance:
        summary = execute_run(run, folder, plot=plot, on_progress=advance)
    print(f"{render_run(summary)}\n\nwritten to {folder.path}")


if __name__ == "__main__":
    common.run(main)
