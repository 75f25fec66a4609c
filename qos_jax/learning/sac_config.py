"""Hyper-parameters of soft actor-critic."""

from __future__ import annotations

import dataclasses

from qos_jax.checks import COUNT, COUNT_OR_ZERO, DISCOUNT, POSITIVE, SHARE, Interval, check_range
from qos_jax.errors import input_error

# QoS per nat. Rewards are at most about 1 a decision: an entropy worth more than that is a runaway, and below
# the lower end nothing is left to balance.
ALPHA_RANGE = (1e-4, 1.0)


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """Hyper-parameters of SAC; an update is one rollout, then ``gradient_steps`` of learning.

    Raises:
      InputError: a value out of its range, naming the field.
    """

    num_envs: int = 32  # environments side by side, B
    steps_per_update: int = 16  # decisions of each in an update, T
    gradient_steps: int = 4  # optimiser steps in an update, each from its own batch
    batch_size: int = 256  # transitions of an optimiser step
    replay_capacity: int = 50_000  # transitions kept; sac_replay_bytes returns the bytes
    half_precision_replay: bool = True  # features kept as float16, which halves the replay
    # Transitions kept before the first optimiser step. With center_rewards, at least an episode of each
    # environment: fleets start empty, and while they fill, the potential-based reward is above its mean.
    warmup_decisions: int = 5_000
    critic_only_steps: int = 500  # first optimiser steps, which train the critics alone
    n_step: int = 1  # decisions whose rewards are summed before bootstrapping
    gamma: float = 0.99  # discount per decision; that of the potential-based reward should equal it
    center_rewards: bool = True  # subtract their mean during the warm-up, so that Q starts near 0
    polyak_tau: float = 0.005  # share by which the target critics move in an optimiser step
    actor_learning_rate: float = 3e-4  # Adam's, of the first optimiser step
    critic_learning_rate: float = 3e-4  # likewise
    alpha_learning_rate: float = 3e-4  # likewise
    final_learning_rate: float = 0.1  # after total_updates, as a share of the first; linear
    total_updates: int = 2_000  # over which learning rates fall; going on further keeps the last ones
    max_grad_norm: float = 10.0  # a longer gradient of the actor or the critics is scaled to this length
    target_entropy_fraction: float = 0.2  # entropy to hold, as a share of log(number of available actions)
    initial_alpha: float = 0.03  # QoS per nat, as the network's temperature: softmax(Q / alpha) is the ideal
    # QoS per nat of divergence from the policy that the actor starts from, given or residual: the ideal is
    # that policy times exp(Q / prior_weight), and neither entropy nor alpha counts. None = they alone do, as
    # always where the actor starts from nothing.
    prior_weight: float | None = 1.0

    def __post_init__(self) -> None:
        counts = ("num_envs", "steps_per_update", "gradient_steps", "batch_size", "n_step", "total_updates")
        check_range(self, (*counts, "replay_capacity"), COUNT)
        check_range(self, ("warmup_decisions", "critic_only_steps"), COUNT_OR_ZERO)
        rates = ("actor_learning_rate", "critic_learning_rate", "alpha_learning_rate")
        check_range(self, (*rates, "max_grad_norm"), POSITIVE)
        check_range(self, ("final_learning_rate", "target_entropy_fraction"), SHARE)
        check_range(self, ("gamma",), DISCOUNT)
        check_range(self, ("polyak_tau",), Interval(0, 1, above=True))
        check_range(self, ("initial_alpha",), Interval(*ALPHA_RANGE))
        check_range(self, ("prior_weight",), POSITIVE)
        size = self.num_envs * self.steps_per_update
        held = self.replay_capacity // size * size
        for field, fits, remedy in (
            ("n_step", self.n_step <= self.steps_per_update, "give at most steps_per_update"),
            ("replay_capacity", held > 0, f"give room for one rollout, {size}"),
            ("warmup_decisions", self.warmup_decisions <= held, f"give at most {held}, the replay's size"),
        ):
            if not fits:
                raise input_error(f"{getattr(self, field)} is out of range", field=field, remedy=remedy)
