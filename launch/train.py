"""Train a router: progress, evaluations against projected_greedy, checkpoints, and a run folder."""

from __future__ import annotations

import dataclasses

from qos_jax.devices import is_writer
from qos_jax.errors import input_error
from qos_jax.options import option
from qos_jax.training.curve import render_points
from qos_jax.training.hyper import Together, grid
from qos_jax.training.plan import load_plan
from qos_jax.training.presets import PRESETS
from qos_jax.training.run import execute_training, open_training
from qos_jax.training.seeds import open_seed_training, train_seeds
from qos_jax.training.train_config import TrainConfig

from . import common, hosts
from .config_flags import define_config_flags


@dataclasses.dataclass(frozen=True)
class _Routers:
    preset: str = option("edge6", known=PRESETS)  # settings that the other flags change
    vmap_seeds: int | None = option(
        None,
        help="train so many routers at once, a seed each, with intervals; a checkpoint at each evaluation",
    )
    vmap: tuple[str, ...] = option(
        (),
        help="NAME=VALUE,VALUE,... of a hyper-parameter such as ppo.learning_rate: with vmap_seeds, train "
        "routers of all these values at once; with several, of every combination",
        repeatable=True,
    )

    def __post_init__(self) -> None:
        if self.vmap and self.vmap_seeds is None:
            raise input_error("needs vmap_seeds", field="vmap", remedy="give --vmap_seeds, 1 or more")


_ROUTERS = define_config_flags(_Routers)
_RUN = common.run_flags("runs/train")
_HOSTS = define_config_flags(hosts.HostConfig)
_SETTINGS = define_config_flags(TrainConfig, PRESETS[_Routers().preset])


def main() -> None:
    """Train as the flags say."""
    # Of a CPU one device, unless asked for more: XLA rounds a program for several differently in a last bit.
    with hosts.joined(_HOSTS.read(), cpu_devices=None):
        _train()


def _train() -> None:
    routers, run = _ROUTERS.read(), _RUN.read()
    config = _SETTINGS.read(PRESETS[routers.preset])
    plan = load_plan(config)
    plot = is_writer() and run.wants_plots()
    if routers.vmap_seeds is None:
        execute_training(open_training(plan, run.out, overwrite=run.overwrite, resume=run.resume), plot=plot)
        return
    together = Together(routers.vmap_seeds, grid(config, routers.vmap))
    training = open_seed_training(plan, together, run.out, overwrite=run.overwrite, resume=run.resume)
    points = train_seeds(training, plot=plot)
    print(f"{render_points(points, together)}\n\nresults in {run.out}")


if __name__ == "__main__":
    common.run(main)
