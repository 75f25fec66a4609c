"""The console command ``qos-jax``: run a launcher by its name, as ``python -m launch.NAME`` does."""

from __future__ import annotations

import ast
import pathlib
import runpy
import sys
from collections.abc import Sequence

from qos_jax.errors import near_match

from .common import EXIT_BAD_INPUT

COMMANDS = (
    "evaluate",
    "train",
    "simulate",
    "sweep",
    "ablate",
    "calibrate",
    "prepare_data",
    "benchmark",
    "fit_tables",
    "serve",
    "export",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the launcher that the first argument names, with the others as its flags.

    Only that launcher is imported: the flags of each are defined on import, many under equal names.

    Raises:
      SystemExit: 0 after help, 2 for no or an unknown command, else the launcher's code.
    """
    command, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if command in ("", "help", "-h", "--help", "--helpfull", "--helpshort"):
        print(render_help(), file=sys.stdout if command else sys.stderr)
        sys.exit(0 if command else EXIT_BAD_INPUT)
    if command not in COMMANDS:
        fault = f"{command!r} is no command{near_match(command, COMMANDS)}"
        print(f"error: {fault}; use one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    sys.argv[1:] = arguments
    runpy.run_module(f"{__package__}.{command}", run_name="__main__", alter_sys=True)


def render_help() -> str:
    """Return the usage and one line for each command."""
    width = max(map(len, COMMANDS))
    purpose = "Simulate, learn and compare routers of requests to LLM servers."
    usage = "usage: qos-jax COMMAND [--flag=value ...]; the flags of a command: qos-jax COMMAND --help"
    lines = (f"  {name:<{width}}  {_purpose(name)}" for name in COMMANDS)
    return "\n".join([purpose, "", usage, "", *lines])


def _purpose(command: str) -> str:
    """Return the first line of a launcher's docstring, without importing it."""
    source = pathlib.Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
