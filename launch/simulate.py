"""Route the requests of a file, or of users in closed loop, by one policy: records, summary and plots."""

from __future__ import annotations

from qos_jax.evaluation.run_config import SingleRunConfig
from qos_jax.evaluation.run_text import render_run
from qos_jax.evaluation.single_run import execute_run, load_run
from qos_jax.runs.folder import open_run_folder
from qos_jax.runs.progress import progress

from . import common
from .config_flags import define_config_flags

_SETTINGS = define_config_flags(SingleRunConfig)
_RUN = common.run_flags("runs/simulate", resume=False)


def main() -> None:
    """Check everything the flags name, then run."""
    config, run = _SETTINGS.read(), _RUN.read()
    plot = run.wants_plots()
    single = load_run(config)
    folder = open_run_folder(run.out, single.settings, overwrite=run.overwrite)
    with progress(single.num_requests) as advance:
        summary = execute_run(single, folder, plot=plot, on_progress=advance)
    print(f"{render_run(summary)}\n\nresults in {folder.path}")


if __name__ == "__main__":
    common.run(main)
