"""The interface of learning algorithms: three pure functions over a state that holds everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from qos_jax.routing import EnvParams
from qos_jax.routing.params import as_good_as_expected

# (key) -> parameters of one environment: the domain randomisation. Every draw has the same shapes.
SampleParams = Callable[[jax.Array], EnvParams]
# Figures of one update by name, each [] float32.
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Learner:
    """A learning algorithm on a given environment and network.

    A state is a pytree of arrays that holds everything: parameters, optimiser, environments, random key and
    counters. So a run continues from a saved state bit for bit, and a state with a leading axis [R] is R
    independent runs: ``jax.vmap(learner.update)``.
    """

    init: Callable[[jax.Array, Any | None], Any]  # (key, router's parameters or None for fresh ones) -> state
    update: Callable[[Any], tuple[Any, Metrics]]  # one iteration, pure and jittable
    params: Callable[[Any], Any]  # of the router as of ``init_router``, for evaluation and checkpoints
    decisions_per_update: int  # of all environments


def paying_expected_quality(sample_params: SampleParams) -> SampleParams:
    """Return ``sample_params`` with qualities expected given predictions: it halves the noise of rewards."""
    return lambda key: as_good_as_expected(sample_params(key))
