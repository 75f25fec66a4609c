"""Build a request table from a log of prompts and answers: predictors fitted, predictions out of fold.

Formats of --log, known by its content unless --format says it: the generic one, the layout of lookahead6 (a
folder), and files that you downloaded of SPROUT (CARROT), MixInstruct, RouterBench, LLMRouterBench and
RouteLLM. All but the layout of lookahead6 are:
"""

from __future__ import annotations

import dataclasses

from qos_jax.errors import input_error
from qos_jax.runs.folder import check_run_folder, open_run_folder
from qos_jax.runs.progress import progress
from qos_jax.tables.answers import benchmarks as answers_benchmarks
from qos_jax.tables.answers import generic as answers_generic
from qos_jax.tables.answers import public as answers_public
from qos_jax.tables.fitted_table import fit_table
from qos_jax.tables.preparation import PreparationConfig, load_preparation
from qos_jax.tables.table_folder import preparation_settings, verify_table, write_prepared

from . import common
from .config_flags import define_config_flags

_FORMATS = (answers_generic, answers_public, answers_benchmarks)
__doc__ = "\n".join([str(__doc__), *(str(module.__doc__) for module in _FORMATS)])  # what --help shows


@dataclasses.dataclass(frozen=True)
class _Existing:
    verify: str | None = None  # an existing table to summarise and plot, instead of making one


_SETTINGS = define_config_flags(PreparationConfig)
_EXISTING = define_config_flags(_Existing)
_RUN = common.run_flags("runs/table", resume=False)


def main() -> None:
    """Make a table, or verify one."""
    run, table = _RUN.read(), _EXISTING.read().verify
    plot = run.wants_plots()
    if table is not None:
        if _SETTINGS.given():
            fault = "is given beside --log or other flags of a new table"
            raise input_error(fault, field="verify", remedy="leave those out")
        print(verify_table(table, run.out, overwrite=run.overwrite, plot=plot))
        return
    plan = load_preparation(_SETTINGS.read())
    settings = preparation_settings(plan)
    check_run_folder(run.out, settings, overwrite=run.overwrite)
    with progress(plan.work, "epochs") as advance:
        prepared = fit_table(plan, advance)
    folder = open_run_folder(run.out, settings, overwrite=run.overwrite)
    text = write_prepared(folder, plan, prepared, plot=plot)
    print(f"{text}\n\nresults in {folder.path}")


if __name__ == "__main__":
    common.run(main)
