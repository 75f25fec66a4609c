"""Take the learned router apart: train variants at an equal budget, compare them on identical requests."""

from __future__ import annotations

import dataclasses
import sys

from absl import flags

from qos_jax.evaluation.comparison_table import render_text
from qos_jax.training.ablation import VARIANTS, AblationConfig, run_ablation
from qos_jax.training.presets import PRESETS

from . import common, config_flags

_PRESET = flags.DEFINE_enum("preset", "edge6", list(PRESETS), "the full run, which --train.* flags change")
_OUT = flags.DEFINE_string("out", "runs/ablation", "folder of all runs; run again to go on")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "train everything anew")
_PLOTS = flags.DEFINE_bool("plots", None, "write plots; by default wherever matplotlib is installed")
_SETTINGS = config_flags.define_config_flags(AblationConfig(), sys.argv[0])


def main() -> None:
    """Run the ablation that the flags ask for."""
    base = dataclasses.replace(AblationConfig(), train=PRESETS[_PRESET.value])
    config = config_flags.replaced(base, config_flags.given(_SETTINGS))
    plot = common.wants_plots(_PLOTS)
    comparison = run_ablation(config, _OUT.value, plot=plot, overwrite=_OVERWRITE.value)
    for name in config.variants:
        print(f"{name}: {VARIANTS[name][0]}")
    print(f"\n{render_text(comparison)}\n\nresults in {_OUT.value}")


if __name__ == "__main__":
    common.run(main)
