"""Compute what an observation implies on the last slots of each expert alone: those in use stand there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from qos_jax.routing.observation import Observation
from qos_jax.routing.whole_batch import max_over_batch

Result = TypeVar("Result")

# Fewest slots of an expert that are computed with; each width doubles the last and is a program of its own.
_NARROWEST = 8


def over_occupied_slots(function: Callable[[Observation], Result], seen: Observation) -> Result:
    """Return ``function`` of the observation without leading slots that are empty at every expert.

    The least of the :func:`widths` that holds all in flight in every lane of a ``jax.vmap`` is taken, so the
    time follows how many are in flight. A newcomer enters the last slot (see serving/README.md, rule 11).

    Args:
      function: of an observation with any number of slots, to arrays without a slot axis. Empty slots must
        not change its result.
      seen: the observation of one environment.
    """
    in_use = jnp.any(seen.live, axis=0)
    slots = in_use.shape[0]
    empty = jnp.argmax(in_use).astype(jnp.int32)
    needed = max_over_batch(jnp.where(jnp.any(in_use), slots - empty, 0))
    each = widths(slots)
    index = jnp.sum(needed > jnp.array(each[:-1], jnp.int32), dtype=jnp.int32)
    branches = [lambda seen, width=width: function(last_slots(seen, width)) for width in each]
    return jax.lax.switch(index, branches, seen)


def widths(slots: int) -> tuple[int, ...]:
    """Return how many of an expert's last slots may be computed alone, least first; the last is all K."""
    narrower = []
    width = _NARROWEST
    while width < slots:
        narrower.append(width)
        width *= 2
    return (*narrower, slots)


def last_slots(seen: Observation, width: int) -> Observation:
    """Return the observation with the last ``width`` slots of each expert: their leaves [N, width]."""
    slotted = {
        field.name: getattr(seen, field.name)[:, -width:]
        for field in dataclasses.fields(seen)
        if field.name in ("live", "running", "age_s") or field.name.startswith("slot_")
    }
    prefix = seen.prefix
    if prefix is not None:
        prefix = dataclasses.replace(prefix, slot_cached_tokens=prefix.slot_cached_tokens[:, -width:])
    return dataclasses.replace(seen, **slotted, prefix=prefix)
