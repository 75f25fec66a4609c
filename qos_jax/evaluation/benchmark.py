"""Measure the simulator's speed: environments in one program, and the plain-Python reference beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qos_jax.errors import input_error
from qos_jax.evaluation.simulate import CPU_BLOCK_RUNS, Runs
from qos_jax.policies import Policy
from qos_jax.routing import EnvConfig, EnvParams, EnvState, Episode, RoutingEnvironment, make_params
from qos_jax.serving import ServingConfig
from qos_jax.serving.reference import simulate_fleet
from qos_jax.workload import gaps_s

CLOSED_FORM, REFERENCE = "closed form", "reference"
# The two compute in float32 and in float64: a request at the very limit may fall on either side of it.
AGREEMENT = 1e-3  # relative


@dataclasses.dataclass(frozen=True)
class Speed:
    """One measurement; times are medians over the repeats."""

    what: str  # CLOSED_FORM or REFERENCE
    environments: int
    requests: int  # routed in one repeat
    wall_s: float
    cpu_s: float  # of the whole process, all threads
    compile_s: float
    state_bytes_per_environment: int  # the environment's state
    program_bytes_per_environment: int  # inputs, outputs and scratch of the compiled program
    mean_qos: float  # sum of QoS / requests: shows that the work was done, and equals the reference's
    mean_latency_s: float  # E2E, of completed requests; likewise; NaN if none completed

    @property
    def requests_per_s(self) -> float:
        """Routed requests per second of wall-clock time."""
        return self.requests / self.wall_s

    @property
    def requests_per_cpu_s(self) -> float:
        """Routed requests per second of processor time."""
        return self.requests / self.cpu_s


@struct.dataclass
class _Lane:
    """What one environment replays."""

    episode: Episode
    latency_limit_s: jax.Array  # [] float32
    length_log_std: jax.Array  # [N] float32
    seed: jax.Array  # [] uint32, of the policy's own randomness


def measure_closed_form(
    config: ServingConfig, policy: Policy, runs: Runs, environments: int, repeats: int
) -> Speed:
    """Step ``environments`` copies of the environment through their requests in one compiled program.

    Environment i replays run i (modulo the runs given), deciding as :func:`simulate` does; the last step
    drains. On a CPU the program maps over blocks of environments, as everything that runs many of them
    there should.

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
    lanes, params = _environments(runs, environments, block)
    act = policy.act_function()

    def one(lane: _Lane) -> tuple[jax.Array, jax.Array, jax.Array]:
        own = dataclasses.replace(
            params,
            episode=lane.episode,
            latency_limit_s=lane.latency_limit_s,
            length_log_std=lane.length_log_std,
        )
        key = jax.random.key(lane.seed)
        state, _ = env.reset(key, own)

        def step(carry: tuple[EnvState, jax.Array, jax.Array], index: jax.Array) -> tuple[Any, None]:
            state, qos, latency_s = carry
            act_key = jax.random.fold_in(key, index)
            action = act(policy.params, act_key, env.true_observation(own, state))
            state, result = env.step(act_key, state, action, own)  # a replay draws nothing from its key
            completed_s = jnp.where(result.info.passed.completed, state.fleet.serving.latency_s, 0.0)
            return (state, qos + result.reward, latency_s + jnp.sum(completed_s)), None

        zero = jnp.float32(0.0)
        indices = jnp.arange(lane.episode.row.shape[0])
        (state, qos, latency_s), _ = jax.lax.scan(step, (state, zero, zero), indices)
        return qos, latency_s, state.completed

    def program(blocks: _Lane) -> tuple[jax.Array, jax.Array, jax.Array]:
        return jax.lax.map(jax.vmap(one), blocks)

    start = time.perf_counter()
    compiled = jax.jit(program).lower(lanes).compile()
    compile_s = time.perf_counter() - start
    sums, wall_s, cpu_s = _timed(lambda: jax.block_until_ready(compiled(lanes)), repeats)
    qos, latency_s, completed = (float(np.asarray(x, np.float64).sum()) for x in sums)
    requests = environments * runs.shape[1]
    episode = jax.tree.map(lambda x: x[0, 0], lanes.episode)
    state = jax.eval_shape(
        lambda: env.reset(jax.random.key(0), dataclasses.replace(params, episode=episode))[0]
    )
    memory = compiled.memory_analysis()
    used = sum(getattr(memory, f"{kind}_size_in_bytes", 0) for kind in ("argument", "output", "temp"))
    return Speed(
        what=CLOSED_FORM,
        environments=environments,
        requests=requests,
        wall_s=wall_s,
        cpu_s=cpu_s,
        compile_s=compile_s,
        state_bytes_per_environment=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        program_bytes_per_environment=int(used / environments),
        mean_qos=qos / requests,
        mean_latency_s=latency_s / completed if completed else float("nan"),
    )


