"""Speed of training: a whole update, and what of it the simulator, the features and the network take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qos_jax.benchmark.row import Speed, sizes
from qos_jax.benchmark.timing import compile_program, timed, tree_bytes
from qos_jax.devices import vmap_lanes
from qos_jax.learning.rollout import EnvLanes, Transition, rollout, step_lanes
from qos_jax.policies.action_values import action_values, with_expected_quality
from qos_jax.policies.actor_critic import actor_function
from qos_jax.policies.greedy_params import greedy_params
from qos_jax.policies.heuristics import projected_greedy
from qos_jax.policies.router_input import RouterInput
from qos_jax.routing import EnvParams, EnvState, RoutingEnvironment
from qos_jax.training.plan import Phase, TrainPlan, environment_of, load_plan
from qos_jax.training.train_config import TrainConfig

AGENTS = ("search", "ppo", "sac", "distil")


def training_plan(config: TrainConfig, agent: str, environments: int | None) -> TrainPlan:
    """Return the plan of a run in which ``agent`` alone trains, from scratch.

    Args:
      config: a preset's.
      agent: one of ``AGENTS``.
      environments: side by side, in place of the configuration's.

    Raises:
      InputError: a number of environments that the agent refuses, or what ``load_plan`` raises.
    """
    part = getattr(config, agent)
    changed = {"sac": {"warmup_decisions": 0}, "search": {"updates": 1}, "distil": {"updates": 1}}
    changes: dict[str, Any] = dict(changed.get(agent, {}))
    if environments is not None:
        changes["num_envs"] = environments
        # Memory for one rollout at least.
        size = environments * (config.sac.steps_per_update if agent == "sac" else 1)
        room = {"sac": "replay_capacity", "distil": "capacity"}.get(agent)
        if room is not None:
            changes[room] = max(getattr(part, room), size)
    phases = {name: dataclasses.replace(getattr(config, name), updates=0) for name in ("search", "distil")}
    phases[agent] = dataclasses.replace(part, **changes)
    agent = agent if agent in ("ppo", "sac") else "none"
    return load_plan(dataclasses.replace(config, agent=agent, **phases))


def measure_search(plan: TrainPlan, repeats: int) -> Speed:
    """Time one update of the search: whole episodes, routed by every candidate.

    It has no parts to tell apart: there is no network in it, and no gradient.

    Args:
      plan: from :func:`training_plan`.
      repeats: timed updates, after one to warm up.
    """
    (phase,) = plan.phases
    learner, config = phase.learner, plan.config
    state = jax.jit(learner.init)(jax.random.key(config.seed), None)
    program = compile_program(learner.update, state)
    _, times = timed(lambda: program(state), repeats)
    return Speed(
        what=phase.name,
        name=f"{config.search.candidates} candidates",
        environments=config.search.num_envs,
        **sizes(plan.setting.serving),
        decisions=learner.decisions_per_update,
        **times,
        compile_s=program.compile_s,
        program_bytes_per_environment=int(program.bytes / config.search.num_envs),
    )


def measure_training(plan: TrainPlan, repeats: int) -> Speed:
    """Time one update of the plan's only phase, and its parts.

    The update is timed whole, state donated, as training runs it. Then on the same environments, with the
    actions that the policy takes there, programs of their own are timed: ``simulator`` is the environment's
    steps alone, reward included; ``features`` what making the network's inputs (the projection above all)
    adds to them; ``forward`` the actor on those inputs; ``trials``, in distil, the simulation of the
    candidates. ``update`` is what is left of the whole: gradients, optimiser, replay, new episodes. Shares
    are of processor time. Programs apart cannot be fused, so they may take a little more than as parts.

    Decisions are those that an update takes, trials included. Counted as moved for each: the state of an
    environment, read and written, and its input of the network, written once and read by every pass.

    Args:
      plan: from :func:`training_plan`.
      repeats: timed updates, after one to warm up.
    """
    (phase,) = plan.phases
    learner, config = phase.learner, plan.config
    state = jax.jit(learner.init)(jax.random.key(config.seed), None)
    program = compile_program(learner.update, state, donate=(0,))
    holder = [state]

    def advance() -> None:
        holder[0], _ = program(holder[0])

    del state
    _, times = timed(advance, repeats)
    state = holder[0]
    part = getattr(config, phase.name)
    steps = getattr(part, {"ppo": "rollout_steps", "sac": "steps_per_update"}.get(phase.name, "steps"))
    lanes, params = state.lanes, learner.params(state)
    parts_s = _parts(plan, phase, lanes, params, steps, repeats)
    parts = {name: time_s / times["cpu_s"] for name, time_s in parts_s.items()}
    parts["update"] = 1.0 - sum(parts.values())
    environments = int(lanes.overdue.shape[0])
    state_bytes = tree_bytes(lanes.state) / environments
    input_bytes = tree_bytes(lanes.input) / environments
    own = environments * steps
    passes = 1.0 + _reads(phase.name, part) / own
    moved = 2.0 * state_bytes + passes * input_bytes * (own / learner.decisions_per_update)
    return Speed(
        what=phase.name,
        name=f"{config.network.encoder} {phase.name}",
        environments=environments,
        **sizes(plan.setting.serving),
        decisions=learner.decisions_per_update,
        **times,
        compile_s=program.compile_s,
        state_bytes_per_environment=int(state_bytes),
        program_bytes_per_environment=int(program.bytes / environments),
        moved_bytes_per_decision=moved,
        figures={f"{name}_share": share for name, share in parts.items()},
    )


def _reads(name: str, part: Any) -> float:
    """Inputs of the network that the optimiser reads in one update."""
    if name == "ppo":
        return float(part.epochs * part.num_envs * part.rollout_steps)
    each = 2 if name == "sac" else 1  # SAC reads the state reached, too
    return float(part.gradient_steps * part.batch_size * each)


def _parts(
    plan: TrainPlan, phase: Phase, lanes: EnvLanes, params: Any, steps: int, repeats: int
) -> dict[str, float]:
    """Processor seconds of each part, by name."""
    config = plan.config
    env = environment_of(config, plan.setting.serving)
    greedy = greedy_params(allow_drop=config.network.allow_drop)
    actor = actor_function(config.network)

    def logits(inputs: RouterInput) -> jax.Array:
        return actor(params, inputs).logits

    def act(key: jax.Array, inputs: RouterInput) -> tuple[jax.Array, None]:
        return jnp.argmax(logits(inputs), -1).astype(jnp.int32), None

    _, taken, _ = jax.jit(lambda lanes: rollout(env, greedy, act, lanes, steps))(lanes)
    actions, inputs = taken.action, taken.input

    is_small = env.config.serving.is_small  # as in a rollout
    stepped, potential = (vmap_lanes(part, is_small=is_small) for part in (env.step, env.potential))

    def simulated(lanes: EnvLanes, actions: jax.Array) -> Any:
        def one(carry: Any, actions: jax.Array) -> tuple[Any, jax.Array]:
            state, before, key = carry
            key, step_key = jax.random.split(key)
            keys = jax.random.split(step_key, actions.shape[0])
            state, result = stepped(keys, state, actions, lanes.params, before)
            return (state, result.info.potential, key), result.reward

        return jax.lax.scan(one, (lanes.state, potential(lanes.params, lanes.state), lanes.key), actions)

    def with_features(lanes: EnvLanes, actions: jax.Array) -> Any:
        def one(carry: Any, chosen: jax.Array) -> tuple[Any, Transition]:
            lanes, transition, potential = step_lanes(env, greedy, carry[0], chosen, potential=carry[1])
            return (lanes, potential), transition

        return jax.lax.scan(one, (lanes, potential(lanes.params, lanes.state)), actions)

    def forward(inputs: RouterInput) -> jax.Array:
        return jax.lax.scan(lambda _, one: (None, logits(one)), None, inputs)[1]

    simulator_s = _cpu_s(repeats, simulated, lanes, actions)
    times = {
        "simulator": simulator_s,
        "features": max(_cpu_s(repeats, with_features, lanes, actions) - simulator_s, 0.0),
        "forward": _cpu_s(repeats, forward, inputs),
    }
    if phase.name == "distil":
        times["trials"] = _trials_s(env, config, lanes, repeats)
    return times


def _trials_s(env: RoutingEnvironment, config: TrainConfig, lanes: EnvLanes, repeats: int) -> float:
    """Processor seconds of trying the first actions in every environment, as distil does."""
    greedy = greedy_params(allow_drop=config.network.allow_drop)
    actions = jnp.arange(config.distil.candidates, dtype=jnp.int32) % env.config.num_actions

    def tried(lanes: EnvLanes) -> jax.Array:
        def one(key: jax.Array, params: EnvParams, state: EnvState) -> jax.Array:
            params, state = with_expected_quality(params, state)
            return action_values(
                env, params, state, actions, key, projected_greedy, greedy, config.distil.horizon
            )

        keys = jax.random.split(lanes.key, lanes.overdue.shape[0])
        return jax.vmap(one)(keys, lanes.params, lanes.state)

    return _cpu_s(repeats, tried, lanes)


def _cpu_s(repeats: int, function: Callable[..., Any], *arguments: Any) -> float:
    program = compile_program(function, *arguments)
    return float(timed(lambda: program(*arguments), repeats)[1]["cpu_s"])
