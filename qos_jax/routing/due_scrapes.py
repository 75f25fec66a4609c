"""Take the scrapes of all routers that fall due before the next arrival."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from qos_jax.devices import vary_alike
from qos_jax.routing.belief import believed_pace
from qos_jax.routing.faults import FaultState
from qos_jax.routing.fleet_state import FleetState
from qos_jax.routing.routers import Routers, brought_to_now, with_belief_of
from qos_jax.routing.scrape import after_scrape, as_seen_by
from qos_jax.routing.telemetry import next_scrape_s
from qos_jax.routing.whole_batch import max_over_batch
from qos_jax.routing.world_params import WorldParams


def after_due_scrapes(
    params: WorldParams,
    fault_state: FaultState | None,
    routers: Routers,
    fleet: FleetState,
    gap_s: jax.Array,
    key: jax.Array,
) -> Routers:
    """Return the routers after the scrapes that fall due within the gap to the next arrival.

    Each reads the fleet as it is now, right after the last arrival before it is due (see README.md, rule 23).

    Args:
      params: the world's.
      fault_state: the hidden state now, with faults.
      routers: all routers.
      fleet: the true fleet now, ids being tags, when all at this instant are routed.
      gap_s: [] float32, seconds; an infinite one brings no scrape.
      key: of whether they fail, and of their jitter.
    """
    choices, known, telemetry = params.choices, params.known, params.telemetry
    if not choices.scrapes:
        return routers
    due_s = routers.belief.next_scrape_s - routers.belief.behind_s
    due = (due_s < gap_s) & jnp.isfinite(gap_s) & (telemetry.scrape_period_s > 0.0)
    number = jnp.arange(choices.routers, dtype=jnp.int32)

    def once(_: jax.Array, loop: tuple[jax.Array, Routers]) -> tuple[jax.Array, Routers]:
        due, routers = loop
        router = jnp.argmax(due).astype(jnp.int32)
        if choices.routers == 1:  # it decided at this very instant
            belief = jax.tree.map(lambda leaf: leaf[0], routers.belief)
        else:
            belief = brought_to_now(params, fault_state, routers, fleet, router)
        fail_key, jitter_key = jax.random.split(jax.random.fold_in(key, router))
        succeeds = jax.random.uniform(fail_key, (), jnp.float32) >= telemetry.scrape_failure
        following_s = next_scrape_s(jitter_key, telemetry, belief.next_scrape_s, gap_s)
        belief = dataclasses.replace(belief, next_scrape_s=following_s)
        paces = jnp.ones_like(known.length_log_std)
        if choices.advances:
            paces = believed_pace(belief, known.length_log_std)
        seen = as_seen_by(choices, router, fleet)
        after = after_scrape(choices, known.profile, known.length_log_std, paces, belief, seen)
        belief = jax.tree.map(lambda new, old: jnp.where(succeeds, new, old), after, belief)
        routers = with_belief_of(routers, router, belief, jnp.any(due))
        return vary_alike((due & (number != router), routers), loop)

    # As many rounds in every lane of a batch; those that have no scrape left do nothing.
    rounds = max_over_batch(jnp.sum(due, dtype=jnp.int32))
    start = vary_alike((due, routers), fleet)
    return jax.lax.fori_loop(jnp.int32(0), rounds, once, start)[1]
