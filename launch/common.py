"""How every launcher starts and ends: flags parsed, bad input reported in one line, exit code 2."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags

from qos_jax.errors import InputError, input_error
from qos_jax.kernels import join_small_loops
from qos_jax.runs import plot_style

from .config_flags import ConfigFlags, define_config_flags

EXIT_BAD_INPUT = 2
EXIT_POOR_FIT = 4  # results are written, but a warning says why not to use them
EXIT_INTERRUPTED = 130  # as shells count a Ctrl-C
RENAMED = {  # flags, old name to new
    "plot": "plots",
    "trace_match": "table_match",
    "trace_split": "table_split",
    "scenario.swing": "scenario.diurnal_swing",
}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where a run writes, and what it may do there."""

    out: str  # run folder
    overwrite: bool = False  # replace another run's results in the folder
    resume: bool = False  # continue the same run where it was stopped; what is complete is kept
    plots: bool | None = None  # write plots; none = wherever matplotlib is installed

    def wants_plots(self) -> bool:
        """Return whether to plot; refuse a wish that cannot be met."""
        if self.plots is False or plot_style.plots_available():
            return self.plots is not False
        if self.plots:
            remedy = "run: pip install 'qos_jax[plot]', or give --noplots"
            raise input_error("matplotlib is not installed", field="plots", remedy=remedy)
        print("no plots: matplotlib is not installed", file=sys.stderr)
        return False


def run_flags(out: str, *, overwrite: bool = False, resume: bool = True) -> ConfigFlags[RunConfig]:
    """Define ``--out``, ``--overwrite``, ``--resume`` and ``--plots``.

    The first two have the defaults given; a launcher that cannot continue a run has no ``--resume``.
    """
    return define_config_flags(RunConfig, RunConfig(out, overwrite), leave_out=() if resume else ("resume",))


def run(main: Callable[[], None]) -> None:
    """Parse flags, call ``main`` and exit: 0 if it returned, 2 on bad input, 130 on Ctrl-C.

    Bad input is one line on standard error, never a traceback; any other exception is a defect and
    keeps its traceback.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _refuse(f"unexpected argument {argv[1]!r}; flags are written --name=value")
        try:
            main()
        except InputError as error:
            _refuse(str(error))
        except OSError as error:
            file = f"{error.filename}: " if error.filename else ""
            _refuse(f"{file}{error.strerror or error}; check its permissions and the free space there")
        except KeyboardInterrupt:
            print("stopped; files already complete are kept", file=sys.stderr)
            exit_now(EXIT_INTERRUPTED)

    join_small_loops()
    # JAX logs every kind of device it did not find at INFO, which absl shows.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    app.run(guarded, flags_parser=_parse)


def exit_now(code: int) -> None:
    """End the process without finalizing Python, which crashes while XLA still computes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except SystemExit:  # with 1, after --help, which did what was asked
        sys.exit(0)
    except flags.Error as error:
        given = getattr(error, "flagname", "")  # of an unknown flag
        old = given.removeprefix("no").removeprefix("train.")  # as launch.ablate calls the training's flags
        if old in RENAMED:
            _refuse(f"flag --{given} has a new name; give --{given.replace(old, RENAMED[old])}")
        _refuse(f"{' '.join(str(error).split())}; see --help")


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
