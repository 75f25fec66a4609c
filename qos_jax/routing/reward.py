"""The reward of a step (see README.md, rules 6 to 8)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qos_jax.routing.fleet_state import Passed
from qos_jax.routing.impact import paper_impact
from qos_jax.routing.observation import TrueObservation
from qos_jax.routing.params import EnvParams


def reward_for(
    kind: str,
    params: EnvParams,
    before: TrueObservation,
    action: jax.Array,
    accepted: jax.Array,
    passed: Passed,
    potentials: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """Return the reward of one step, [] float32.

    - ``qos``: QoS of the requests completed in the step.
    - ``paper``: ``qos - impact_weight * penalty``, the paper's impact penalty of the chosen expert; 0 if the
      request was rejected or dropped. Source: arXiv 2508.00234, tailored reward.
    - ``potential``: ``qos + discount * Phi(after) - Phi(before)``, Phi = ``qos_in_flight``, 0 at the end.
      Source: Ng, Harada and Russell, "Policy invariance under reward transformations", ICML 1999.

    Args:
      kind: one of ``params.REWARDS``.
      params: the environment's parameters.
      before: the state the action was taken in.
      action: [] int32.
      accepted: [] bool, the chosen expert took the request.
      passed: the totals of the step.
      potentials: Phi of the state the action was taken in and of the state reached, [] float32 each, for
        ``potential`` alone.
    """
    completed = jnp.sum(passed.qos)
    if kind == "paper":
        penalty = paper_impact(before.seen)
        paid = jnp.where(accepted, penalty[jnp.clip(action, 0, penalty.shape[0] - 1)], 0.0)
        return completed - params.impact_weight * paid
    if potentials is not None:
        return completed + params.discount * potentials[1] - potentials[0]
    return completed
