"""Derive the figures in data/ from the public files they come from (offline; run by maintainers)."""

from __future__ import annotations

import sys

from absl import app, flags, logging

from qos_jax.errors import InputError
from qos_jax.workload import calibration

_LOOKAHEAD = flags.DEFINE_string("lookahead_dir", None, "Folder with scores_lengths.npz of lookahead6.")
_TRACES = flags.DEFINE_multi_string(
    "trace", [], "NAME=FILE of a trace to derive a rate profile and a length histogram from; repeatable."
)
_OUT = flags.DEFINE_string("out", "data", "Folder to write calibration/, rates/ and lengths/ into.")


def main(argv: list[str]) -> None:
    """Fit what the flags name."""
    del argv
    try:
        for path in calibration.write_figures(_OUT.value, _LOOKAHEAD.value, _TRACES.value):
            logging.info("wrote %s", path)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
