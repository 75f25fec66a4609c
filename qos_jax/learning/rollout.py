"""Experience of many environments at once, each with its own parameters, renewed as episodes end.

Drawing parameters (a table of some hundred requests) costs far more than a step, and under ``vmap`` a
conditional draw is a draw by every lane at every step. So no lane is renewed within a rollout. Between
rollouts :func:`renew_lanes` renews the few lanes whose episode is over: an episode lasts ``max_steps``
decisions rounded up to whole rollouts, and the last state of a rollout is the one that the episode reached,
not its successor's: **bootstrap from there**. So the input after step t is the input of step t + 1 in every
rollout, and need not be stored. Where a recorded episode ends by itself (``terminated``, nothing to
bootstrap), its lane replays it until it is renewed, for a reset is cheap. Everywhere ``greedy`` is of the net
gain that network inputs are made with, and ``sample_params`` draws the parameters of one episode.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.devices import share_out, vmap_lanes
from qos_jax.errors import input_error
from qos_jax.learning.types import SampleParams
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.greedy_params import GreedyParams
from qos_jax.policies.router_input import RouterInput, router_input
from qos_jax.policies.types import PREDICTIONS, PROFILES
from qos_jax.routing import EnvParams, EnvState, Observation, RoutingEnvironment
from qos_jax.routing.impact import true_impact

# (key, inputs [B]) -> (actions [B] int32, what else to keep of the choice, leaves [B, ...])
Act = Callable[[jax.Array, RouterInput], tuple[jax.Array, Any]]


@struct.dataclass
class EnvLanes:
    """B environments at the instant of a decision."""

    state: EnvState  # leaves [B, ...]
    params: EnvParams  # leaves [B, ...], each lane its own
    input: RouterInput  # leaves [B, ...], of the observation of ``state``
    overdue: jax.Array  # [B] int32, decisions since the episode ended; 0 = it goes on
    key: jax.Array  # [] key


@struct.dataclass
class TrueImpact:
    """The impact that the newcomer has at each expert if nothing else arrives, by true lengths."""

    keeps: jax.Array  # [N] float32, 1 = it keeps the limits there, 0 = it does not, or is rejected
    lost: jax.Array  # [N] float32, QoS that others lose


@struct.dataclass
class Transition:
    """One decision and its outcome. ``input``, and so the action mask, is of the state decided in.

    The input of the state reached is that of the next transition or, after the last one, ``input`` of
    the lanes before they are renewed.
    """

    input: RouterInput
    action: jax.Array  # [] int32
    reward: jax.Array  # [] float32
    terminated: jax.Array  # [] bool, the state reached has no future
    qos: jax.Array  # [] float32, sum of the QoS of the requests that completed
    completed: jax.Array  # [] int32, how many those are
    rejected: jax.Array  # [] bool, by the chosen expert: a full queue, or too long for its KV cache
    dropped: jax.Array  # [] bool
    impact: TrueImpact | None = None  # with ``with_impact``


def check_allow_drop(env: RoutingEnvironment, network: NetworkConfig) -> None:
    """Check that network and environment agree on the number of actions.

    Raises:
      InputError: ``allow_drop`` differs.
    """
    if network.allow_drop != env.config.allow_drop:
        fault = f"{network.allow_drop} of the network differs from {env.config.allow_drop} of the environment"
        raise input_error(fault, field="allow_drop", remedy="set both alike")


def decision_metrics(steps: Transition) -> dict[str, jax.Array]:
    """Return figures of decisions, leaves [T, B]: [] float32 each.

    ``reward`` is a mean over decisions, ``qos`` over the requests that ended; the shares are of decisions.
    """
    ended = jnp.sum(steps.completed) + jnp.sum(steps.rejected) + jnp.sum(steps.dropped)
    return {
        "reward": jnp.mean(steps.reward),
        "qos": jnp.sum(steps.qos) / jnp.maximum(ended, 1).astype(jnp.float32),
        "rejected_share": jnp.mean(steps.rejected.astype(jnp.float32)),
        "dropped_share": jnp.mean(steps.dropped.astype(jnp.float32)),
    }


def start_lanes(
    env: RoutingEnvironment, sample_params: SampleParams, greedy: GreedyParams, key: jax.Array, num_envs: int
) -> EnvLanes:
    """Return ``num_envs`` fresh lanes.

    With an arrival process their first episodes begin at a random step, so that not all end together.
    """
    key, lanes_key, age_key = jax.random.split(key, 3)
    state, params, seen = _fresh(env, sample_params, greedy, lanes_key, num_envs)
    if params.process is not None:
        age = jax.random.randint(age_key, (num_envs,), 0, env.config.max_steps)
        state = dataclasses.replace(state, step=age)
    overdue = jnp.zeros((num_envs,), jnp.int32)
    return EnvLanes(state=state, params=params, input=seen, overdue=overdue, key=key)


def step_lanes(
    env: RoutingEnvironment,
    greedy: GreedyParams,
    lanes: EnvLanes,
    actions: jax.Array,
    *,
    with_impact: bool = False,
    potential: jax.Array | None = None,
) -> tuple[EnvLanes, Transition, jax.Array | None]:
    """Advance all lanes by one decision.

    Args:
      env: the environment.
      greedy: of the net gain that network inputs are made with.
      lanes: B environments.
      actions: [B] int32.
      with_impact: compute the true impact of each decision, too.
      potential: [B] float32, :meth:`RoutingEnvironment.potential` of each lane where it is known.

    Returns:
      The lanes, the transitions (leaves [B, ...]), and the potential of the states reached; None with another
      reward.
    """
    key, step_key = jax.random.split(lanes.key)

    def one(
        key: jax.Array,
        state: EnvState,
        params: EnvParams,
        seen: RouterInput,
        action: jax.Array,
        potential: jax.Array | None,
        greedy: GreedyParams,
    ) -> tuple[EnvState, RouterInput, jax.Array, Transition, jax.Array | None]:
        key, reset_key = jax.random.split(key)
        reached, result = env.step(key, state, action, params, potential)
        observation = result.observation
        if params.process is None:  # nothing else terminates
            start = env.reset(reset_key, params)
            reached, observation = jax.tree.map(
                lambda new, old: jnp.where(result.terminated, new, old), start, (reached, observation)
            )
        transition = Transition(
            input=seen,
            action=action,
            reward=result.reward,
            terminated=result.terminated,
            qos=jnp.sum(result.info.passed.qos),
            completed=jnp.sum(result.info.passed.completed_count, dtype=jnp.int32),
            rejected=result.info.routed.rejected | result.info.routed.rejected_too_long,
            dropped=result.info.routed.dropped,
            impact=_impact(env, params, state) if with_impact else None,
        )
        over = result.terminated | result.truncated
        return reached, _input(observation, greedy), over, transition, result.info.potential

    keys = jax.random.split(step_key, lanes.overdue.shape[0])
    given = keys, lanes.state, lanes.params, lanes.input, actions, potential, greedy
    stepped = vmap_lanes(one, (*[0] * 6, None), is_small=env.config.serving.is_small)(*given)
    state, seen, over, transition, potential = stepped
    overdue = lanes.overdue + (over | (lanes.overdue > 0)).astype(jnp.int32)
    lanes = dataclasses.replace(lanes, state=state, input=seen, overdue=overdue, key=key)
    return lanes, transition, potential


def rollout(
    env: RoutingEnvironment,
    greedy: GreedyParams,
    act: Act,
    lanes: EnvLanes,
    steps: int,
    *,
    with_impact: bool = False,
) -> tuple[EnvLanes, Transition, Any]:
    """Advance all lanes by ``steps`` decisions of a policy.

    Returns:
      lanes: after the last decision, not renewed: bootstrap from ``lanes.input``.
      transitions: leaves [T, B, ...].
      kept: the second result of ``act``, leaves [T, B, ...].
    """

    def one(
        carry: tuple[EnvLanes, jax.Array | None], _: None
    ) -> tuple[tuple[EnvLanes, jax.Array | None], tuple[Transition, Any]]:
        lanes, potential = carry
        key, act_key = jax.random.split(lanes.key)
        actions, kept = act(act_key, lanes.input)
        lanes = dataclasses.replace(lanes, key=key)
        lanes, transition, potential = step_lanes(
            env, greedy, lanes, actions, with_impact=with_impact, potential=potential
        )
        return (lanes, potential), (transition, kept)

    start = vmap_lanes(env.potential, is_small=env.config.serving.is_small)(lanes.params, lanes.state)
    (lanes, _), (transitions, kept) = jax.lax.scan(one, (lanes, start), None, length=steps)
    return lanes, transitions, kept


def renew_lanes(
    env: RoutingEnvironment, sample_params: SampleParams, greedy: GreedyParams, lanes: EnvLanes, steps: int
) -> tuple[EnvLanes, jax.Array]:
    """Reset lanes whose episode is over, with new parameters; call it every ``steps`` decisions.

    At most as many lanes are renewed as end on average, rounded up, the longest overdue first; the rest go
    on. So the cost does not depend on when episodes end.

    Returns:
      lanes: to go on with.
      renewed: [B] bool, where an episode was cut here (truncated, unless the last step terminated it).
    """
    num_envs = lanes.overdue.shape[0]
    length = env.config.max_steps
    if lanes.params.episode is not None:
        length = min(length, lanes.params.episode.gap_after_s.shape[-1])
    count = min(num_envs, math.ceil(num_envs * steps / length))
    key, lanes_key = jax.random.split(lanes.key)
    waited, index = jax.lax.top_k(lanes.overdue, count)
    index = jnp.where(waited > 0, index, num_envs)  # past the end: dropped
    state, params, seen = _fresh(env, sample_params, greedy, lanes_key, count)
    old = (lanes.state, lanes.params, lanes.input, lanes.overdue, jnp.zeros((num_envs,), bool))
    new = (state, params, seen, jnp.zeros((count,), jnp.int32), jnp.ones((count,), bool))
    *lanes_of, renewed = jax.tree.map(lambda old, new: old.at[index].set(new, mode="drop"), old, new)
    state, params, seen, overdue = share_out(tuple(lanes_of))
    return EnvLanes(state, params, seen, overdue, key), renewed


def _fresh(
    env: RoutingEnvironment, sample_params: SampleParams, greedy: GreedyParams, key: jax.Array, count: int
) -> tuple[EnvState, EnvParams, RouterInput]:
    """Return ``count`` environments just reset, each with parameters of its own."""

    def one(key: jax.Array) -> tuple[EnvState, EnvParams, RouterInput]:
        params_key, reset_key = jax.random.split(key)
        params = sample_params(params_key)
        state, observation = env.reset(reset_key, params)
        return state, params, _input(observation, greedy)

    return jax.vmap(one)(jax.random.split(key, count))


def _impact(env: RoutingEnvironment, params: EnvParams, state: EnvState) -> TrueImpact:
    """Return the impact of the request at hand."""
    impact = true_impact(env.true_observation(params, state), jnp.float32(0.0))
    return TrueImpact(keeps=impact.own_chance, lost=impact.penalty)


def _input(seen: Observation, greedy: GreedyParams) -> RouterInput:
    """Return the networks' input: where answers are measured, that of a router that knows no profile."""
    information = PROFILES if seen.measured is None else PREDICTIONS
    return router_input(
        seen,
        greedy,
        information=information,
        believes=seen.belief is not None,
        sees_caches=seen.prefix is not None,
    )
