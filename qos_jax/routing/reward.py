"""The reward of a step: QoS completed, and what the choice did to the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qos_jax.routing.fleet_state import Passed
from qos_jax.routing.impact import paper_impact, qos_in_flight
from qos_jax.routing.observation import TrueObservation
from qos_jax.routing.params import EnvParams


def reward_for(
    kind: str,
    params: EnvParams,
    before: TrueObservation,
    action: jax.Array,
    accepted: jax.Array,
    passed: Passed,
    after: TrueObservation,
    terminated: jax.Array,
) -> jax.Array:
    """Return the reward of one step, [] float32.

    - ``qos``: QoS of the requests completed in the step.
    - ``paper``: that minus ``impact_weight`` times the paper's impact penalty of the chosen expert
      (none for a request it rejected, or that was dropped: nobody is delayed). Source: arXiv 2508.00234,
      tailored reward.
    - ``potential``: that plus ``discount * Phi(after) - Phi(before)``, Phi = the QoS in flight, 0 at the
      end. The best policy is unchanged; the credit arrives with the choice. Source: Ng, Harada and
      Russell, "Policy invariance under reward transformations", ICML 1999.

    Args:
      kind: one of ``params.REWARDS``.
      params: the environment's numbers.
      before: the state the action was taken in.
      action: [] int32.
      accepted: [] bool, the chosen expert took the request.
      passed: what completed.
      after: the state reached.
      terminated: [] bool.
    """
    completed = jnp.sum(passed.qos)
    if kind == "paper":
        penalty = paper_impact(before.seen)
        paid = jnp.where(accepted, penalty[jnp.clip(action, 0, penalty.shape[0] - 1)], 0.0)
        return completed - params.impact_weight * paid
    if kind == "potential":
        ahead = jnp.where(terminated, 0.0, qos_in_flight(after))
        return completed + params.discount * ahead - qos_in_flight(before)
    return completed
