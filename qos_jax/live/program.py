"""The decision as one pure function: what happened since the last one, and a request, to an expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.errors import input_error
from qos_jax.policies.types import Policy
from qos_jax.routing.belief import (
    Belief,
    after_time,
    at_own_request,
    believed_pace,
    no_belief,
    with_said,
)
from qos_jax.routing.fleet_state import FleetState, Request
from qos_jax.routing.fleet_step import at_least_width, last_slots, occupied_slots
from qos_jax.routing.ghosts import MAX_GHOSTS, with_ghosts
from qos_jax.routing.observation import KnownFleet
from qos_jax.routing.routers import after_sending_own, look, redirected, without_the_dead
from qos_jax.routing.scrape import SHARE_MEMORY, after_counts
from qos_jax.routing.telemetry import Telemetry, TelemetryConfig
from qos_jax.routing.world_params import WorldParams
from qos_jax.serving import PrefixLevel, ServingConfig
from qos_jax.serving.scheduler import count

# (state, events) -> (state, decision): lists and dicts of arrays, so that an exported one needs no classes.
Step = Callable[[list[Any], dict[str, Any]], tuple[list[Any], dict[str, Any]]]


# Of a request, where the twin follows prefix caches: those of ``twin.SharedPrefix``.
PREFIX_EVENTS = ("system_group", "system_tokens", "group", "tokens")
PREFIX_LEVELS = 2  # a conversation within its system prompt
# Few requests are in flight at a server as a rule: with this many slots the twin is brought to now sooner.
# Each width is a program of its own to compile, so there is one beside that of all slots.
_NARROW = 64
_ENDLESS = np.iinfo(np.int32).max  # a conversation shares all of its prompts and answers


def idle_events(config: ServingConfig) -> dict[str, Any]:
    """Return the events of no time in which nothing happened: the shapes and dtypes of a call.

    ``said`` is that of :func:`~qos_jax.routing.belief.with_own_events` by tags, which are numbers of own
    requests that no two in flight share: a place for each, and a last one that says ended, for requests that
    get no place. Counts are those that an upstream publishes, where ``scraped``; the last describe the
    request, where ``arrives``.
    """
    n, slots = config.num_experts, config.slots
    shares = {name: np.int32(-1 if name.endswith("group") else 0) for name in PREFIX_EVENTS}
    return {
        **(shares if config.prefix_entries else {}),
        "elapsed_s": np.float32(0.0),  # since the last call
        "said": np.zeros(n * slots + 1, np.int32),
        "up": np.ones(n, np.bool_),  # not known to be down
        "avoided": np.zeros(n, np.bool_),  # not to be sent this request again
        "scraped": np.zeros(n, np.bool_),
        "running": np.zeros(n, np.int32),
        "waiting": np.zeros(n, np.int32),
        "kv_tokens": np.full(n, -1, np.int32),  # -1 = not published
        "arrives": np.bool_(False),
        "newcomer_id": np.int32(0),  # counts up
        "newcomer_tag": np.int32(n * slots),
        "age_s": np.float32(0.0),  # above 0 for one that is routed again
        "prompt_tokens": np.int32(1),
        "predicted_output_tokens": np.ones(n, np.float32),
        "predicted_quality": np.zeros(n, np.float32),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Decider:
    """A policy on the twin of one fleet, not compiled yet; :func:`make_decider` makes one."""

    step: Step
    start: list[np.ndarray]  # leaves of the state before any request
    events: Mapping[str, Any]  # see :func:`idle_events`


def make_decider(
    config: ServingConfig, known: KnownFleet, policy: Policy, *, shared: bool = False, seed: int = 0
) -> Decider:
    """Return the decision of a policy on the twin of a fleet; numbers and weights are constants in it.

    Args:
      config: static sizes and the scheduler.
      known: profile, limits and length error of the fleet.
      policy: a router, not an oracle.
      shared: whether others send requests to these servers, too.
      seed: of the router's own draws, together with the request's number.

    Raises:
      InputError: an oracle, which sees what no server knows.
    """
    router = policy.router
    if router is None:
        fault = f"{policy.name!r} sees true lengths, which no live router knows"
        raise input_error(fault, field="policy", remedy="use a router, such as load_aware_greedy")
    known = jax.tree.map(np.asarray, known)
    # 2 stands for "not alone": how many others there are is estimated from scrapes, see rule 27.
    choices = TelemetryConfig("twin", 2 if shared else 1, "counts", observes_own=True)
    belief = no_belief(config, jnp.float32(jnp.inf))
    leaves, treedef = jax.tree.flatten(belief)

    def step(state: list[Any], events: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        after, decision = _step(
            config, choices, known, policy, seed, jax.tree.unflatten(treedef, state), events
        )
        return jax.tree.leaves(after), decision

    return Decider(step, [np.asarray(leaf) for leaf in leaves], idle_events(config))


def _step(
    config: ServingConfig,
    choices: TelemetryConfig,
    known: KnownFleet,
    policy: Policy,
    seed: int,
    belief: Belief,
    events: dict[str, jax.Array],
) -> tuple[Belief, dict[str, jax.Array]]:
    """Bring the twin to now, correct it by what was seen, and route the request, if one arrives."""
    known = jax.tree.map(jnp.asarray, known)
    arrives, elapsed_s = events["arrives"], events["elapsed_s"]
    pace = believed_pace(belief, known.length_log_std)
    belief = dataclasses.replace(belief, behind_s=elapsed_s)

    def corrected(belief: Belief) -> Belief:
        belief = after_time(config, choices, known.profile, pace, belief)
        # A gap ends with the next request, not with every call.
        belief = jax.tree.map(lambda new, old: jnp.where(arrives, new, old), at_own_request(belief), belief)
        said = jnp.take(events["said"], belief.fleet.serving.request_id, mode="clip")
        belief = with_said(choices, pace, belief, said)
        if choices.routers > 1:
            belief = with_ghosts(known.profile, known.length_log_std, belief, elapsed_s)
        # Most calls bring no counts: a tenth of a decision's time.
        belief = jax.lax.cond(
            jnp.any(events["scraped"]),
            lambda belief: _scraped(choices, pace, belief, events),
            lambda belief: belief,
            belief,
        )
        return without_the_dead(belief, events["up"])

    published = jnp.max(jnp.where(events["scraped"], events["running"] + events["waiting"], 0))
    added = MAX_GHOSTS if choices.routers > 1 else 0
    needed = jnp.maximum(occupied_slots(belief.fleet) + added, published)
    belief = _on_few_slots(config, needed, corrected, belief)

    request = Request(
        prompt_tokens=events["prompt_tokens"],
        output_tokens=events["predicted_output_tokens"].astype(jnp.int32),
        quality=events["predicted_quality"],
        predicted_output_tokens=events["predicted_output_tokens"],
        predicted_quality=events["predicted_quality"],
        **_prefix_of(config, events),
    )
    never = Telemetry(jnp.float32(jnp.inf), jnp.float32(0.0), jnp.float32(0.0), jnp.ones((1,), jnp.float32))
    number = events["newcomer_id"]
    usable = events["up"] & ~events["avoided"]
    params = WorldParams(config, choices, known, never, None)
    seen = look(params, None, belief, usable, belief.fleet, request, number)
    assert policy.router is not None
    action = policy.router(policy.params, jax.random.fold_in(jax.random.key(seed), number), seen)
    action = redirected(action.astype(jnp.int32), seen.belief)
    inside = jnp.clip(action, 0, config.num_experts - 1)
    accepted = arrives & (action == inside) & seen.available[inside]
    age_s = events["age_s"]
    tag = events["newcomer_tag"]

    def routed(belief: Belief) -> Belief:
        after = after_sending_own(params, belief, request, tag, action, accepted, age_s)
        return jax.tree.map(lambda new, old: jnp.where(arrives, new, old), after, belief)

    belief = _on_few_slots(config, occupied_slots(belief.fleet) + 1, routed, belief)
    decision = {
        "action": action,
        "accepted": accepted,
        "fits": events["prompt_tokens"] < known.profile.request_capacity_tokens,
        "pace": pace,
    }
    return belief, decision


def _on_few_slots(
    config: ServingConfig, needed: jax.Array, function: Callable[[Belief], Belief], belief: Belief
) -> Belief:
    """Return ``function`` of the belief, on its last slots alone where no more than ``needed`` matter."""
    # A cache holds the prefixes of dead slots, too.
    if config.prefix_entries or config.slots < 2 * _NARROW:
        return function(belief)

    def on_last(whole: Belief, width: int) -> Belief:
        fleet, synced = last_slots(whole.fleet, width), whole.synced_tokens[:, -width:]
        return function(dataclasses.replace(whole, fleet=fleet, synced_tokens=synced))

    return at_least_width((_NARROW, config.slots), jnp.clip(needed, 1, config.slots), on_last, belief)


def _prefix_of(config: ServingConfig, events: dict[str, jax.Array]) -> dict[str, Any]:
    """Return the prefix fields of a request; none without prefix caching."""
    if not config.prefix_entries:
        return {}
    group = events["group"]
    system = PrefixLevel(events["system_group"], events["system_tokens"])
    path = (system, PrefixLevel(group, jnp.int32(_ENDLESS)))
    return {"prefix_group": group, "prefix_tokens": events["tokens"], "prefix_path": path}


def _scraped(
    choices: TelemetryConfig, pace: jax.Array, belief: Belief, events: dict[str, jax.Array]
) -> Belief:
    """Return the belief corrected at the experts that published counts."""
    scraped, serving = events["scraped"], belief.fleet.serving
    own = count(serving.live & (serving.request_id >= 0))
    # What was routed since the scrape is in flight and not in its counts.
    total = jnp.maximum(events["running"] + events["waiting"], own)
    now = after_counts(choices, pace, belief, events["running"], total, events["kv_tokens"])

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(scraped.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

    def noted(old: jax.Array, requests: jax.Array) -> jax.Array:
        sum_of_all = jnp.sum(jnp.where(scraped, requests, 0), dtype=jnp.float32)
        return jnp.where(jnp.any(scraped), SHARE_MEMORY * old + sum_of_all, old)

    # The demand has no axis of experts, and a scrape leaves it as it is.
    names = [field.name for field in dataclasses.fields(FleetState) if field.name != "demand"]
    content = {
        name: jax.tree.map(chosen, getattr(now.fleet, name), getattr(belief.fleet, name)) for name in names
    }
    return dataclasses.replace(
        belief,
        fleet=dataclasses.replace(belief.fleet, **content),
        synced_tokens=chosen(now.synced_tokens, belief.synced_tokens),
        expected_tokens=chosen(now.expected_tokens, belief.expected_tokens),
        observed_tokens=chosen(now.observed_tokens, belief.observed_tokens),
        own_in_flight=noted(belief.own_in_flight, own),
        all_in_flight=noted(belief.all_in_flight, total),
        ghost_credit=jnp.where(scraped, 0.0, belief.ghost_credit),
        scrape_age_s=jnp.where(jnp.any(scraped), 0.0, belief.scrape_age_s),
    )
