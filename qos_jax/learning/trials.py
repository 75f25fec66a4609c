"""Trials: likely actions tried in simulated futures, and a ring of their values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.devices import vmap_lanes
from qos_jax.learning.rollout import EnvLanes
from qos_jax.policies.action_values import action_values, with_expected_quality
from qos_jax.policies.greedy_params import GreedyParams
from qos_jax.policies.heuristics import projected_greedy
from qos_jax.policies.net_gain import crowding_cost, latency_margin
from qos_jax.policies.router_input import RouterInput
from qos_jax.routing import EnvParams, EnvState, Observation, RoutingEnvironment
from qos_jax.routing.impact import expected_qos_in_flight
from qos_jax.workload.capacity import traced_capacity_per_s


@struct.dataclass
class Trials:
    """A ring of D tried states, C actions each."""

    input: RouterInput  # leaves [D, ...]
    action: jax.Array  # [D, C] int32, what was tried
    value: jax.Array  # [D, C] float32 QoS of the simulated future
    count: jax.Array  # [] int32, tried since the start


def empty_trials(example: RouterInput, size: int, candidates: int) -> Trials:
    """Return a ring without content for D = ``size`` states and C = ``candidates`` actions at each."""
    inputs = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), example)
    action, value = (jnp.zeros((size, candidates), dtype) for dtype in (jnp.int32, jnp.float32))
    return Trials(inputs, action, value, count=jnp.int32(0))


def add_trials(trials: Trials, inputs: RouterInput, action: jax.Array, value: jax.Array) -> Trials:
    """Return the ring with B trials written over the oldest, leaves [B, ...]; B must divide D."""
    at = trials.count % trials.value.shape[0]

    def write(ring: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(ring, new, at, axis=0)

    count = trials.count + value.shape[0]
    inputs = jax.tree.map(write, trials.input, inputs)
    return Trials(inputs, write(trials.action, action), write(trials.value, value), count)


def try_actions(
    env: RoutingEnvironment,
    greedy: GreedyParams,
    lanes: EnvLanes,
    candidates: jax.Array,
    key: jax.Array,
    *,
    horizon: int,
    crowding: float,
) -> jax.Array:
    """Return the QoS of each candidate action's simulated future in its lane, [B, C] float32.

    Args:
      env: the environment.
      greedy: of the net gain that routes after the first action.
      lanes: B environments.
      candidates: [B, C] int32, actions.
      key: [] key.
      horizon: decisions of a future, the first included.
      crowding: share of the price of crowding, times the load, paid for those left in flight.
    """

    def of_lane(key: jax.Array, params: EnvParams, state: EnvState, actions: jax.Array) -> jax.Array:
        price = crowding * _load(params)
        params, state = with_expected_quality(params, state)

        def later(seen: Observation) -> jax.Array:
            kept = expected_qos_in_flight(seen, latency_margin(greedy, seen))
            return kept - price * crowding_cost(greedy, seen)

        return action_values(env, params, state, actions, key, projected_greedy, greedy, horizon, later)

    keys = jax.random.split(key, candidates.shape[0])
    return vmap_lanes(of_lane)(keys, lanes.params, lanes.state, candidates)


def _load(params: EnvParams) -> jax.Array:
    """Return the arrival rate as a share of the fleet's capacity, [] float32."""
    assert params.process is not None
    capacity_per_s = jnp.sum(traced_capacity_per_s(params.profile, params.table))
    return params.process.rate_per_s / capacity_per_s
