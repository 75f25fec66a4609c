"""Derive the figures in data/ from the public files they come from (offline; run by maintainers)."""

from __future__ import annotations

from absl import flags

from qos_jax.tables.fit_figures import write_figures

from . import common

_LOOKAHEAD = flags.DEFINE_string("lookahead_dir", None, "Folder with scores_lengths.npz of lookahead6.")
_TRACES = flags.DEFINE_multi_string(
    "trace", [], "NAME=FILE of a trace to derive a rate profile and a length histogram from; repeatable."
)
_OUT = flags.DEFINE_string("out", "data", "Folder to write calibration/, rates/ and lengths/ into.")


def main() -> None:
    """Fit what the flags name."""
    for path in write_figures(_OUT.value, _LOOKAHEAD.value, _TRACES.value):
        print(f"wrote {path}")


if __name__ == "__main__":
    common.run(main)
