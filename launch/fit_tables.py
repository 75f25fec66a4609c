"""Derive the figures in data/ from the public files they come from (offline; run by maintainers)."""

from __future__ import annotations

import dataclasses

from qos_jax.options import option
from qos_jax.tables.fit_figures import write_figures

from . import common
from .config_flags import define_config_flags


@dataclasses.dataclass(frozen=True)
class _Sources:
    lookahead_dir: str | None = None  # folder with scores_lengths.npz of lookahead6
    trace: tuple[str, ...] = option(
        (), help="NAME=FILE of a trace to derive a rate profile and a length histogram from", repeatable=True
    )
    out: str = "data"  # folder to write calibration/, rates/ and lengths/ into


_SOURCES = define_config_flags(_Sources)


def main() -> None:
    """Fit what the flags name."""
    sources = _SOURCES.read()
    for path in write_figures(sources.out, sources.lookahead_dir, sources.trace):
        print(f"wrote {path}")


if __name__ == "__main__":
    common.run(main)
