"""Take the learned router apart: train variants at an equal budget, compare them on identical requests."""

from __future__ import annotations

import dataclasses

from qos_jax.evaluation.comparison_text import render_text
from qos_jax.options import option
from qos_jax.training.ablation import VARIANTS, AblationConfig, run_ablation
from qos_jax.training.presets import PRESETS

from . import common
from .config_flags import define_config_flags


@dataclasses.dataclass(frozen=True)
class _Preset:
    preset: str = option("edge6", known=PRESETS)  # the full run, which --train.* flags change


_PRESET = define_config_flags(_Preset)
_RUN = common.run_flags("runs/ablation", resume=False)  # run again, an ablation goes on anyway
_SETTINGS = define_config_flags(AblationConfig)


def main() -> None:
    """Run the ablation that the flags ask for."""
    run, preset = _RUN.read(), PRESETS[_PRESET.read().preset]
    config = _SETTINGS.read(dataclasses.replace(AblationConfig(), train=preset))
    comparison = run_ablation(config, run.out, plot=run.wants_plots(), overwrite=run.overwrite)
    for name in config.variants:
        print(f"{name}: {VARIANTS[name][0]}")
    print(f"\n{render_text(comparison)}\n\nresults in {run.out}")


if __name__ == "__main__":
    common.run(main)
