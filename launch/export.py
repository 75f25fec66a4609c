"""Write a router with its fleet, numbers and weights into one file, which serve runs by itself."""

from __future__ import annotations

import dataclasses

from qos_jax.live.config import RouterConfig
from qos_jax.live.plan import plan_export
from qos_jax.options import option

from . import common
from .config_flags import define_config_flags


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What is exported, and where to."""

    router: RouterConfig = option(RouterConfig, flat=True)
    predictor: str | None = None  # predictor.npz that serve will be given: how far its lengths are off
    file: str = "router.npz"  # the file to write


_SETTINGS = define_config_flags(ExportConfig)


def main() -> None:
    """Check everything the flags name, then write the file."""
    config = _SETTINGS.read()
    planned = plan_export(config.router, config.predictor)
    planned.export(config.file)
    print(f"{planned.name} for {', '.join(planned.experts)} in {config.file}")


if __name__ == "__main__":
    common.run(main)
