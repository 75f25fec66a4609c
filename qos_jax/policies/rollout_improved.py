"""The policy-improvement oracle: try every action in simulated futures and take the best on average."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.policies.action_values import action_values
from qos_jax.policies.greedy_params import GreedyParams, greedy_params
from qos_jax.policies.heuristics import projected_greedy
from qos_jax.policies.types import Policy, Router
from qos_jax.routing.demand import no_demand
from qos_jax.routing.environment import EnvState, RoutingEnvironment
from qos_jax.routing.fleet_state import FleetState, Request
from qos_jax.routing.observation import Observation
from qos_jax.routing.params import EnvConfig, make_params
from qos_jax.serving import ServingConfig, ServingState
from qos_jax.workload import ArrivalProcess, RequestTable, init_arrivals


@struct.dataclass
class RolloutParams:
    """What the simulated futures are made of."""

    table: RequestTable  # M requests that later arrivals are drawn from; qualities as predicted count
    process: ArrivalProcess  # when they arrive; a fresh start of it at every decision
    greedy: GreedyParams  # of projected_greedy, which routes after the action that is tried
    margin: jax.Array  # [] float32, QoS by which an action must beat projected_greedy's to be taken


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Static choices of the oracle; hashable.

    Raises:
      ValueError: a count below 1.
    """

    serving: ServingConfig
    futures: int = 8  # drawn per decision, the same for every action
    horizon: int = 30  # decisions of a future
    allow_drop: bool = False

    def __post_init__(self) -> None:
        if min(self.futures, self.horizon) < 1:
            raise ValueError(f"{self}: futures and horizon must be at least 1")


def rollout_improved(
    config: RolloutConfig, table: RequestTable, process: ArrivalProcess, margin: float = 0.0
) -> Policy:
    """Return the oracle: ``projected_greedy`` improved by ``futures`` simulations of every action.

    It knows the law of what arrives later, which routers do not, but of the requests in flight no more than
    they see: hidden lengths are drawn anew from their predictions, given that each got so far, and a
    request is as good as predicted. A decision costs A x futures x horizon simulated decisions, so this
    is a ceiling to measure and a teacher (see ``learning/distil.py``), not a router for use.

    Args:
      config: static choices.
      table: of N experts.
      process: arrivals.
      margin: QoS, see :class:`RolloutParams`.
    """
    return Policy(
        name="rollout_improved",
        summary="projected_greedy improved by trying every action in simulated futures: a teacher.",
        router=_router(config),
        params=RolloutParams(
            table=jax.tree.map(jnp.asarray, table),
            process=process,
            greedy=greedy_params(allow_drop=config.allow_drop),
            margin=jnp.float32(margin),
        ),
    )


@functools.cache
def _router(config: RolloutConfig) -> Router:
    env = RoutingEnvironment(EnvConfig(config.serving, allow_drop=config.allow_drop))
    actions = jnp.arange(env.config.num_actions, dtype=jnp.int32)

    def route(params: RolloutParams, key: jax.Array, seen: Observation) -> jax.Array:
        table = dataclasses.replace(params.table, quality=params.table.predicted_quality)
        edge = make_params(
            seen.profile, table, seen.latency_limit_s, seen.length_log_std, process=params.process
        )

        def future(key: jax.Array) -> jax.Array:
            draw_key, arrivals_key, run_key = jax.random.split(key, 3)
            state = imagined(draw_key, seen)
            state = dataclasses.replace(state, arrivals=init_arrivals(arrivals_key, params.process))
            return action_values(
                env, edge, state, actions, run_key, projected_greedy, params.greedy, config.horizon
            )

        base_key, future_key = jax.random.split(key)
        values = jnp.mean(jax.vmap(future)(jax.random.split(future_key, config.futures)), axis=0)
        usable = jnp.where(jnp.any(seen.available), seen.available, True)
        usable = jnp.concatenate([usable, jnp.ones((len(actions) - usable.shape[0],), bool)])
        base = projected_greedy(params.greedy, base_key, seen)
        best = jnp.argmax(jnp.where(usable, values, -jnp.inf)).astype(jnp.int32)
        return jnp.where(values[best] > values[base] + params.margin, best, base)

    return route


def imagined(key: jax.Array, seen: Observation) -> EnvState:
    """Draw a state that looks like ``seen``: lengths from their predictions, qualities as predicted.

    Outcomes of past requests, which no action changes, are left out; ``arrivals`` is None.
    """
    slot_key, new_key = jax.random.split(key)
    generated = seen.slot_generated_tokens
    length = _length_beyond(
        slot_key, seen.slot_predicted_output_tokens, seen.length_log_std[:, None], generated
    )
    own = _length_beyond(
        new_key,
        seen.predicted_output_tokens,
        seen.length_log_std,
        jnp.zeros((seen.num_experts,), jnp.int32),
    )
    number = jnp.broadcast_to(jnp.arange(seen.live.shape[-1], dtype=jnp.int32), seen.live.shape)
    nothing = jnp.full(seen.live.shape, -1.0, jnp.float32)
    serving = ServingState(
        request_id=jnp.where(seen.live, number, -1),
        live=seen.live,
        running=seen.running,
        age_s=seen.age_s,
        context_tokens=seen.slot_prompt_tokens + generated,
        left_tokens=length - generated,
        prefill_left_tokens=seen.slot_prefill_left_tokens,
        ttft_s=nothing,
        latency_s=nothing,
        preemptions=jnp.zeros_like(number),
        lead_s=seen.lead_s,
    )
    zero = jnp.int32(0)
    return EnvState(
        fleet=FleetState(
            serving=serving,
            prompt_tokens=seen.slot_prompt_tokens,
            output_tokens=length,
            quality=seen.slot_predicted_quality,
            predicted_output_tokens=seen.slot_predicted_output_tokens,
            predicted_quality=seen.slot_predicted_quality,
            demand=no_demand(seen.num_experts),  # what came before is not seen, and no base looks at it
        ),
        request=Request(
            prompt_tokens=seen.prompt_tokens,
            output_tokens=own,
            quality=seen.predicted_quality,
            predicted_output_tokens=seen.predicted_output_tokens,
            predicted_quality=seen.predicted_quality,
        ),
        step=zero,
        arrivals=None,
        completed=zero,
        rejected=zero,
        dropped=zero,
    )


def _length_beyond(
    key: jax.Array, predicted_tokens: jax.Array, log_std: jax.Array, generated_tokens: jax.Array
) -> jax.Array:
    """Draw log-normal lengths about the predictions, given that they exceed what is generated; int32."""
    std = jnp.maximum(log_std, 1e-3)
    z = jnp.log(jnp.maximum(generated_tokens.astype(jnp.float32), 0.5) / predicted_tokens) / std
    beyond = jax.scipy.special.ndtr(-z)  # the share of answers that get so far
    uniform = jax.random.uniform(key, predicted_tokens.shape, minval=1e-6, maxval=1.0)
    # Far out, where float32 has no digits left of the normal tail, the length is drawn just beyond.
    drawn = jnp.where(z < 5.0, -jax.scipy.special.ndtri(uniform * beyond), z + 0.1)
    tokens = jnp.round(predicted_tokens * jnp.exp(std * drawn))
    return jnp.maximum(jnp.clip(tokens, 1.0, 2.0**20).astype(jnp.int32), generated_tokens + 1)
