"""Measure the simulator's speed: environments in one program, and the plain-Python reference beside it."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.evaluation.simulate import CPU_BLOCK_RUNS, Runs
from qos_jax.policies import Policy
from qos_jax.routing import EnvConfig, EnvParams, EnvState, Episode, RoutingEnvironment, make_params
from qos_jax.serving import ServingConfig
from qos_jax.serving.reference import simulate_fleet
from qos_jax.workload import gaps_s


@dataclasses.dataclass(frozen=True)
class Speed:
    """One measurement; times are medians over the repeats."""

    what: str  # "closed form" or "reference"
    environments: int
    requests: int  # routed in one repeat
    wall_s: float
    cpu_s: float  # of the whole process, all threads
    compile_s: float
    state_bytes_per_environment: int  # the environment's state
    program_bytes_per_environment: int  # inputs, outputs and scratch of the compiled program
    mean_qos: float  # so that nothing is optimised away, and for comparison
    mean_latency_s: float  # E2E of completed requests; NaN where not recorded

    @property
    def requests_per_s(self) -> float:
        """Routed requests per second of wall-clock time."""
        return self.requests / self.wall_s

    @property
    def requests_per_cpu_s(self) -> float:
        """Routed requests per second of processor time."""
        return self.requests / self.cpu_s


def measure_closed_form(
    config: ServingConfig, policy: Policy, runs: Runs, environments: int, repeats: int
) -> Speed:
    """Step ``environments`` copies of the environment through their requests in one compiled program.

    Environment i replays run i (modulo the runs given); the last step drains. On a CPU the program maps
    over blocks of environments, as everything that runs many of them there should.

    Args:
      config: static sizes and the scheduler.
      policy: who routes.
      runs: the requests.
      environments: how many.
      repeats: timed calls, after one to warm up.
    """
    env = RoutingEnvironment(EnvConfig(serving=config, max_steps=runs.shape[1]))
    block = min(environments, CPU_BLOCK_RUNS) if jax.default_backend() == "cpu" else environments
    if environments % block:
        raise ValueError(f"{environments} environments are not a whole number of blocks of {block}")
    episodes, params = _environments(runs, environments, block)
    act = policy.act_function()

    def one(episode: Episode) -> tuple[jax.Array, jax.Array]:
        own = dataclasses.replace(params, episode=episode)
        reset_key, run_key = jax.random.split(jax.random.key(0))
        state, _ = env.reset(reset_key, own)

        def step(carry: tuple[EnvState, jax.Array], index: jax.Array) -> tuple[Any, None]:
            state, qos = carry
            act_key, step_key = jax.random.split(jax.random.fold_in(run_key, index))
            action = act(policy.params, act_key, env.true_observation(own, state))
            state, result = env.step(step_key, state, action, own)
            return (state, qos + result.reward), None

        indices = jnp.arange(episode.row.shape[0])
        (state, qos), _ = jax.lax.scan(step, (state, jnp.float32(0.0)), indices)
        return qos, state.completed

    def program(blocks: Episode) -> tuple[jax.Array, jax.Array]:
        return jax.lax.map(jax.vmap(one), blocks)

    start = time.perf_counter()
    compiled = jax.jit(program).lower(episodes).compile()
    compile_s = time.perf_counter() - start
    (qos, _), wall_s, cpu_s = _timed(lambda: jax.block_until_ready(compiled(episodes)), repeats)
    requests = environments * runs.shape[1]
    first = jax.tree.map(lambda x: x[0, 0], episodes)
    own = dataclasses.replace(params, episode=first)
    state = jax.eval_shape(lambda: env.reset(jax.random.key(0), own)[0])
    memory = compiled.memory_analysis()
    used = sum(getattr(memory, f"{kind}_size_in_bytes", 0) for kind in ("argument", "output", "temp"))
    return Speed(
        what="closed form",
        environments=environments,
        requests=requests,
        wall_s=wall_s,
        cpu_s=cpu_s,
        compile_s=compile_s,
        state_bytes_per_environment=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        program_bytes_per_environment=int(used / environments),
        mean_qos=float(np.sum(qos, dtype=np.float64) / requests),
        mean_latency_s=float("nan"),
    )


def measure_reference(runs: Runs, expert: np.ndarray, scheduler: str, repeats: int) -> Speed:
    """Replay given decisions through the plain-Python reference, iteration by iteration.

    Args:
      runs: the requests.
      expert: [R, T] int32, where each request goes; -1 = dropped.
      scheduler: as in :class:`ServingConfig`.
      repeats: timed calls.
    """
    table = jax.tree.map(np.asarray, runs.requests)

    def replay() -> list[Any]:
        return [
            simulate_fleet(
                runs.profile,
                runs.arrival_s[run],
                table.prompt_tokens[run],
                table.output_tokens[run],
                expert[run],
                scheduler=scheduler,
            )[0]
            for run in range(runs.shape[0])
        ]

    outcomes, wall_s, cpu_s = _timed(replay, repeats, warm_up=False)
    qos, latencies = 0.0, []
    for run, of_run in enumerate(outcomes):
        for outcome in of_run:
            if outcome.latency_s is None:
                continue
            latencies.append(outcome.latency_s)
            output = table.output_tokens[run, outcome.request_id, outcome.expert]
            if outcome.latency_s / output <= runs.latency_limit_s[run]:
                qos += float(table.quality[run, outcome.request_id, outcome.expert])
    requests = runs.shape[0] * runs.shape[1]
    return Speed(
        what="reference",
        environments=runs.shape[0],
        requests=requests,
        wall_s=wall_s,
        cpu_s=cpu_s,
        compile_s=0.0,
        state_bytes_per_environment=0,
        program_bytes_per_environment=0,
        mean_qos=qos / requests,
        mean_latency_s=float(np.mean(latencies)),
    )


def render_speeds(speeds: Sequence[Speed]) -> str:
    """An aligned table, with the ratio to the reference where it was measured."""
    from tabulate import tabulate

    base = next((speed for speed in speeds if speed.what == "reference"), None)
    rows = [
        [
            speed.what,
            speed.environments,
            f"{speed.requests_per_s:,.0f}",
            f"{speed.requests_per_cpu_s:,.0f}",
            f"{speed.requests_per_cpu_s / base.requests_per_cpu_s:.1f}x" if base else "-",
            f"{speed.compile_s:.1f}",
            f"{speed.state_bytes_per_environment:,}",
            f"{speed.program_bytes_per_environment:,}",
            f"{speed.mean_qos:.4f}",
        ]
        for speed in speeds
    ]
    heads = [
        "simulator",
        "environments",
        "requests/s",
        "requests/CPU-s",
        "vs reference",
        "compile s",
        "state B/env",
        "program B/env",
        "QoS",
    ]
    return tabulate(rows, heads, tablefmt="simple", stralign="right", disable_numparse=True)


def _environments(runs: Runs, environments: int, block: int) -> tuple[Episode, EnvParams]:
    """Episodes in blocks, leaves [blocks, block, T], and params whose table holds the rows of all runs."""
    num_runs, num_requests = runs.shape
    lanes = np.arange(environments) % num_runs
    gap_after_s = np.full(runs.arrival_s.shape, np.inf, np.float32)
    gap_after_s[:, :-1] = gaps_s(runs.arrival_s[:, :-1], runs.arrival_s[:, 1:])
    row = lanes[:, None] * num_requests + np.arange(num_requests)
    shape = (environments // block, block, num_requests)
    episodes = Episode(
        gap_after_s=jnp.asarray(gap_after_s[lanes].reshape(shape), jnp.float32),
        row=jnp.asarray(row.reshape(shape), jnp.int32),
    )
    table = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), runs.requests)
    first = jax.tree.map(lambda x: x[0, 0], episodes)
    return episodes, make_params(
        runs.profile, table, runs.latency_limit_s[0], runs.length_log_std[0], episode=first
    )


def _timed(call: Callable[[], Any], repeats: int, warm_up: bool = True) -> tuple[Any, float, float]:
    """The result and the median wall and processor seconds of ``repeats`` calls."""
    result = call() if warm_up else None
    wall, cpu = [], []
    for _ in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        result = call()
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return result, statistics.median(wall), statistics.median(cpu)
