"""Build a request table from a log of prompts and answers: predictors fitted, predictions out of fold.

Formats of --log, told by its content unless --format says it: the generic one, the layout of lookahead6 (a
folder), and SPROUT (CARROT) and MixInstruct files that you downloaded. The first and the last two are:
"""

from __future__ import annotations

import dataclasses
import sys

from absl import flags

from qos_jax.errors import input_error
from qos_jax.predictors import PredictorConfig
from qos_jax.runs.folder import check_run_folder, open_run_folder
from qos_jax.runs.progress import progress
from qos_jax.tables.answers import generic as answers_generic
from qos_jax.tables.answers import public as answers_public
from qos_jax.tables.answers.read import FORMATS, LogConfig
from qos_jax.tables.answers.rows import MISSING, SplitConfig
from qos_jax.tables.fitted_table import fit_table
from qos_jax.tables.preparation import PreparationConfig, load_preparation
from qos_jax.tables.table_folder import preparation_settings, verify_table, write_prepared
from qos_jax.workload.named import TABLE_MATCHES
from qos_jax.workload.named_table import ALL_ROWS, SPLITS

from . import common, config_flags

__doc__ = f"{__doc__}\n{answers_generic.__doc__}\n{answers_public.__doc__}"  # what --help shows


@dataclasses.dataclass(frozen=True)
class _Fitting:
    predictor: PredictorConfig = dataclasses.field(default_factory=PredictorConfig)


_LOG = flags.DEFINE_multi_string(
    "log", [], "answer log, a file or a folder of lookahead6; repeatable: files of one format"
)
_FORMAT = flags.DEFINE_enum(
    "format", FORMATS[0], list(FORMATS), "of the log; auto = told by its first record"
)
_RANGE = flags.DEFINE_list(
    "score_range", ["0", "1"], "what the log's scores run from and to: rescaled to [0, 1]"
)
_SCORE = flags.DEFINE_string(
    "score_name", LogConfig.score_name, "which of MixInstruct's scores is the quality"
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "tokenizer.json that counts tokens where only texts are given; default: estimated"
)
_EXCLUDE = flags.DEFINE_multi_string(
    "exclude_task", [], "task to leave out, for example for its licence; repeatable"
)
_MISSING = flags.DEFINE_enum(
    "missing",
    MISSING[0],
    list(MISSING),
    "rows that miss an answer: left out, or the answer filled from the others",
)
_SHARES = flags.DEFINE_list(
    "split_shares", [str(x) for x in SplitConfig.split_shares], f"of prompts in {', '.join(SPLITS)}"
)
_SPLIT_SEED = flags.DEFINE_integer("split_seed", SplitConfig.split_seed, "of the split")
_HELD_OUT = flags.DEFINE_string("held_out_task", None, "task that is the test split, whole and alone")
_FOLDS = flags.DEFINE_integer(
    "folds", PreparationConfig.folds, "parts of train, each predicted by a fit on the others"
)
_FLEET = flags.DEFINE_string(
    "fleet",
    None,
    "a fleet CSV, or the name of a shipped one, for the cost of routing and for --trace; optional",
)
_TRACE = flags.DEFINE_string(
    "trace",
    None,
    "trace file whose arrivals get rows of the table: requests.csv, which launch.simulate reads",
)
_TRACE_START = flags.DEFINE_float("trace_start_s", 0.0, "first second of the trace to use")
_TRACE_END = flags.DEFINE_float("trace_end_s", float("inf"), "second of the trace to stop before")
_TRACE_MATCH = flags.DEFINE_enum(
    "trace_match",
    PreparationConfig.trace_match,
    list(TABLE_MATCHES),
    "rows that the arrivals get: nearest in length to the recorded requests, or any, evenly",
)
_TRACE_SPLIT = flags.DEFINE_enum(
    "trace_split", PreparationConfig.trace_split, [ALL_ROWS, *SPLITS], "which rows the arrivals get"
)
_TRACE_SEED = flags.DEFINE_integer(
    "trace_seed", PreparationConfig.trace_seed, "of the rows drawn for --trace"
)
_VERIFY = flags.DEFINE_string(
    "verify", None, "an existing table to summarise and plot, instead of making one"
)
_OUT = flags.DEFINE_string("out", "runs/table", "run folder")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace another run's results in the folder")
_PLOTS = flags.DEFINE_bool("plots", None, "write plots; by default wherever matplotlib is installed")
_SETTINGS = config_flags.define_config_flags(_Fitting(), sys.argv[0])


def main() -> None:
    """Make a table, or verify one."""
    plot = common.wants_plots(_PLOTS)
    if _VERIFY.value is not None:
        if _LOG.value:
            raise input_error("is given beside --log", field="verify", remedy="give one of the two")
        print(verify_table(_VERIFY.value, _OUT.value, overwrite=_OVERWRITE.value, plot=plot))
        return
    score_range = common.numbers(_RANGE)
    if len(score_range) != 2:
        raise input_error(f"has {len(score_range)} numbers", field="score_range", remedy="give LOW,HIGH")
    config = PreparationConfig(
        log=LogConfig(
            log=tuple(_LOG.value),
            format=_FORMAT.value,
            score_range=(score_range[0], score_range[1]),
            score_name=_SCORE.value,
            tokenizer=_TOKENIZER.value,
            exclude_task=tuple(_EXCLUDE.value),
        ),
        split=SplitConfig(common.numbers(_SHARES), _SPLIT_SEED.value, _HELD_OUT.value),
        missing=_MISSING.value,
        folds=_FOLDS.value,
        predictor=config_flags.replaced(_Fitting(), config_flags.given(_SETTINGS)).predictor,
        fleet=_FLEET.value,
        trace=_TRACE.value,
        trace_start_s=_TRACE_START.value,
        trace_end_s=_TRACE_END.value,
        trace_match=_TRACE_MATCH.value,
        trace_split=_TRACE_SPLIT.value,
        trace_seed=_TRACE_SEED.value,
    )
    plan = load_preparation(config)
    settings = preparation_settings(plan)
    check_run_folder(_OUT.value, settings, overwrite=_OVERWRITE.value)
    with progress(plan.work, "epochs") as advance:
        prepared = fit_table(plan, advance)
    folder = open_run_folder(_OUT.value, settings, overwrite=_OVERWRITE.value)
    text = write_prepared(folder, plan, prepared, plot=plot)
    print(f"{text}\n\nresults in {folder.path}")


if __name__ == "__main__":
    common.run(main)
