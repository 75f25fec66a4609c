"""How every launcher starts and ends: flags parsed, bad input told in one line, exit code 2."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from qos_jax.errors import InputError, input_error
from qos_jax.runs import plot_style

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # as shells count a Ctrl-C


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
            place = f"{error.filename}: " if error.filename else ""
            _refuse(f"{place}{error.strerror or error}; mend that and run again")
        except KeyboardInterrupt:
            print("stopped; files already complete are kept", file=sys.stderr)
            exit_now(EXIT_INTERRUPTED)

    # JAX logs every kind of device it did not find at INFO, which absl shows.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    app.run(guarded, flags_parser=_parse)


def exit_now(code: int) -> None:
    """End the process without finalizing Python, which crashes while XLA still computes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wants_plots(wish: flags.FlagHolder[bool | None]) -> bool:
    """Return whether to plot: by default wherever Matplotlib is; refuse a wish that cannot be met."""
    if wish.value is False or plot_style.plots_available():
        return wish.value is not False
    if wish.value:
        raise input_error(
            "matplotlib is not installed",
            field=wish.name,
            remedy=f"run: pip install 'qos_jax[plot]', or give --no{wish.name}",
        )
    print("no plots: matplotlib is not installed", file=sys.stderr)
    return False


def numbers(flag: flags.FlagHolder) -> tuple[float, ...]:
    """Return the numbers of a list flag, or raise the error of the first that is none."""
    try:
        return tuple(float(text) for text in flag.value)
    except ValueError as error:
        raise input_error(str(error), field=flag.name, remedy="give numbers, separated by commas") from None


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except SystemExit:  # with 1, after --help, which did what was asked
        sys.exit(0)
    except flags.Error as error:
        text = " ".join(str(error).split())
        _refuse(f"{text}; see --help")
        raise


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
