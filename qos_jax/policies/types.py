"""The interface of policies: a pure function from what it may see to an expert."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from qos_jax.kernels import small_loops_joined
from qos_jax.routing.observation import Observation, TrueObservation
from qos_jax.serving import ServingConfig

# What a policy goes by, the least first: tables group policies by it.
NOTHING, QUEUES, PREDICTIONS, PROFILES, TRUTH = KNOWLEDGE = (
    "nothing",  # of servers and requests
    "queues",  # how many requests each expert has
    "predictions",  # predicted quality and length too, and what the router measures of its requests' answers
    "profiles",  # the servers' profiles too: the closed form
    "truth",  # true lengths and qualities: oracles and bounds
)

# (parameters, key, observation) -> [] int32, an expert 0..N-1, or N to drop.
Router = Callable[[Any, jax.Array, Observation], jax.Array]
Oracle = Callable[[Any, jax.Array, TrueObservation], jax.Array]


@dataclasses.dataclass(frozen=True)
class Policy:
    """A named policy. Exactly one of ``router`` and ``oracle`` is set: its type is what it may see."""

    name: str  # as in the registry
    summary: str  # one line for tables and help
    router: Router | None = None  # sees an Observation: predictions, never the truth
    oracle: Oracle | None = None  # sees a TrueObservation: a ceiling, not a competitor
    knows: str = PROFILES  # one of ``KNOWLEDGE``
    measures: bool = False  # it reads ``Observation.measured``
    params: Any = None  # default parameters, a pytree of traced leaves; None if it has none
    # It takes some microseconds and neither sorts nor multiplies matrices: on a CPU whose small loops are
    # joined (qos_jax.kernels) runs are best taken in turn.
    is_small: bool = False

    def __post_init__(self) -> None:
        if (self.router is None) == (self.oracle is None):
            raise ValueError(f"policy {self.name!r}: set either router or oracle")

    @property
    def is_oracle(self) -> bool:
        """Return whether it sees true lengths and qualities."""
        return self.oracle is not None

    def takes_turns(self, config: ServingConfig) -> bool:
        """Return whether runs that it routes on such a fleet are best stepped in turn, not together."""
        return self.is_small and config.is_small and small_loops_joined()

    def act_function(self) -> Oracle:
        """Return (params, key, :class:`TrueObservation`) -> action, the same object for equal policies.

        A router is given only the part it may see. The same object, a static argument, does not recompile.
        """
        if self.oracle is not None:
            return self.oracle
        assert self.router is not None
        return _of_observation(self.router)


@functools.cache
def _of_observation(router: Router) -> Oracle:
    return lambda params, key, truth: router(params, key, truth.seen)
