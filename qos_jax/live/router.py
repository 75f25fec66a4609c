"""Open a policy on a fleet for live use: everything checked, then the decision compiled or exported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from qos_jax.errors import input_error
from qos_jax.files import atomic_write
from qos_jax.live.config import RouterConfig
from qos_jax.live.exported import VERSION, LiveRouter, live_router
from qos_jax.live.program import PREFIX_LEVELS, Decider, make_decider
from qos_jax.policies.registry import policy
from qos_jax.policies.saved import load_router
from qos_jax.policies.types import Policy
from qos_jax.routing.observation import KnownFleet
from qos_jax.serving import as_limits
from qos_jax.workload.setting import limit_settings, limits_of, open_fleet

_PLATFORMS = ("cpu", "cuda")


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRouter:
    """A policy on a fleet, checked and not compiled."""

    name: str
    experts: tuple[str, ...]
    decider: Decider
    header: dict[str, Any]  # plain values that an exported file keeps beside the program

    def compiled(self) -> LiveRouter:
        """Compile the decision for this machine."""
        decider = self.decider
        program = jax.jit(decider.step).lower(decider.start, dict(decider.events)).compile()
        return live_router(self.header, program, decider.start, dict(decider.events))

    def export(self, path: str | Path) -> None:
        """Write the decision, weights and numbers included, for :func:`~qos_jax.live.exported.load_exported`.

        One file, .npz: ``header`` (JSON with the version), ``program`` (StableHLO by ``jax.export``, for CPU
        and CUDA), the leaves of the first state, and an example of events.
        """
        decider = self.decider
        program = export.export(jax.jit(decider.step), platforms=_PLATFORMS)(
            decider.start, dict(decider.events)
        )
        arrays: dict[str, Any] = {
            f"state/{at:03d}": np.asarray(leaf) for at, leaf in enumerate(decider.start)
        }
        arrays |= {f"events/{name}": np.asarray(value) for name, value in decider.events.items()}
        arrays["header"] = np.array(json.dumps(self.header))
        arrays["program"] = np.frombuffer(program.serialize(), np.uint8)
        with atomic_write(path, "wb") as stream:
            np.savez_compressed(stream, **arrays)


def plan_router(config: RouterConfig, length_log_std: np.ndarray | None = None) -> PlannedRouter:
    """Check a fleet and a policy, and put them together; nothing is compiled.

    Args:
      config: what the user says.
      length_log_std: [N] float32, std of log(true) - log(predicted) output tokens; None = as of an
        expert of which nothing is said.

    Raises:
      InputError: naming the file or field at fault.
    """
    config.check_complete()
    assert config.fleet is not None
    file, fleet = open_fleet(config.fleet)
    limits = limits_of(file, limit_settings(config), config.limits)
    serving = fleet.serving(config.scheduler)
    router = _policy_of(config, serving)
    if router.measures:
        fault = f"{router.name!r} goes by what it measures of answers, which the twin does not hold"
        raise input_error(fault, field="policy", remedy="choose another, such as load_aware_greedy")
    profile = fleet.under(config.scheduler).profile
    log_std = np.full(fleet.num_experts, 0.6, np.float32) if length_log_std is None else length_log_std
    known = KnownFleet(
        profile=profile,
        limits=jax.tree.map(np.float32, as_limits(limits)),
        length_log_std=jnp.asarray(log_std, jnp.float32),
    )
    if config.prefix_entries:
        serving = dataclasses.replace(
            serving, prefix_entries=config.prefix_entries, prefix_levels=PREFIX_LEVELS
        )
    decider = make_decider(serving, known, router, shared=config.shared_servers, seed=config.seed)
    header = {
        "version": VERSION,
        "policy": router.name,
        "experts": list(fleet.names),
        "kv_capacity_tokens": np.asarray(profile.kv_capacity_tokens).tolist(),
        "network_rtt_s": np.asarray(profile.network_rtt_s).tolist(),
        "limits": {name: value for name, value in vars(limits).items() if value is not None},
    }
    return PlannedRouter(router.name, fleet.names, decider, header)


def _policy_of(config: RouterConfig, serving: Any) -> Policy:
    if config.policy is not None:
        return policy(config.policy, allow_drop=config.allow_drop)
    assert config.checkpoint is not None
    folder = Path(config.checkpoint)
    loaded = load_router(folder.name, folder, serving, allow_drop=config.allow_drop, stochastic=False)
    return loaded.policy
