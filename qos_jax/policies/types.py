"""What a policy is: a pure function from what it may see to an expert."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from qos_jax.routing.observation import Observation, TrueObservation

# (parameters, key, observation) -> [] int32, an expert 0..N-1, or N to drop.
Router = Callable[[Any, jax.Array, Observation], jax.Array]
Oracle = Callable[[Any, jax.Array, TrueObservation], jax.Array]


@dataclasses.dataclass(frozen=True)
class Policy:
    """A named policy. Exactly one of ``router`` and ``oracle`` is set: its type is what it may see.

    Attributes:
      name: as in the registry.
      summary: one line for tables and help.
      router: a policy that sees an :class:`Observation`: predictions, never the truth.
      oracle: one that sees a :class:`TrueObservation`: for the ceiling, not a competitor.
      params: default parameters, a pytree of traced leaves; None if it has none.
    """

    name: str
    summary: str
    router: Router | None = None
    oracle: Oracle | None = None
    params: Any = None

    def __post_init__(self) -> None:
        if (self.router is None) == (self.oracle is None):
            raise ValueError(f"policy {self.name!r}: set either router or oracle")

    @property
    def is_oracle(self) -> bool:
        """Whether it sees the truth."""
        return self.oracle is not None

    def act_function(self) -> Oracle:
        """A function of (params, key, :class:`TrueObservation`), the same object for equal policies.

        A router is handed only the part it may see. Being the same object, it is a static argument
        that does not recompile.
        """
        if self.oracle is not None:
            return self.oracle
        assert self.router is not None
        return _blindfold(self.router)


@functools.cache
def _blindfold(router: Router) -> Oracle:
    def act(params: Any, key: jax.Array, truth: TrueObservation) -> jax.Array:
        return router(params, key, truth.seen)

    return act
