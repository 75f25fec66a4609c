"""What a learning algorithm is made of: three pure functions over a state that holds everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from qos_jax.routing import EnvParams

# (key) -> parameters of one environment: the domain randomisation. Every draw has the same shapes.
SampleParams = Callable[[jax.Array], EnvParams]
# Figures of one update by name, each [] float32.
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Learner:
    """A learning algorithm on a given environment and network.

    A state is a pytree of arrays that holds all there is: parameters, optimiser, environments, random
    key and counters. So saving and restoring it continues bit for bit, and a state with a leading axis
    is so many independent runs: ``jax.vmap(learner.update)``.

    Attributes:
      init: (key, parameters of a router to start from, or None for fresh ones) -> state.
      update: state -> (state, metrics): one iteration, pure and jittable.
      params: state -> those parameters, see ``init_router``, for evaluation and checkpoints.
      decisions_per_update: environment decisions that one update takes.
    """

    init: Callable[[jax.Array, Any | None], Any]
    update: Callable[[Any], tuple[Any, Metrics]]
    params: Callable[[Any], Any]
    decisions_per_update: int
