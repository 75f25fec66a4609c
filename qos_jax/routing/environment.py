"""The routing environment: one step is one decision, and the time to the next arrival."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.devices import vary_alike
from qos_jax.routing.fleet_state import FleetState, Passed, Request, Routed, empty_fleet, pass_time
from qos_jax.routing.fleet_step import step_fleet
from qos_jax.routing.impact import qos_in_flight
from qos_jax.routing.observation import (
    KnownFleet,
    Observation,
    TrueObservation,
    observe,
    reveal,
    see_prefixes,
)
from qos_jax.routing.params import EnvConfig, EnvParams, Episode, check_prefixes, drawn_row, request_at
from qos_jax.routing.reward import reward_for
from qos_jax.routing.routers import redirected
from qos_jax.routing.spaces import Discrete, Tree, tree_space
from qos_jax.routing.world_environment import (
    EnvWorld,
    arrival_keys,
    believed,
    decide_at_hand,
    drain_world,
    next_decision,
    start_world,
    true_queues,
    with_belief,
    world_params,
)
from qos_jax.routing.world_params import WorldParams
from qos_jax.serving import FleetProfile, cut_at_limit, with_context_limit
from qos_jax.workload.arrivals import ArrivalState, init_arrivals, next_gap


@struct.dataclass
class EnvState:
    """The environment at the instant a request has arrived and is to be routed."""

    fleet: FleetState
    request: Request  # the arrived one
    step: jax.Array  # [] int32, decisions taken
    arrivals: ArrivalState | None  # where the process stands; None in a replay
    completed: jax.Array  # [] int32, since reset
    rejected: jax.Array  # [] int32, by a full queue
    rejected_too_long: jax.Array  # [] int32, beyond an expert's KV cache or context limit
    dropped: jax.Array  # [] int32
    world: EnvWorld | None = None  # with ``EnvConfig.telemetry``; its requests' ids are tags

    @property
    def arrived(self) -> jax.Array:
        """[] int32, requests that arrived and were routed at least once; the newcomer is not counted."""
        return self.step if self.world is None else self.world.arrival

    @property
    def failed(self) -> jax.Array:
        """[] int32, requests that failed for good."""
        return jnp.zeros_like(self.step) if self.world is None else self.world.failed

    @property
    def in_flight(self) -> jax.Array:
        """[] int32, requests waiting, running, or to be routed again; the newcomer is not counted."""
        live = jnp.sum(self.fleet.serving.live, dtype=jnp.int32)
        return live if self.world is None else live + self.world.retries.count


@struct.dataclass
class StepInfo:
    """What a step did, for metrics and records."""

    routed: Routed
    passed: Passed
    gap_s: jax.Array  # [] float32, seconds that passed; inf on the draining last step of a trace
    failed: jax.Array | None = None  # [] int32, requests that failed for good; None without faults
    potential: jax.Array | None = None  # [] float32 QoS, Phi of the state reached; with that reward alone


@struct.dataclass
class TimeStep:
    """Result of a step. ``observation`` is that of the state reached, the final one included."""

    observation: Observation
    reward: jax.Array  # [] float32
    terminated: jax.Array  # [] bool, the trace has ended and every request has completed
    truncated: jax.Array  # [] bool, max_steps decisions were taken and it has not ended by itself
    info: StepInfo


@dataclasses.dataclass(frozen=True)
class RoutingEnvironment:
    """Routing of requests among N LLM experts, as pure functions; ``jax.vmap`` it over keys or params.

    With N experts of K slots each and the W windows of ``demand.py``:

    - observation: :class:`Observation`, what routers may see:
        - step: [] int32, requests that arrived before this one.
        - prompt_tokens: [] int32, tokens of the arrived request.
        - predicted_output_tokens: [N] float32, tokens, the median the predictor says for it.
        - predicted_quality: [N] float32 in [0, 1], of its answer.
        - limits: :class:`ServiceLimits`, leaves [] float32, seconds; None where not set.
        - length_log_std: [N] float32, std of log(true) - log(predicted) output tokens.
        - profile: :class:`FleetProfile`, leaves [N] int32 (requests, tokens) or float32 (seconds, watts).
        - offered_load: [W] float32, recent arrival rate / capacity.
        - mean_output_tokens: [N] float32, tokens, mean of those predicted recently; 0 before any.
        - mean_quality: [N] float32, mean of those predicted recently; 0 before any.
        - available: [N] bool, fewer than ``max_waiting`` wait, and the expert can hold the prompt.
        - lead_s: [N] float32, seconds to the end of the iteration in progress.
        - live, running: [N, K] bool, the slot's request waits or runs; it runs.
        - age_s: [N, K] float32, seconds since its arrival.
        - slot_prompt_tokens, slot_generated_tokens, slot_prefill_left_tokens: [N, K] int32, tokens.
        - slot_predicted_output_tokens: [N, K] float32, tokens.
        - slot_predicted_quality: [N, K] float32 in [0, 1].
        - slot_ttft_s: [N, K] float32, seconds to its first token; -1 = none yet.
        - measured: :class:`Measured` with ``EnvConfig.measures``, leaves [N, W] float32, else None.
        - belief: :class:`BeliefNotes` with ``EnvConfig.telemetry``, else None; the queues, demand and
          profile above are then what the request's router believes:
            - scrape_age_s: [] float32, seconds since its last scrape.
            - pace: [N] float32, estimated pace; 1 = as the profile says, more is slower.
            - foreign_load: [] float32, requests of other routers for each of its own.
            - up: [N] bool, not known to be down.
        - prefix: :class:`SeenPrefixes` with ``ServingConfig.prefix_entries``, else None: group, [] int32,
          and cached_tokens, [N] int32, of the request; slot_cached_tokens, [N, K] int32, of those waiting.
    - action: [] int32, 0..N-1 the expert; N drops the request where ``allow_drop``. Other numbers drop too.
    - reward: [] float32, quality (no unit); see ``reward.py``. By default the QoS of the requests completed
      since the last decision.
    - end:
        - terminated: [] bool, a trace is exhausted; its last step drains, so every request is paid for.
        - truncated: [] bool, the time limit of decisions is reached (:meth:`max_steps`).
        - No auto-reset; stepping an ended episode is undefined.
    - randomness: only arrivals and request contents are random, and neither depends on the actions, so
      equal keys give every policy the same requests at the same times. So are routers, scrapes and faults,
      which are drawn by the key of the reset alone; with faults, arrivals are too, by their number, since
      requests that are routed again take steps of their own.

    Source: arXiv 2508.00234, problem formulation; see routing/README.md, rules 1 to 8.
    """

    config: EnvConfig

    def reset(self, key: jax.Array, params: EnvParams) -> tuple[EnvState, Observation]:
        """Return an empty edge at the instant of the first arrival.

        Raises:
          ValueError: ``params`` have neither a process nor an episode, or not the telemetry or faults that
            the configuration asks for; or with prefix caching, requests that do not say what they share.
        """
        arrivals_key, row_key = jax.random.split(key)
        arrivals = None if params.process is None else init_arrivals(arrivals_key, params.process)
        zero = jnp.int32(0)
        around, world = self._world(params), None
        fleet = empty_fleet(self.config.serving, measures=self.config.measures)
        if around is not None:
            fleet, world = start_world(around, key)
            row_key = row_key if params.faults is None else arrival_keys(world, zero)[1]
        state = EnvState(
            fleet=fleet,
            request=self._request(row_key, params, zero),
            step=zero,
            arrivals=arrivals,
            completed=zero,
            rejected=zero,
            rejected_too_long=zero,
            dropped=zero,
            world=world,
        )
        state = self._with_belief(params, vary_alike(state, key, params))
        return state, self.observation(params, state)

    def step(
        self,
        key: jax.Array,
        state: EnvState,
        action: jax.Array,
        params: EnvParams,
        potential: jax.Array | None = None,
    ) -> tuple[EnvState, TimeStep]:
        """Route the request at hand, let time pass to the next arrival, pay for what completed.

        Args:
          key: [] key.
          state: in which the action is taken.
          action: [] int32, an expert; N drops the request.
          params: the environment's.
          potential: [] float32, :meth:`potential` of ``state`` where it is known, which saves computing it.
        """
        config, world, number = self.config, state.world, state.arrived
        action = jnp.asarray(action, jnp.int32)
        around, known = self._world(params), self._known(params)
        arrivals_key, row_key = jax.random.split(key)
        if world is not None and params.faults is not None:
            # By the number of the arrival: decisions lead to others, and so to more steps.
            arrivals_key = arrival_keys(world, number)[0]
        before = self._truth(params, state)
        if params.process is not None and state.arrivals is not None:
            gap_s, arrivals = next_gap(arrivals_key, params.process, state.arrivals)
            terminated = jnp.bool_(False)
        else:
            episode = _episode(params)
            terminated = number + 1 >= episode.gap_after_s.shape[0]
            gap_s, arrivals = jnp.where(terminated, jnp.inf, episode.gap_after_s[number]), None
        failed = None
        if around is None or world is None:
            fleet, routed, passed = step_fleet(
                config.serving,
                known.profile,
                state.fleet,
                state.request,
                number,
                action,
                gap_s,
                params.limits,
            )
            request = self._request(row_key, params, number + 1)
        else:
            action = redirected(action, self.observation(params, state).belief)
            decided = decide_at_hand(around, state.fleet, world, state.request, action, gap_s)
            fleet, routed, passed, moves_on = decided.fleet, decided.routed, decided.passed, decided.moves_on
            world = next_decision(around, decided.world)
            next_id = world.hand.request_id
            if params.faults is not None:
                failed, row_key = decided.failed, arrival_keys(world, next_id)[1]
                terminated, gap_s = terminated & moves_on, jnp.where(moves_on, gap_s, 0.0)
                arrivals = jax.tree.map(
                    lambda new, old: jnp.where(moves_on, new, old), arrivals, state.arrivals
                )
            request = self._request(row_key, params, next_id)
        reached = EnvState(
            fleet=fleet,
            request=request,
            step=state.step + 1,
            arrivals=arrivals,
            completed=state.completed + jnp.sum(passed.completed_count, dtype=jnp.int32),
            rejected=state.rejected + routed.rejected.astype(jnp.int32),
            rejected_too_long=state.rejected_too_long + routed.rejected_too_long.astype(jnp.int32),
            dropped=state.dropped + routed.dropped.astype(jnp.int32),
            world=world,
        )
        reached = self._with_belief(params, vary_alike(reached, key, state, action, params))
        after = self._truth(params, reached)
        potentials = None
        if config.reward == "potential":
            ahead = jnp.where(terminated, 0.0, qos_in_flight(after))
            potentials = qos_in_flight(before) if potential is None else potential, ahead
        return reached, TimeStep(
            observation=after.seen if reached.world is None else self.observation(params, reached),
            reward=reward_for(config.reward, params, before, action, routed.accepted, passed, potentials),
            terminated=terminated,
            truncated=(reached.step >= self.max_steps(params)) & ~terminated,
            info=StepInfo(
                routed=routed,
                passed=passed,
                gap_s=gap_s,
                failed=failed,
                potential=None if potentials is None else potentials[1],
            ),
        )

    def potential(self, params: EnvParams, state: EnvState) -> jax.Array | None:
        """Return Phi of ``state``, [] float32 QoS; None with another reward than ``potential``."""
        return qos_in_flight(self._truth(params, state)) if self.config.reward == "potential" else None

    def drain(self, params: EnvParams, state: EnvState) -> Passed:
        """Return the events and totals of all time to come if nothing else arrives."""
        around, gap_s = self._world(params), jnp.float32(jnp.inf)
        if around is None or state.world is None:
            return pass_time(self.config.serving, params.profile, state.fleet, gap_s, params.limits)[1]
        return drain_world(around, state.fleet, state.world)

    def max_steps(self, params: EnvParams) -> int:
        """Return the decisions until the time limit: as ``params`` say, or else the configuration."""
        given = params.max_steps_in_episode
        return self.config.max_steps if given is None else given

    def action_space(self, params: EnvParams | None = None) -> Discrete:
        """Return the space of actions: N experts, and one more to drop if allowed."""
        return Discrete(self.config.num_actions)

    def observation_space(self, params: EnvParams) -> Tree:
        """Return the space of observations: a pytree like one, with ``sample`` and ``contains``."""
        return tree_space(jax.eval_shape(self.reset, jax.random.key(0), params)[1])

    def observation(self, params: EnvParams, state: EnvState) -> Observation:
        """What a router may see of ``state``; with ``EnvConfig.telemetry``, what the request's believes."""
        around = self._world(params)
        if around is None or state.world is None:
            known = self._known(params)
            prefix = see_prefixes(self.config.serving, known.profile, state.fleet, state.request)
            return observe(known, state.fleet, state.request, state.step, prefix)
        return believed(around, state.fleet, state.world, state.request)

    def true_observation(self, params: EnvParams, state: EnvState) -> TrueObservation:
        """What an oracle may see of ``state``."""
        return reveal(self.observation(params, state), state.fleet, state.request)

    def is_over(self, params: EnvParams, state: EnvState) -> jax.Array:
        """Return whether the episode that is replayed has ended at ``state``, [] bool."""
        if params.episode is None:
            return jnp.bool_(False)
        number = state.step if self.config.telemetry is None else state.arrived
        return number >= params.episode.row.shape[0]

    def _truth(self, params: EnvParams, state: EnvState) -> TrueObservation:
        """What rewards go by: the true queues, whatever routers believe."""
        around = self._world(params)
        if around is None or state.world is None:
            return self.true_observation(params, state)
        seen = true_queues(around, state.fleet, state.world, state.request)
        return reveal(seen, state.fleet, state.request)

    def _with_belief(self, params: EnvParams, state: EnvState) -> EnvState:
        """Return the state with the belief of the router that decides next; as it is, without telemetry."""
        around = self._world(params)
        if around is None or state.world is None:
            return state
        return dataclasses.replace(state, world=with_belief(around, state.fleet, state.world))

    def _request(self, key: jax.Array, params: EnvParams, step: jax.Array) -> Request:
        """The request that arrives as number ``step``; past a trace's end, its last one again."""
        check_prefixes(self.config.serving, params.table)
        if params.process is not None:
            row = drawn_row(self.config.serving, key, params.table, step)
        else:
            rows = _episode(params).row
            row = rows[jnp.minimum(step, rows.shape[0] - 1)]
        return cut_at_limit(self._profile(params), request_at(params.table, row))

    def _world(self, params: EnvParams) -> WorldParams | None:
        """Return what stays the same in the world; None where routers see everything."""
        return world_params(self.config, params, self._known(params))

    def _known(self, params: EnvParams) -> KnownFleet:
        return dataclasses.replace(params.known, profile=self._profile(params))

    def _profile(self, params: EnvParams) -> FleetProfile:
        """Return the profile with the context limits of the scheduler."""
        return with_context_limit(self.config.serving.scheduler, params.profile)


def _episode(params: EnvParams) -> Episode:
    if params.episode is None:
        raise ValueError("params have neither a process nor an episode: build them with make_params")
    return params.episode
