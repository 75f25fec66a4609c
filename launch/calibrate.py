"""Fit an expert's profile to measurements of a server: iteration logs, request logs, or a roofline."""

from __future__ import annotations

import contextlib
import dataclasses
import sys

from qos_jax.profiling.profile_plan import ProfileConfig, load_profile
from qos_jax.profiling.profile_report import render_profile
from qos_jax.profiling.profile_run import execute_profile
from qos_jax.runs.folder import open_run_folder
from qos_jax.runs.progress import progress

from . import common
from .config_flags import define_config_flags


@dataclasses.dataclass(frozen=True)
class AcceptConfig:
    """What a run does with a fit that does not explain its own log."""

    accept: bool = False  # end with exit code 0 all the same


_ACCEPT = define_config_flags(AcceptConfig)
_SETTINGS = define_config_flags(ProfileConfig)
_RUN = common.run_flags("runs/calibrate")


def main() -> None:
    """Check everything the flags name, then fit."""
    run = _RUN.read()
    plan = load_profile(_SETTINGS.read())
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    plot = run.wants_plots()
    folder = open_run_folder(run.out, plan.settings, overwrite=run.overwrite, resume=run.resume)
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(progress(plan.replays, "replays")) if plan.replays else None
        summary = execute_profile(plan, folder, plot=plot, on_progress=advance)
    print(f"{render_profile(summary)}\n\nresults in {folder.path}")
    faults = summary.get("faults", ())
    for fault in faults:
        print(f"warning: {fault}", file=sys.stderr)
    if faults and not _ACCEPT.read().accept:
        print("give --accept to use this fit all the same", file=sys.stderr)
        sys.exit(common.EXIT_POOR_FIT)


if __name__ == "__main__":
    common.run(main)
