"""The choices of soft actor-critic."""

from __future__ import annotations

import dataclasses
import math

from qos_jax.errors import input_error

# Rewards are QoS, at most about 1 a decision: an entropy worth more than that is a runaway, and below the
# lower end nothing is left to balance.
ALPHA_RANGE = (1e-4, 1.0)


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """Hyper-parameters of SAC; an update is one rollout, then ``gradient_steps`` of learning.

    Raises:
      InputError: a value out of its range, naming the field.
    """

    num_envs: int = 32  # environments side by side, B
    steps_per_update: int = 16  # decisions of each in an update, T
    gradient_steps: int = 16  # optimiser steps in an update, each from its own batch
    batch_size: int = 256  # transitions of an optimiser step
    replay_capacity: int = 50_000  # transitions kept; the bytes that takes are told by sac_replay_bytes
    half_precision_replay: bool = True  # features kept as float16, which halves the replay
    warmup_decisions: int = 5_000  # transitions kept before the first optimiser step
    critic_only_steps: int = 500  # first optimiser steps, which leave actor and alpha alone
    n_step: int = 1  # decisions whose rewards are summed before bootstrapping
    gamma: float = 0.99  # discount per decision; that of the potential-based reward should equal it
    center_rewards: bool = True  # less their mean during the warm-up: Q starts at its level, not at 0
    polyak_tau: float = 0.005  # share by which the target critics follow in an optimiser step
    actor_learning_rate: float = 3e-4  # Adam's, of the first optimiser step
    critic_learning_rate: float = 3e-4  # likewise
    alpha_learning_rate: float = 3e-4  # likewise
    final_learning_rate: float = 0.1  # after total_updates, as a share of the first; linear
    total_updates: int = 2_000  # over which learning rates fall; going on further keeps the last ones
    max_grad_norm: float = 10.0  # a longer gradient of the actor or the critics is scaled to this length
    target_entropy_fraction: float = 0.2  # entropy to hold, as a share of log(number of available actions)
    initial_alpha: float = 0.03  # QoS per nat, as the network's temperature: softmax(Q / alpha) is the ideal

    def __post_init__(self) -> None:
        def check(field: str, fine: bool, remedy: str) -> None:
            if not fine:
                raise input_error(f"{getattr(self, field)} is out of range", field=field, remedy=remedy)

        counts = ("num_envs", "steps_per_update", "gradient_steps", "batch_size", "n_step", "total_updates")
        for field in counts:
            check(field, getattr(self, field) >= 1, "give a whole number from 1")
        for field in ("warmup_decisions", "critic_only_steps"):
            check(field, getattr(self, field) >= 0, "give a whole number from 0")
        for field in ("actor_learning_rate", "critic_learning_rate", "alpha_learning_rate", "max_grad_norm"):
            check(field, 0 < getattr(self, field) < math.inf, "give a finite number above 0")
        for field in ("final_learning_rate", "target_entropy_fraction"):
            check(field, 0 <= getattr(self, field) <= 1, "give a number from 0 to 1")
        check("gamma", 0 <= self.gamma < 1, "give a number from 0 to below 1")
        check("polyak_tau", 0 < self.polyak_tau <= 1, "give a number above 0, to 1")
        low, high = ALPHA_RANGE
        check("initial_alpha", low <= self.initial_alpha <= high, f"give a number from {low} to {high}")
        check("n_step", self.n_step <= self.steps_per_update, "give at most steps_per_update")
        size = self.num_envs * self.steps_per_update
        check("replay_capacity", self.replay_capacity >= size, f"give room for one rollout, {size}")
        held = self.replay_capacity // size * size
        check(
            "warmup_decisions", self.warmup_decisions <= held, f"give at most {held}, what the replay holds"
        )
