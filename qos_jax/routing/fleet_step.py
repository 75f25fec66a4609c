"""One step of the edge, on the occupied slots only: route a request, let time pass to the next."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from qos_jax.devices import vary_alike
from qos_jax.routing.fleet_state import FleetState, Passed, Request, Routed, pass_time, route
from qos_jax.routing.whole_batch import max_over_batch
from qos_jax.serving import FleetProfile, PrefixHit, ServiceLimits, ServingConfig, forget, recall

Tree = TypeVar("Tree")

# Fewest slots an expert is stepped with, and how many times as many the next width has. Each width is a
# program of its own to compile, so few are used.
_NARROWEST = 16
_WIDER = 4


# Traced once for all routers of a comparison, which differ in their policy alone; XLA inlines it.
@functools.partial(jax.jit, static_argnums=0)
def step_fleet(
    config: ServingConfig,
    profile: FleetProfile,
    state: FleetState,
    request: Request,
    request_id: jax.Array,
    action: jax.Array,
    gap_s: jax.Array,
    limits: ServiceLimits,
) -> tuple[FleetState, Routed, Passed]:
    """Route a request, then let time pass to the next: :func:`route` and :func:`pass_time`, to the bit.

    A newcomer enters the last slot of its expert and evicts the last dead one (see serving/README.md,
    rule 11), so the requests in flight stay together at the end. The least of the :func:`step_widths` that
    holds all of them in every lane of a ``jax.vmap`` is stepped: the time taken follows how many are in
    flight, not how many slots there are.

    Args:
      config: static sizes and the scheduler.
      profile: the fleet, leaves [N].
      state: the edge at the instant of arrival.
      request: the request.
      request_id: [] int32, counts up with arrivals.
      action: [] int32, the expert; anything but 0..N-1 drops the request.
      gap_s: [] float32, seconds to the next arrival; ``inf`` drains.
      limits: what a completed request must keep to count.

    Returns:
      The edge at the next arrival, the result of the decision, and the totals of the time that passed.
    """
    state, hit = recalled(config, profile, state, request, action)
    state, routed, passed = _step(config, profile, state, request, request_id, action, gap_s, limits, hit)
    return forgotten(state, passed), routed, passed


def recalled(
    config: ServingConfig, profile: FleetProfile, state: FleetState, request: Request, action: jax.Array
) -> tuple[FleetState, PrefixHit | None]:
    """Look a request up in the cache of the expert that it is sent to next, with all slots of the fleet.

    Returns:
      The edge, and what the cache holds of the prompt, which :func:`route` takes; None without caches.

    Raises:
      ValueError: there are caches, and the request does not say what it shares.
    """
    if state.prefixes is None:
        return state, None
    if request.prefix_group is None or request.prefix_tokens is None:
        raise ValueError("prefix caching needs requests with prefix_group and prefix_tokens")
    serving, table, hit = recall(
        config,
        profile,
        state.serving,
        state.prefixes,
        action,
        request.prefix_group,
        request.prefix_tokens,
        request.prompt_tokens,
        request.output_tokens,
        request.prefix_path,
    )
    return dataclasses.replace(state, serving=serving, prefixes=table), hit


def forgotten(state: FleetState, passed: Passed) -> FleetState:
    """Return the edge after time passed, without the prefixes pushed out meanwhile, if there are caches."""
    if state.prefixes is None or passed.allocated_tokens is None:
        return state
    serving, table = forget(state.serving, state.prefixes, passed.allocated_tokens)
    return dataclasses.replace(state, serving=serving, prefixes=table)


def _step(
    config: ServingConfig,
    profile: FleetProfile,
    state: FleetState,
    request: Request,
    request_id: jax.Array,
    action: jax.Array,
    gap_s: jax.Array,
    limits: ServiceLimits,
    hit: PrefixHit | None,
) -> tuple[FleetState, Routed, Passed]:
    """Step the least width that holds all requests in flight; the arguments are those of `step_fleet`."""

    def stepped(state: FleetState) -> tuple[FleetState, Routed, Passed]:
        routed_state, routed = route(profile, state, request, request_id, action, hit=hit)
        reached, passed = pass_time(config, profile, routed_state, gap_s, limits)
        return reached, routed, passed

    widths = step_widths(config.slots)
    if len(widths) == 1:
        return stepped(state)
    given = (profile, request, request_id, action, gap_s, limits, hit)
    # One more, free for the newcomer at any expert.
    needed = max_over_batch(jnp.minimum(occupied_slots(state) + 1, config.slots))
    shapes = jax.eval_shape(stepped, state)
    done = (state, *jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[1:]))
    done = vary_alike(done, given)
    return at_least_width(widths, needed, lambda whole, width: stepped(last_slots(whole[0], width)), done)


def at_least_width(
    widths: Sequence[int], needed: jax.Array, function: Callable[[Tree, int], Tree], whole: Tree
) -> Tree:
    """Return ``whole`` with what a function of it and of the least sufficient width gives written over it.

    Args:
      widths: slots that may be computed alone, least first; the last is all of them.
      needed: [] int32, how many have to be, 1 to all.
      function: of the tree and a width to a tree of the same structure, arrays of fewer slots the last ones.
      whole: a pytree.
    """
    for narrower, width in itertools.pairwise((0, *widths)):

        def once(loop: tuple[jax.Array, Tree], width: int = width) -> tuple[jax.Array, Tree]:
            return vary_alike((jnp.bool_(False), _put_back(loop[1], function(loop[1], width))), loop)

        # A loop of one round or none instead of a branch: XLA updates in place what a loop carries, but
        # copies all that a branch returns.
        todo = vary_alike((narrower < needed) & (needed <= width), whole)
        _, whole = jax.lax.while_loop(lambda loop: loop[0], once, (todo, whole))
    return whole


def step_widths(slots: int) -> tuple[int, ...]:
    """Return how many of an expert's last slots may be stepped alone, least first; the last is all K.

    A width that would save less than half of the work is left out.
    """
    powers = (_NARROWEST * _WIDER**power for power in itertools.count())
    return (*itertools.takewhile(lambda width: 2 * width < slots, powers), slots)


def occupied_slots(state: FleetState) -> jax.Array:
    """Return the fewest last slots that hold the requests in flight at any expert, [] int32 in 0..K."""
    in_use = jnp.any(state.serving.live, axis=0)
    after = jnp.int32(in_use.shape[0]) - jnp.argmax(in_use).astype(jnp.int32)
    return jnp.where(jnp.any(in_use), after, 0)


def last_slots(state: FleetState, width: int) -> FleetState:
    """Return the edge with the last ``width`` slots of each expert: their leaves [N, width]."""
    slotted = {
        field.name: jax.tree.map(
            lambda leaf: leaf[:, -width:] if leaf.ndim == 2 else leaf, getattr(state, field.name)
        )
        for field in dataclasses.fields(state)
        if field.name not in ("demand", "measured", "prefixes")
    }
    return dataclasses.replace(state, **slotted)


def _put_back(whole: Tree, narrow: Tree) -> Tree:
    """Return ``whole`` with ``narrow`` written over it; arrays of fewer slots into the last ones."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        missing = old.shape[-1] - new.shape[-1] if old.ndim else 0
        return jax.lax.dynamic_update_slice_in_dim(old, new, missing, axis=-1) if missing else new

    return jax.tree.map(put, whole, narrow)
