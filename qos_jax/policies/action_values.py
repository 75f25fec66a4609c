"""Values of actions by simulation: the same future once per action, a base policy routing afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qos_jax.policies.types import Router
from qos_jax.routing.believed_quality import expected_quality, quality_fit
from qos_jax.routing.environment import EnvState, RoutingEnvironment
from qos_jax.routing.fleet_state import pass_time
from qos_jax.routing.observation import Observation
from qos_jax.routing.params import EnvParams, as_good_as_expected


def action_values(
    env: RoutingEnvironment,
    params: EnvParams,
    state: EnvState,
    actions: jax.Array,
    key: jax.Array,
    base: Router,
    base_params: Any,
    horizon: int,
    later: Callable[[Observation], jax.Array] | None = None,
) -> jax.Array:
    """Return the QoS of all requests in flight or arriving within a horizon, by first action: [C] float32.

    After the first action ``base`` routes; after the last decision nothing arrives and the fleet drains, or
    ``later`` values the state reached. All actions meet the same arrivals, requests and draws of ``base``
    (common random numbers), so their differences are far less noisy than the values. The simulation runs on
    true lengths and qualities, which no router knows: one set of values is for one draw of them, and only
    its mean over states that look alike can be imitated.

    Args:
      env: the environment; its reward is replaced by QoS.
      params: with a process.
      state: with the request to be routed.
      actions: [C] int32, the first actions to compare.
      key: [] key of the future; equal keys give equal futures.
      base: the policy that routes afterwards.
      base_params: its parameters.
      horizon: decisions, the first included; static, >= 1.
      later: value of the state reached, [] QoS, in place of draining it.
    """
    plain = RoutingEnvironment(dataclasses.replace(env.config, reward="qos"))
    keys = jax.random.split(key, 2 * horizon).reshape(horizon, 2)
    is_first = jnp.arange(horizon) == 0

    def after(action: jax.Array) -> jax.Array:
        def step(
            carry: tuple[EnvState, jax.Array], given: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[EnvState, jax.Array], None]:
            (state, total), (keys, is_first) = carry, given
            chosen = base(base_params, keys[1], plain.observation(params, state))
            state, result = plain.step(keys[0], state, jnp.where(is_first, action, chosen), params)
            return (state, total + result.reward), None

        (reached, total), _ = jax.lax.scan(step, (state, jnp.float32(0.0)), (keys, is_first))
        if later is not None:
            return total + later(plain.observation(params, reached))
        _, drained = pass_time(
            plain.config.serving, params.profile, reached.fleet, jnp.float32(jnp.inf), params.limits
        )
        return total + jnp.sum(drained.qos)

    return jax.vmap(after)(actions)


def with_expected_quality(params: EnvParams, state: EnvState) -> tuple[EnvParams, EnvState]:
    """Return the environment with expected qualities in place of true ones, see ``as_good_as_expected``.

    Requests in flight keep their true ones: the other experts' predictions for them are not stored.
    """
    quality = expected_quality(quality_fit(params.table), state.request.predicted_quality)
    request = dataclasses.replace(state.request, quality=quality)
    return as_good_as_expected(params), dataclasses.replace(state, request=request)