def measure_reference(runs: Runs, expert: np.ndarray, scheduler: str, repeats: int) -> Speed:
    """Replay given decisions through the plain-Python reference, iteration by iteration.

    It does not decide, which favours it.

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
        what=REFERENCE,
        environments=runs.shape[0],
        requests=requests,
        wall_s=wall_s,
        cpu_s=cpu_s,
        compile_s=0.0,
        state_bytes_per_environment=0,
        program_bytes_per_environment=0,
        mean_qos=qos / requests,
        mean_latency_s=float(np.mean(latencies)) if latencies else float("nan"),
    )


def check_agreement(closed_form: Speed, reference: Speed) -> None:
    """Check that two measurements did the same work: equally many requests, the same QoS and latency.

    Raises:
      RuntimeError: they did not, beyond rounding: a defect, and their speeds are not comparable.
    """
    for name in ("requests", "mean_qos", "mean_latency_s"):
        mine, theirs = getattr(closed_form, name), getattr(reference, name)
        if not np.isclose(mine, theirs, rtol=AGREEMENT, atol=0.0, equal_nan=True):
            raise RuntimeError(
                f"on the same requests and decisions, {name} is {mine} in closed form and {theirs} by the "
                "reference: this is a defect, please report it"
            )


def first_runs(runs: Runs, count: int) -> Runs:
    """Return the first ``count`` runs."""
    return dataclasses.replace(
        runs,
        latency_limit_s=runs.latency_limit_s[:count],
        length_log_std=runs.length_log_std[:count],
        arrival_s=runs.arrival_s[:count],
        requests=jax.tree.map(lambda x: x[:count], runs.requests),
        seed=runs.seed[:count],
    )


def cut_stretches(runs: Runs, count: int, size: int) -> Runs:
    """Cut the first run into ``count`` evenly spaced stretches of ``size`` requests, which may overlap.

    Raises:
      InputError: it is shorter than one stretch.
    """
    length = runs.shape[1]
    if length < size:
        raise input_error(
            f"has only {length} requests",
            field="trace",
            remedy=f"give one of at least {size}, or lower --num_requests",
        )
    index = np.linspace(0, length - size, count).astype(int)[:, None] + np.arange(size)
    return dataclasses.replace(
        runs,
        latency_limit_s=np.repeat(runs.latency_limit_s[:1], count),
        length_log_std=np.repeat(runs.length_log_std[:1], count, axis=0),
        arrival_s=runs.arrival_s[0][index],
        requests=jax.tree.map(lambda x: np.asarray(x)[0][index], runs.requests),
        seed=np.arange(count, dtype=np.uint32),
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on: cores, processor, JAX and its backend."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def peak_memory_bytes() -> dict[str, int]:
    """Most memory held so far: by this process (``host``), and on the device where it says so."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        peak["device"] = stats["peak_bytes_in_use"]
    return peak


def _processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def render_speeds(speeds: Sequence[Speed]) -> str:
    """An aligned table, with the ratio to the reference where it was measured."""
    from tabulate import tabulate

    base = next((speed for speed in speeds if speed.what == REFERENCE), None)
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
            f"{speed.mean_qos:.5f}",
            f"{speed.mean_latency_s:.4f}",
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
        "latency s",
    ]
    return tabulate(rows, heads, tablefmt="simple", stralign="right", disable_numparse=True)


def _environments(runs: Runs, environments: int, block: int) -> tuple[_Lane, EnvParams]:
    """Lanes in blocks, leaves [blocks, block, ...], and params whose table holds the rows of all runs."""
    num_runs, num_requests = runs.shape
    lanes = np.arange(environments) % num_runs
    gap_after_s = np.full(runs.arrival_s.shape, np.inf, np.float32)
    gap_after_s[:, :-1] = gaps_s(runs.arrival_s[:, :-1], runs.arrival_s[:, 1:])
    row = lanes[:, None] * num_requests + np.arange(num_requests)

    def blocks(values: np.ndarray, dtype: Any) -> jax.Array:
        return jnp.asarray(values.reshape(environments // block, block, *values.shape[1:]), dtype)

    lane = _Lane(
        episode=Episode(
            gap_after_s=blocks(gap_after_s[lanes], jnp.float32), row=blocks(row.astype(np.int32), jnp.int32)
        ),
        latency_limit_s=blocks(runs.latency_limit_s[lanes], jnp.float32),
        length_log_std=blocks(runs.length_log_std[lanes], jnp.float32),
        seed=blocks(runs.seed[lanes], jnp.uint32),
    )
    table = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), runs.requests)
    first = jax.tree.map(lambda x: x[0, 0], lane.episode)
    return lane, make_params(
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
