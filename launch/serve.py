"""Route requests of real clients to real servers by a policy: an OpenAI-compatible endpoint."""

from __future__ import annotations

import os

import jax

from qos_jax.live.config import ServeConfig
from qos_jax.live.plan import plan_live
from qos_jax.runs.folder import open_run_folder, settings_of

from . import common
from .config_flags import define_config_flags

_SETTINGS = define_config_flags(ServeConfig)
_RUN = common.run_flags("runs/serve", resume=False)


def main() -> None:
    """Check everything the flags name, compile the decision, then serve."""
    config, run = _SETTINGS.read(), _RUN.read()
    # The decision is waited for at once, and its parts are too small to share out: no thread is woken for it.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    os.environ.setdefault("NPROC", "1")  # of threads that XLA computes with; read when JAX is first used
    plan = plan_live(config)
    from qos_jax.live.serve import make_proxy, open_port, run_proxy  # the extra is there

    router = plan.compiled()
    if config.check:
        print(f"{router.name} routes to {', '.join(router.experts)}; all is well")
        return
    listener = open_port(config)
    files = {name: getattr(config, name) for name in ("upstreams", "exported", "predictor")}
    files["fleet"] = config.router.fleet if (config.router.fleet or "").endswith(".csv") else None
    settings = settings_of("serve", config, flat=("router",), files=files)
    folder = open_run_folder(run.out, settings, overwrite=run.overwrite)

    def listening(url: str) -> None:
        print(f"{router.name} routes to {', '.join(router.experts)} at {url}/v1", flush=True)

    run_proxy(plan, make_proxy(plan, router, folder.path, renew_logs=run.overwrite), listener, listening)
    print(f"stopped; logs in {folder.path}")


if __name__ == "__main__":
    common.run(main)
