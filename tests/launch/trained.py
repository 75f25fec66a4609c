"""Training runs as the launchers find them, without training: weights of zero choose by the residual."""

from pathlib import Path

import jax
import jax.numpy as jnp

from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.greedy_params import load_aware_params
from qos_jax.policies.han import HANConfig
from qos_jax.policies.learned import parameter_shapes
from qos_jax.runs import checkpoint

TINY = {"han": HANConfig(layers=1, hidden=8, heads=2), "hidden": 8}

# Flags of launch.train for a run of seconds.
TINY_FLAGS = {
    "fleet": Path(__file__).with_name("three_small.csv"),
    "latency_limit_s": 0.03,
    "max_steps": 16,
    "log_every": 3,
    "checkpoint_every": 2,
    "evaluation.every": 6,
    "evaluation.workloads": "poisson",
    "evaluation.loads": 0.75,
    "evaluation.seeds": 2,
    "evaluation.num_requests": 16,
    "scenario.table_rows": 8,
    "network.han.layers": 1,
    "network.han.hidden": 8,
    "network.han.heads": 2,
    "network.hidden": 8,
    "search.updates": 4,
    "search.candidates": 2,
    "search.num_envs": 4,
    "search.steps": 4,
    "distil.updates": 6,
    "distil.num_envs": 4,
    "distil.steps": 2,
    "distil.horizon": 3,
    "distil.capacity": 16,
    "distil.batch_size": 8,
    "distil.quality_rows": 8,
    "agent": "none",
}

# The same of the learner and the router whose programs are ready soonest: without profiles nothing is
# projected. So many updates that a process can be killed among them.
UPDATES = 20
BLIND_FLAGS = TINY_FLAGS | {
    "search.updates": 0,
    "distil.updates": 0,
    "agent": "ppo",
    "network.encoder": "sets",
    "network.information": "predictions",
    "network.residual": False,
    "ppo.num_envs": 4,
    "ppo.rollout_steps": 8,
    "ppo.total_updates": UPDATES,
    "ppo.minibatches": 2,
    "ppo.epochs": 1,
}


def network(**choices) -> NetworkConfig:
    return NetworkConfig(**(TINY | choices))


def save_run(
    folder: Path,
    config: NetworkConfig,
    experts: int = 2,
    slots: int = 5,
    step: int = 1,
    average_qos: float | None = None,
    fill: float = 0.0,
    stored_config: dict | None = None,
) -> Path:
    """Save a checkpoint of a run, and return the run's folder."""
    shapes = parameter_shapes(config, experts, slots)
    weights = jax.tree.map(lambda leaf: jnp.full(leaf.shape, fill, leaf.dtype), shapes["params"])
    start = load_aware_params()
    params = {"params": weights, "greedy": {name: getattr(start, name) for name in shapes["greedy"]}}
    stored = {"network": config, "seed": 0} if stored_config is None else stored_config
    state = {"update": jnp.int32(step)}
    checkpoint.save(folder, step, state, params=params, config=stored, average_qos=average_qos)
    return folder
