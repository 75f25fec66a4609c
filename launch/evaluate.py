"""Compare routers on identical requests: a table with confidence intervals, plots and a run folder."""

from __future__ import annotations

import sys

from qos_jax.evaluation import comparison
from qos_jax.evaluation.comparison_text import render_text
from qos_jax.runs.folder import check_run_folder, open_run_folder
from qos_jax.runs.progress import progress

from . import common
from .config_flags import define_config_flags

_SETTINGS = define_config_flags(comparison.ComparisonConfig)
_RUN = common.run_flags("runs/evaluate")


def main() -> None:
    """Run the comparison that the flags ask for."""
    run = _RUN.read()
    plan = comparison.load_comparison(_SETTINGS.read())
    plot = run.wants_plots()
    check_run_folder(run.out, plan.settings, overwrite=run.overwrite)
    cases = comparison.draw_cases(plan)
    folder = open_run_folder(run.out, plan.settings, overwrite=run.overwrite, resume=run.resume)
    if plan.setting.source_is_drawn:
        note = "the fleet's models have no figures; qualities and lengths of drawn experts stand in"
        print(f"note: {note}", file=sys.stderr)
    with progress(comparison.work_requests(plan, cases)) as advance:
        result = comparison.execute_comparison(plan, cases, folder, plot=plot, on_progress=advance)
    for note in comparison.notes(plan.setting.serving.scheduler, result, plan.worlds):
        print(f"note: {note}", file=sys.stderr)
    print(f"{render_text(result)}\n\nresults in {folder.path}")


if __name__ == "__main__":
    common.run(main)
