"""Train a router: progress, evaluations against projected_greedy, checkpoints, and a run folder."""

from __future__ import annotations

import sys

from absl import flags

from qos_jax.devices import is_writer
from qos_jax.errors import input_error
from qos_jax.training.curve import render_points
from qos_jax.training.hyper import Together, grid
from qos_jax.training.plan import load_plan
from qos_jax.training.presets import PRESETS
from qos_jax.training.run import execute_training, open_training
from qos_jax.training.seeds import open_seed_training, train_seeds

from . import common, config_flags, hosts

_DEFAULT = "edge6"

_PRESET = flags.DEFINE_enum("preset", _DEFAULT, list(PRESETS), "settings that the other flags change")
_OUT = flags.DEFINE_string("out", "runs/train", "run folder")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace another run's results in the folder")
_RESUME = flags.DEFINE_bool("resume", False, "go on from the folder's last checkpoint, bit for bit")
_VMAP_SEEDS = flags.DEFINE_integer(
    "vmap_seeds",
    None,
    "train so many routers at once, a seed each: curves with intervals; a checkpoint at each evaluation",
)
_VMAP = flags.DEFINE_multi_string(
    "vmap",
    [],
    "NAME=VALUE,VALUE,... of a hyper-parameter such as ppo.learning_rate: with vmap_seeds, train routers of "
    "all these values at once; repeatable, for every combination",
)
_PLOTS = flags.DEFINE_bool("plots", None, "write plots; by default wherever matplotlib is installed")
_SETTINGS = config_flags.define_config_flags(PRESETS[_DEFAULT], sys.argv[0])


def main() -> None:
    """Train as the flags say."""
    # Of a CPU one device, unless told otherwise: XLA rounds a program for several differently in a last bit.
    with hosts.joined(cpu_devices=None):
        _train()


def _train() -> None:
    config = config_flags.replaced(PRESETS[_PRESET.value], config_flags.given(_SETTINGS))
    plan = load_plan(config)
    plot = is_writer() and common.wants_plots(_PLOTS)
    overwrite, resume = _OVERWRITE.value, _RESUME.value
    if _VMAP_SEEDS.value is None:
        if _VMAP.value:
            raise input_error("needs vmap_seeds", field="vmap", remedy="give --vmap_seeds, 1 or more")
        execute_training(open_training(plan, _OUT.value, overwrite=overwrite, resume=resume), plot=plot)
        return
    together = Together(_VMAP_SEEDS.value, grid(config, _VMAP.value))
    run = open_seed_training(plan, together, _OUT.value, overwrite=overwrite, resume=resume)
    points = train_seeds(run, plot=plot)
    print(f"{render_points(points, together)}\n\nresults in {_OUT.value}")


if __name__ == "__main__":
    common.run(main)
