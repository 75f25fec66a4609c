"""Speed of routing in simulation: by one compiled program, through ``simulate``, by the reference."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.benchmark.row import HEURISTICS, REFERENCE, SIMULATOR, Speed, sizes
from qos_jax.benchmark.timing import compile_program, timed, tree_bytes
from qos_jax.benchmark.work import Lane, Work, block_size, lanes_of, own_params
from qos_jax.kernels import vmap_runs
from qos_jax.policies import Policy
from qos_jax.routing import EnvConfig, EnvState, RoutingEnvironment
from qos_jax.serving.reference import simulate_fleet
from qos_jax.simulation.simulate import simulate

# The two compute in float32 and in float64: a request at the very limit may fall on either side of it.
AGREEMENT = 1e-3  # relative


def measure_closed_form(
    work: Work, policy: Policy, environments: int, repeats: int, what: str = SIMULATOR
) -> Speed:
    """Step ``environments`` copies of the environment through their requests in one compiled program.

    Environment i replays run i (modulo the runs given), deciding as :func:`simulate` does; the last step
    drains. On a CPU the program maps over blocks of environments, as everything that runs many of them
    there should, and over those of a block in turn where small loops are joined. Counted as moved: the
    state, read and written at each decision.

    Args:
      work: the requests.
      policy: who routes.
      environments: how many.
      repeats: timed calls, after one to warm up.
      what: the row's.
    """
    runs = work.runs
    config = EnvConfig(serving=work.serving, max_steps=runs.shape[1], measures=policy.measures)
    env = RoutingEnvironment(config)
    lanes, params = lanes_of(runs, environments, block_size(work.serving, environments))
    act = policy.act_function()
    in_turn = policy.takes_turns(work.serving)

    def one(lane: Lane, policy_params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        own = own_params(params, lane)
        key = jax.random.key(lane.seed)
        state, _ = env.reset(key, own)

        def step(carry: tuple[EnvState, jax.Array, jax.Array], index: jax.Array) -> tuple[Any, None]:
            state, qos, latency_s = carry
            act_key = jax.random.fold_in(key, index)
            action = act(policy_params, act_key, env.true_observation(own, state))
            state, result = env.step(act_key, state, action, own)  # a replay draws nothing from its key
            completed_s = jnp.where(result.info.passed.completed, state.fleet.serving.latency_s, 0.0)
            return (state, qos + result.reward, latency_s + jnp.sum(completed_s)), None

        zero = jnp.float32(0.0)
        indices = jnp.arange(lane.episode.row.shape[0])
        (state, qos, latency_s), _ = jax.lax.scan(step, (state, zero, zero), indices)
        return qos, latency_s, state.completed

    def program(blocks: Lane, policy_params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        return jax.lax.map(vmap_runs(lambda lane: one(lane, policy_params), in_turn=in_turn), blocks)

    compiled = compile_program(program, lanes, policy.params)
    sums, times = timed(lambda: compiled(lanes, policy.params), repeats)
    qos, latency_s, completed = (float(np.asarray(x, np.float64).sum()) for x in sums)
    requests = environments * runs.shape[1]
    lane = jax.tree.map(lambda x: x[0, 0], lanes)
    state = jax.eval_shape(lambda: env.reset(jax.random.key(0), own_params(params, lane))[0])
    state_bytes = tree_bytes(state)
    return Speed(
        what=what,
        name=policy.name,
        environments=environments,
        **sizes(work.serving),
        decisions=requests,
        **times,
        compile_s=compiled.compile_s,
        state_bytes_per_environment=state_bytes,
        program_bytes_per_environment=int(compiled.bytes / environments),
        moved_bytes_per_decision=2.0 * state_bytes,
        figures=_outcome(qos, requests, latency_s, completed),
    )


def measure_evaluation(work: Work, policy: Policy, environments: int, repeats: int) -> Speed:
    """The same requests through :func:`simulate`, as ``launch.evaluate`` runs them: each is recorded.

    Arguments as of :func:`measure_closed_form`. Time to compile is not counted.
    """
    runs = work.runs.take(np.arange(environments) % work.runs.shape[0])
    result, times = timed(lambda: simulate(work.serving, policy, runs), repeats)
    qos = sum(float(result.records.at(i).qos(runs.latency_limit_s[i]).sum()) for i in range(environments))
    latency_s = np.asarray(result.records.latency_s, np.float64)
    done = int(np.isfinite(latency_s).sum())
    return Speed(
        what=HEURISTICS,
        name=policy.name,
        environments=environments,
        **sizes(work.serving),
        decisions=environments * runs.shape[1],
        **times,
        figures=_outcome(qos, environments * runs.shape[1], float(np.nansum(latency_s)), done),
    )


def measure_reference(work: Work, name: str, expert: np.ndarray, repeats: int) -> Speed:
    """Replay given decisions through the plain-Python reference, iteration by iteration.

    It does not decide, which favours it.

    Args:
      work: the requests.
      name: of the router that decided.
      expert: [R, T] int32, where each request goes; -1 = dropped.
      repeats: timed calls.
    """
    runs = work.runs
    table = jax.tree.map(np.asarray, runs.requests)

    def replay() -> list[Any]:
        each = zip(runs.arrival_s, table.prompt_tokens, table.output_tokens, expert, strict=True)
        scheduler = work.serving.scheduler
        return [simulate_fleet(runs.profile, *of_run, scheduler=scheduler)[0] for of_run in each]

    outcomes, times = timed(replay, repeats, warm_up=False)
    qos, latencies = 0.0, []
    for run, of_run in enumerate(outcomes):
        for outcome in (outcome for outcome in of_run if outcome.latency_s is not None):
            latencies.append(outcome.latency_s)
            index = run, outcome.request_id, outcome.expert
            if outcome.latency_s / outcome.output_tokens <= runs.latency_limit_s[run]:
                qos += float(table.quality[index])
    requests = runs.shape[0] * runs.shape[1]
    return Speed(
        what=REFERENCE,
        name=name,
        environments=runs.shape[0],
        **sizes(work.serving),
        decisions=requests,
        **times,
        figures=_outcome(qos, requests, float(np.sum(latencies)), len(latencies)),
    )


def check_agreement(mine: Speed, reference: Speed) -> None:
    """Check that two measurements did the same work: equally many requests, the same QoS and latency.

    Raises:
      RuntimeError: they did not, beyond rounding: a defect, and their speeds are not comparable.
    """
    pairs: dict[str, tuple[float, float]] = {"decisions": (mine.decisions, reference.decisions)}
    pairs |= {name: (mine.figures[name], reference.figures[name]) for name in ("mean_qos", "mean_latency_s")}
    for name, (one, other) in pairs.items():
        if not np.isclose(one, other, rtol=AGREEMENT, atol=0.0, equal_nan=True):
            raise RuntimeError(
                f"on the same requests and decisions, {name} is {one} in closed form and {other} by the "
                "reference: this is a defect, please report it"
            )


def _outcome(qos: float, requests: int, latency_s: float, completed: float) -> dict[str, float]:
    """QoS a request and mean E2E latency: they show that the work was done, and equal the reference's."""
    mean_latency_s = latency_s / completed if completed else float("nan")
    return {"mean_qos": qos / requests, "mean_latency_s": mean_latency_s}
