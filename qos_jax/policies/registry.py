"""Every policy by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from qos_jax.errors import input_error
from qos_jax.policies import heuristics, oracles
from qos_jax.policies.greedy_params import GreedyParams, greedy_params, load_aware_params
from qos_jax.policies.types import Policy

HEURISTICS = (
    "random",
    "round_robin",
    "shortest_queue",
    "least_work",
    "power_of_two",
    "best_quality",
    "quality_within_limit",
    "impact_greedy",
    "projected_greedy",
    "load_aware_greedy",
)
ORACLES = ("clairvoyant_greedy",)
# A bound on any policy's QoS, computed without simulating: `oracles.upper_bound`.
BOUNDS = ("upper_bound",)
# Replays an assignment that comes with the requests, so it only runs where one is given.
REPLAYS = ("assigned",)
# Default parameters of those that have any.
_PARAMS: dict[str, Callable[..., GreedyParams]] = {
    "impact_greedy": greedy_params,
    "projected_greedy": greedy_params,
    "load_aware_greedy": load_aware_params,
    "clairvoyant_greedy": load_aware_params,
}


def policy(name: str, *, allow_drop: bool = False, assignment: jax.Array | None = None) -> Policy:
    """Return the policy called ``name`` with its default parameters.

    Args:
      name: one of ``HEURISTICS``, ``ORACLES`` or ``REPLAYS``.
      allow_drop: whether the greedy ones may drop a request that no expert gains from.
      assignment: [T] int32, for ``assigned``.

    Raises:
      InputError: an unknown name, one of ``BOUNDS``, or ``assigned`` without an assignment.
    """
    if name == "assigned":
        if assignment is None:
            raise input_error(
                "policy 'assigned' has no assignment to replay",
                field="policy",
                remedy="give the requests an 'expert' column",
            )
        return Policy(
            name=name,
            summary=_summary(heuristics.assigned),
            router=heuristics.assigned,
            params=jnp.asarray(assignment, jnp.int32),
        )
    params = _PARAMS[name](allow_drop=allow_drop) if name in _PARAMS else None
    if name in ORACLES:
        function = getattr(oracles, name)
        return Policy(name=name, summary=_summary(function), oracle=function, params=params)
    if name in HEURISTICS:
        function = getattr(heuristics, name)
        return Policy(name=name, summary=_summary(function), router=function, params=params)
    if name in BOUNDS:
        raise input_error(
            f"{name!r} is a bound computed without simulating, so it routes nothing",
            field="policy",
            remedy=f"use one of {', '.join((*HEURISTICS, *ORACLES, *REPLAYS))}",
        )
    raise unknown_policy(name)


def unknown_policy(name: str) -> Exception:
    """The error for a policy name that is not in the registry."""
    known = (*HEURISTICS, *ORACLES, *BOUNDS, *REPLAYS)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return input_error(
        f"policy {name!r} is unknown", field="policy", remedy=f"{hint}use one of {', '.join(known)}"
    )


def _summary(function: object) -> str:
    return (function.__doc__ or "").strip().split("\n")[0]


GROUPS = {"all": (*HEURISTICS, *ORACLES, *BOUNDS), "heuristics": HEURISTICS}
