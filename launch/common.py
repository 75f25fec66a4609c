"""How every launcher starts and ends: flags parsed, bad input told in one line, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from qos_jax.errors import InputError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # as shells count a Ctrl-C


def run(main: Callable[[], None]) -> None:
    """Parse flags, call ``main`` and exit: 0 if it returned, 2 on bad input, 130 on Ctrl-C.

    Bad input is one line on standard error, never a traceback; any other exception is a defect and
    keeps its traceback.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _end(f"unexpected argument {argv[1]!r}; flags are written --name=value", EXIT_BAD_INPUT)
        try:
            main()
        except InputError as error:
            _end(str(error), EXIT_BAD_INPUT)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _end(f"{place}{error.strerror or error}; mend that and run again", EXIT_BAD_INPUT)
        except KeyboardInterrupt:
            _end("stopped; files already complete are kept", EXIT_INTERRUPTED)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        text = " ".join(str(error).split())
        _end(f"{text}; see --help", EXIT_BAD_INPUT)
        raise


def _end(message: str, code: int) -> None:
    print(f"error: {message}" if code == EXIT_BAD_INPUT else message, file=sys.stderr)
    sys.exit(code)
