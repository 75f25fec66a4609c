"""Play a scenario: through the simulator, through the environment, and through the reference."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.policies import Policy, policy, upper_bound
from qos_jax.policies.greedy_params import greedy_params
from qos_jax.routing import EnvConfig, Episode, RoutingEnvironment, TimeStep, make_params
from qos_jax.routing.observation import TrueObservation
from qos_jax.serving import ServingConfig
from qos_jax.serving.reference import ReferenceOutcome, ReferenceRun, simulate_fleet
from qos_jax.simulation.simulate import SimulationResult, simulate
from qos_jax.simulation.world import simulate_world
from tests.fuzz.scenario import REQUESTS, RUNS, Built, Scenario
from tests.fuzz.world import world_of


@dataclasses.dataclass(frozen=True)
class Played:
    """What a scenario came to, R traces of T requests at N experts."""

    result: SimulationResult
    steps: dict[str, Any]  # of the environment, on the simulator's decisions, leaves [R, T, ...]
    bound: np.ndarray  # [R, T] QoS that no policy can exceed
    outcomes: list[list[ReferenceOutcome]]  # [R][T] of the reference, on the simulator's decisions
    reference: list[list[ReferenceRun]]  # [R][N]
    world: SimulationResult | None  # of the same requests in the scenario's world, if it has one


@functools.cache
def one_program(names: tuple[str, ...]) -> Any:
    """Return all these policies as one: of parameters (index, greedy numbers, assignment), key and truth."""
    acts = [policy(name, assignment=np.zeros(REQUESTS, np.int32)).act_function() for name in names]

    def act(params: Any, key: jax.Array, truth: TrueObservation) -> jax.Array:
        index, greedy, assignment = params
        branches = [
            functools.partial(act, assignment if name == "assigned" else greedy)
            for name, act in zip(names, acts, strict=True)
        ]
        return jax.lax.switch(index, branches, key, truth)

    return act


def play(scenario: Scenario, built: Built, policies: tuple[str, ...]) -> Played:
    """Play a scenario of one of ``policies``, which are compiled together."""
    assignment = jnp.asarray(built.assignment)
    own = policy(scenario.policy, assignment=assignment)
    greedy = own.params if dataclasses.is_dataclass(own.params) else greedy_params()
    params = (jnp.int32(policies.index(scenario.policy)), greedy, assignment)
    router = Policy(scenario.policy, own.summary, oracle=one_program(policies), params=params)
    runs = built.runs
    result = simulate(built.serving, router, runs, block_runs=RUNS, keep_snapshots=True)
    requests, records = runs.requests, result.records
    outcomes, reference = [], []
    for r in range(RUNS):
        each, by_expert = simulate_fleet(
            runs.profile,
            runs.arrival_s[r],
            requests.prompt_tokens[r],
            requests.output_tokens[r],
            records.expert[r],
            scenario.scheduler,
        )
        outcomes.append(each)
        reference.append(by_expert)
    world = None
    if scenario.world:
        around = world_of(scenario, built.serving.num_experts, runs.arrival_s)
        world = simulate_world(built.serving, router, runs, around, block_runs=RUNS)
    bound = _bounds(runs.profile, requests, jax.tree.map(jnp.asarray, runs.limits), scenario.scheduler)
    return Played(result, _steps(built, records.expert), np.asarray(bound), outcomes, reference, world)


_bounds = jax.jit(jax.vmap(upper_bound, in_axes=(None, 0, 0, None)), static_argnums=3)


def _steps(built: Built, expert: np.ndarray) -> dict[str, Any]:
    """Return what the environment does on given decisions [R, T] of the same requests."""
    runs = built.runs
    gap_s = np.append(np.diff(runs.arrival_s, axis=1), np.full((RUNS, 1), np.inf), axis=1)
    rows = np.broadcast_to(np.arange(REQUESTS, dtype=np.int32), gap_s.shape)
    params = make_params(
        jax.tree.map(lambda leaf: np.broadcast_to(leaf, (RUNS, *leaf.shape)), runs.profile),
        runs.requests,
        runs.limits,
        runs.length_log_std,
        episode=Episode(gap_s.astype(np.float32), rows),
        impact_weight=np.ones(RUNS, np.float32),
        discount=np.ones(RUNS, np.float32),
    )
    return jax.device_get(_all_steps(built.serving, params, jnp.asarray(expert)))


@functools.partial(jax.jit, static_argnums=0)
def _all_steps(serving: ServingConfig, params: Any, expert: jax.Array) -> dict[str, Any]:
    env = RoutingEnvironment(EnvConfig(serving, max_steps=REQUESTS))

    def run(params: Any, expert: jax.Array) -> dict[str, Any]:
        key = jax.random.key(0)  # nothing of a replayed episode is drawn
        state, first = env.reset(key, params)

        def step(state: Any, action: jax.Array) -> tuple[Any, dict[str, Any]]:
            state, result = env.step(key, state, action, params)
            return state, _kept(state, result)

        _, steps = jax.lax.scan(step, state, expert)
        return {**steps, "first_is_sound": _is_sound(first)}

    return jax.vmap(run)(params, expert)


def _kept(state: Any, result: TimeStep) -> dict[str, Any]:
    seen = result.observation
    counts = {
        name: getattr(state, name)
        for name in ("completed", "rejected", "rejected_too_long", "dropped", "failed")
        if hasattr(state, name)
    }
    return {
        "ended": sum(counts.values()),
        "in_flight": jnp.sum(seen.live, dtype=jnp.int32),
        "least_count": jnp.min(jnp.stack(list(counts.values()))),
        "is_sound": _is_sound(seen) & jnp.isfinite(result.reward),
        "reward": result.reward,
        "terminated": result.terminated,
        "truncated": result.truncated,
        **{name: value for name, value in counts.items() if name != "failed"},
    }


def _is_sound(seen: Any) -> jax.Array:
    """Return whether nothing in an observation is NaN, infinite (limits of service may be) or negative."""
    ttft_s = None if seen.slot_ttft_s is None else jnp.maximum(seen.slot_ttft_s, 0.0)  # -1: no token yet
    leaves = jax.tree.leaves(dataclasses.replace(seen, limits=None, slot_ttft_s=ttft_s))
    leaves = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.number)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf) & (leaf >= 0)) for leaf in leaves]))
