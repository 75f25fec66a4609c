"""Read learned routers from the folders of training runs and check that they fit the fleet."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from qos_jax.errors import input_error
from qos_jax.files import sha256
from qos_jax.policies import Policy
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.learned import flat_sizes, learned_policy, parameter_shapes
from qos_jax.policies.registry import NEVER_DROPS, router_of
from qos_jax.runs.checkpoint import load_policy
from qos_jax.runs.checkpoint_record import SUMMARY
from qos_jax.serving import ServingConfig


@dataclasses.dataclass(frozen=True)
class LearnedRouter:
    """A learned router, ready to run."""

    policy: Policy
    record: dict[str, Any]  # what config.json keeps of it; the digest says which weights it was
    network: NetworkConfig  # as it was trained


def load_router(
    name: str, folder: Path, serving: ServingConfig, *, allow_drop: bool, stochastic: bool
) -> LearnedRouter:
    """Read a learned router and check that it can route on the fleet.

    Args:
      name: what tables call it; with ``NEVER_DROPS`` at its end it drops nothing.
      folder: of a training run (its best checkpoint, or its latest if none was evaluated), of one
        checkpoint, or an exported policy. Its configuration holds the network's as ``network``.
      serving: the fleet's sizes.
      allow_drop: whether routers may drop requests; one trained to drop takes its best expert where not.
      stochastic: draw actions instead of taking the most likely.

    Raises:
      InputError: what ``load_policy`` raises; weights that do not fit their configuration or, with the flat
        encoder, the fleet's size.
    """
    weights, found = load_policy(folder)
    config = found.read_config(NetworkConfig, "network")
    _check_sizes(config, weights, serving, found.path)
    record: dict[str, Any] = {"path": str(found.path), "sha256": sha256(found.path / SUMMARY)}
    record |= {"step": found.step, "average_qos": found.average_qos}
    drops = allow_drop and not router_of(name).endswith(NEVER_DROPS)
    router = learned_policy(name, config, weights, stochastic=stochastic, allow_drop=drops)
    return LearnedRouter(router, record, config)


def trained_router(folder: str | Path, *, name: str | None = None, stochastic: bool = False) -> Policy:
    """Return the learned router of a folder, which runs on fleets of any size unless its encoder is flat.

    Args:
      folder: of a training run, of one checkpoint, or of an exported policy.
      name: what tables call it; by default the folder's name.
      stochastic: draw actions instead of taking the most likely.

    Raises:
      InputError: no such folder, or a damaged one.
    """
    weights, found = load_policy(folder)
    config = found.read_config(NetworkConfig, "network")
    return learned_policy(name or Path(folder).name, config, weights, stochastic=stochastic)


def _check_sizes(config: NetworkConfig, weights: Any, serving: ServingConfig, path: Path) -> None:
    """Check that the weights are those of the configuration on a fleet of this size."""
    expected = _shapes(parameter_shapes(config, serving.num_experts, serving.slots))
    stored = _shapes(weights)
    if stored == expected:
        return
    if config.encoder == "flat" and stored.keys() == expected.keys():
        experts, slots = flat_sizes(config, weights)
        if (experts, slots) != (serving.num_experts, serving.slots):
            fault = f"its flat network is for {experts} experts of {slots} slots (running and waiting)"
            fault += f", and the fleet has {serving.num_experts} experts of {serving.slots} slots"
            remedy = "use a fleet of that size, or a router with the encoder han or sets, which runs on any"
            raise input_error(fault, file=path, remedy=remedy)
    differs = min(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
    change = f"{differs}: {stored.get(differs, 'missing')}, not {expected.get(differs, 'there')}"
    fault = f"its weights do not fit its configuration ({change})"
    raise input_error(fault, file=path, remedy="use the version of qos_jax that trained it, or train anew")


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}
