"""The work that speeds are measured on: a fleet of equal experts, and stretches of requests for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qos_jax.errors import input_error
from qos_jax.policies import Policy
from qos_jax.routing import (
    EnvConfig,
    EnvParams,
    EnvState,
    Episode,
    Observation,
    RoutingEnvironment,
    make_params,
)
from qos_jax.serving import ServiceLimits, ServingConfig
from qos_jax.simulation.blocks import cpu_block_runs
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases
from qos_jax.simulation.simulate import Runs
from qos_jax.workload import Fleet, Trace, gaps_s, select_experts, take
from qos_jax.workload.named import TRACE
from qos_jax.workload.setting import open_setting

_FLEET = "edge6"
_STRETCHES = 64  # different ones; more environments replay them again


@dataclasses.dataclass(frozen=True)
class Work:
    """What a simulator is given to do."""

    serving: ServingConfig
    runs: Runs


@struct.dataclass
class Lane:
    """What one environment replays."""

    episode: Episode
    limits: ServiceLimits  # leaves [] float32
    length_log_std: jax.Array  # [N] float32
    seed: jax.Array  # [] uint32, of the policy's own randomness


def draw_work(
    experts: int,
    slots: int | None,
    num_requests: int,
    scheduler: str,
    seed: int,
    arrival_rate_per_s: float | None = None,
    trace: Trace | None = None,
) -> Work:
    """Draw 64 stretches of requests for copies of the shipped edge fleet's first expert.

    Args:
      experts: N, how many copies.
      slots: requests that run, and as many that may wait, on each; None = as the fleet has.
      num_requests: of a stretch.
      scheduler: as in :class:`ServingConfig`.
      seed: of the requests.
      arrival_rate_per_s: of the whole fleet; None = the workload's own.
      trace: what to cut the stretches from; None = the shipped figures of azure_conv.

    Raises:
      InputError: what ``build_cases`` raises, or a trace shorter than a stretch.
    """
    setting = open_setting(_FLEET)
    fleet = _equal_fleet(setting.fleet, experts, slots)
    config = CaseConfig(
        workloads=("azure_conv",) if trace is None else (TRACE,),
        arrival_rates=() if arrival_rate_per_s is None else (arrival_rate_per_s,),
        seeds=_STRETCHES if trace is None else 1,
        num_requests=num_requests,
        seed=seed,
    )
    figures = select_experts(setting.figures, (0,) * experts)
    (case,) = build_cases(config, fleet, figures, setting.limits, trace)
    assert isinstance(case.runs, Runs)
    runs = case.runs if trace is None else cut_stretches(case.runs, _STRETCHES, num_requests)
    return Work(fleet.serving(scheduler), runs)


def _equal_fleet(fleet: Fleet, experts: int, slots: int | None) -> Fleet:
    """Return copies of a fleet's first expert, with ``slots`` running and as many waiting slots."""
    fleet = take(fleet, [0] * experts)
    if slots is None:
        return fleet
    each = np.full((experts,), slots, np.int32)
    budget = np.maximum(fleet.profile.max_batched_tokens, each)
    changed: dict[str, Any] = {"max_running": each, "max_waiting": each, "max_batched_tokens": budget}
    return Fleet(fleet.names, dataclasses.replace(fleet.profile, **changed))


def block_size(serving: ServingConfig, environments: int) -> int:
    """Environments that are stepped together: on a CPU, as many as stay in cache and make whole blocks."""
    most = cpu_block_runs(serving) if jax.default_backend() == "cpu" else environments
    return next(size for size in range(min(most, environments), 0, -1) if environments % size == 0)


def lanes_of(runs: Runs, environments: int, block: int) -> tuple[Lane, EnvParams]:
    """Lanes in blocks, leaves [blocks, block, ...], and params whose table holds the rows of all runs.

    Environment i replays run i, modulo the runs given.
    """
    num_runs, num_requests = runs.shape
    lanes = np.arange(environments) % num_runs
    gap_after_s = np.full(runs.arrival_s.shape, np.inf, np.float32)
    gap_after_s[:, :-1] = gaps_s(runs.arrival_s[:, :-1], runs.arrival_s[:, 1:])
    row = lanes[:, None] * num_requests + np.arange(num_requests)

    def blocks(values: np.ndarray, dtype: Any) -> jax.Array:
        return jnp.asarray(values.reshape(environments // block, block, *values.shape[1:]), dtype)

    lane = Lane(
        episode=Episode(
            gap_after_s=blocks(gap_after_s[lanes], jnp.float32), row=blocks(row.astype(np.int32), jnp.int32)
        ),
        limits=jax.tree.map(lambda limit_s: blocks(limit_s[lanes], jnp.float32), runs.limits),
        length_log_std=blocks(runs.length_log_std[lanes], jnp.float32),
        seed=blocks(runs.seed[lanes], jnp.uint32),
    )
    table = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), runs.requests)
    first = jax.tree.map(lambda x: x[0, 0], lane.episode)
    limits = jax.tree.map(lambda limit_s: limit_s[0], runs.limits)
    params = make_params(runs.profile, table, limits, runs.length_log_std[0], episode=first)
    return lane, params


def own_params(params: EnvParams, lane: Lane) -> EnvParams:
    """Return the parameters of one lane."""
    return dataclasses.replace(
        params, episode=lane.episode, limits=lane.limits, length_log_std=lane.length_log_std
    )


def busy_observations(work: Work, policy: Policy, count: int) -> Observation:
    """What a router sees of the last request in ``count`` environments, the others routed: [count, ...].

    Args:
      work: the requests.
      policy: who routed them.
      count: environments.
    """
    env = RoutingEnvironment(EnvConfig(serving=work.serving, max_steps=work.runs.shape[1]))
    lanes, params = lanes_of(work.runs, count, count)
    act = policy.act_function()

    def one(lane: Lane) -> Observation:
        own = own_params(params, lane)
        key = jax.random.key(lane.seed)

        def step(state: EnvState, index: jax.Array) -> tuple[EnvState, None]:
            act_key = jax.random.fold_in(key, index)
            action = act(policy.params, act_key, env.true_observation(own, state))
            return env.step(act_key, state, action, own)[0], None

        last = lane.episode.row.shape[0] - 1
        state, _ = jax.lax.scan(step, env.reset(key, own)[0], jnp.arange(last))
        return env.observation(own, state)

    return jax.jit(jax.vmap(one))(jax.tree.map(lambda x: x[0], lanes))


def cut_stretches(runs: Runs, count: int, size: int) -> Runs:
    """Cut the first run into ``count`` evenly spaced stretches of ``size`` requests, which may overlap.

    Raises:
      InputError: it is shorter than one stretch.
    """
    length = runs.shape[1]
    if length < size:
        remedy = f"give one of at least {size}, or lower --num_requests"
        raise input_error(f"has only {length} requests", field="trace", remedy=remedy)
    index = np.linspace(0, length - size, count).astype(int)[:, None] + np.arange(size)
    return dataclasses.replace(
        runs.take(np.zeros(count, int)),
        arrival_s=runs.arrival_s[0][index],
        requests=jax.tree.map(lambda x: np.asarray(x)[0][index], runs.requests),
        seed=np.arange(count, dtype=np.uint32),
    )
