"""A benchmark: what to measure at which sizes, everything read and checked first, then row by row."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qos_jax.benchmark import row, simulator
from qos_jax.benchmark.decision import measure_decision
from qos_jax.benchmark.han_paths import measure_han_paths
from qos_jax.benchmark.machine import machine
from qos_jax.benchmark.row import Speed
from qos_jax.benchmark.training import AGENTS, measure_search, measure_training, training_plan
from qos_jax.benchmark.work import Work, draw_work
from qos_jax.checks import COUNT, COUNT_OR_ZERO, POSITIVE, Interval, check_distinct, check_range
from qos_jax.errors import input_error
from qos_jax.options import check_options, option
from qos_jax.policies import HEURISTICS, Policy, policy
from qos_jax.policies.learned import fresh_parameters, learned_policy
from qos_jax.policies.saved import load_router
from qos_jax.runs.folder import settings_of
from qos_jax.serving import SCHEDULERS
from qos_jax.simulation.blocks import CPU_BLOCK_RUNS
from qos_jax.simulation.simulate import simulate
from qos_jax.training.plan import TrainPlan
from qos_jax.training.presets import PRESETS
from qos_jax.workload import read_trace

DEFAULT_WHAT = (row.SIMULATOR, row.HAN_PATHS, row.DECISION)
# A deciding router beside the learned one: the heuristic to beat.
_GREEDY = "projected_greedy"
_NEEDS_LEARNED = (row.ROLLOUT, row.DECISION)

Measure = Callable[[], Speed | list[Speed]]


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure; one row for every combination of environments, experts and slots.

    Raises:
      InputError: a value out of its range, naming the field, which is also the flag's name.
    """

    what: tuple[str, ...] = option(DEFAULT_WHAT, known=row.WHAT)  # what to measure
    environments: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)  # in one program
    experts: tuple[int, ...] = (4,)  # equal ones: copies of the shipped fleet's first
    slots: tuple[int, ...] = ()  # running ones of an expert, and as many waiting; empty = as the fleet has
    policy: str = "shortest_queue"  # who routes, what=simulator
    scheduler: str = option("prefill_first", known=SCHEDULERS)  # iteration scheduler of every expert
    trace: str | None = None  # file; None = the shipped figures of azure_conv
    arrival_rate: float | None = None  # requests / s of the fleet; None = the workload's own
    num_requests: int = 256  # of an environment
    repeats: int = 5  # timed calls; the median counts
    reference_runs: int = 64  # environments that the reference replays, at the first sizes; 0 = none
    preset: str = option("edge6", known=PRESETS)  # whose networks and learners are measured
    checkpoint: str | None = None  # learned router to measure; None = fresh weights, which are as fast
    graphs: int = 256  # in a batch, what=han_paths
    calls: int = 2000  # timed decisions, what=decision
    train_environments: tuple[int, ...] = ()  # of the learners; empty = the preset's
    seed: int = 0  # of the requests

    def __post_init__(self) -> None:
        check_options(self)
        for field in ("what", "environments", "experts"):
            if not getattr(self, field):
                raise input_error("is empty", field=field, remedy="give at least one")
        for field in ("what", "environments", "experts", "slots", "train_environments"):
            check_distinct(field, getattr(self, field))
        for count in self.environments:
            if count < 1 or (count > CPU_BLOCK_RUNS and count % CPU_BLOCK_RUNS):
                remedy = f"use 1 to {CPU_BLOCK_RUNS}, or multiples of {CPU_BLOCK_RUNS}"
                raise input_error(f"{count} is no valid number", field="environments", remedy=remedy)
        counts = ["experts", "slots", "train_environments", "num_requests", "repeats", "graphs"]
        check_range(self, counts, COUNT)
        check_range(self, ["reference_runs", "seed"], COUNT_OR_ZERO)
        check_range(self, ["calls"], Interval(10, 2**31 - 1, whole=True))
        check_range(self, ["arrival_rate"], POSITIVE)


@dataclasses.dataclass(frozen=True)
class BenchmarkPlan:
    """A benchmark that has passed every check."""

    config: BenchmarkConfig
    router: Policy  # of what=simulator
    work: dict[tuple[int, int | None], Work]  # by experts and slots
    learned: dict[tuple[int, int | None], Policy]  # likewise, where it is needed
    training: tuple[tuple[str, TrainPlan], ...]  # by agent

    @property
    def settings(self) -> dict[str, Any]:
        """All that determines what is measured, and where."""
        return settings_of("benchmark", self.config, machine=machine())


def load_benchmark(config: BenchmarkConfig) -> BenchmarkPlan:
    """Read all files of a benchmark and draw its requests.

    Raises:
      InputError: naming file, field and remedy of the first fault found.
    """
    router = policy(config.policy)
    trace = read_trace(config.trace) if config.trace else None
    sizes = [(experts, slots) for experts in config.experts for slots in config.slots or (None,)]
    training = tuple(
        (agent, training_plan(PRESETS[config.preset], agent, count))
        for agent in AGENTS
        if agent in config.what
        for count in config.train_environments or (None,)
    )
    simulates = set(config.what) - set(AGENTS)
    work = {
        (experts, slots): draw_work(
            experts, slots, config.num_requests, config.scheduler, config.seed, config.arrival_rate, trace
        )
        for experts, slots in (sizes if simulates else [])
    }
    learned = {}
    if set(config.what) & set(_NEEDS_LEARNED):
        learned = {size: _learned(config, work[size]) for size in sizes}
    return BenchmarkPlan(config, router, work, learned, training)


def execute_benchmark(plan: BenchmarkPlan, say: Callable[[str], None]) -> Iterator[Speed]:
    """Measure, and yield each row as soon as it is there.

    A combination that does not fit in memory is reported and left out.

    Raises:
      RuntimeError: two computations of the same disagree: a defect.
    """
    reference = None
    for index, (size, work) in enumerate(plan.work.items()):
        if index == 0:
            reference = _reference(plan, work)
            if reference is not None:
                yield reference
        for label, measure in _measurements(plan, size, work, reference):
            yield from _if_it_fits(label, measure, say)
    for agent, training in plan.training:
        count = getattr(training.config, agent).num_envs
        measure = partial(measure_search if agent == row.SEARCH else measure_training, training)
        yield from _if_it_fits(f"{agent}, {count} environments", partial(measure, plan.config.repeats), say)


def _measurements(
    plan: BenchmarkPlan, size: tuple[int, int | None], work: Work, reference: Speed | None
) -> Iterator[tuple[str, Measure]]:
    """What to measure at one size of the fleet, each with what to call it."""
    config = plan.config
    counts = set(config.environments)
    few = reference.environments if reference is not None else 0
    sizes = f"{work.serving.num_experts} experts, {work.serving.running_slots} slots"

    def closed_form(router: Policy, count: int, what: str) -> Speed:
        speed = simulator.measure_closed_form(work, router, count, config.repeats, what)
        if reference is not None and what == row.SIMULATOR and speed.key[2:] == reference.key[2:]:
            simulator.check_agreement(speed, reference)
        return speed

    if row.SIMULATOR in config.what:
        first = reference is not None and work is next(iter(plan.work.values()))
        for count in sorted(counts | ({few} if first else set())):
            label = f"simulator, {count} environments, {sizes}"
            yield label, partial(closed_form, plan.router, count, row.SIMULATOR)
    if row.HEURISTICS in config.what:
        for name, count in itertools.product(HEURISTICS, sorted(counts)):
            label = f"{name} through evaluate, {count} environments, {sizes}"
            yield label, partial(simulator.measure_evaluation, work, policy(name), count, config.repeats)
    if row.HAN_PATHS in config.what:
        han = PRESETS[config.preset].network.han
        label = f"HAN paths, {config.graphs} graphs, {sizes}"
        yield label, partial(measure_han_paths, work, han, config.graphs, config.repeats)
    if row.DECISION in config.what:
        for router in (policy(_GREEDY), plan.learned[size]):
            yield f"decision of {router.name}, {sizes}", partial(measure_decision, work, router, config.calls)
    if row.ROLLOUT in config.what:
        for count in sorted(counts):
            label = f"learned rollout, {count} environments, {sizes}"
            yield label, partial(closed_form, plan.learned[size], count, row.ROLLOUT)


def _reference(plan: BenchmarkPlan, work: Work) -> Speed | None:
    """The plain-Python reference on the first runs, by the decisions of the simulator's router."""
    few = min(plan.config.reference_runs, work.runs.shape[0])
    if not few or row.SIMULATOR not in plan.config.what:
        return None
    same = Work(work.serving, work.runs.take(np.arange(few)))
    decided = simulate(work.serving, plan.router, same.runs).records.expert
    return simulator.measure_reference(same, plan.router.name, decided, plan.config.repeats)


def _learned(config: BenchmarkConfig, work: Work) -> Policy:
    """The learned router, of the checkpoint or with fresh weights."""
    if config.checkpoint is not None:
        path = Path(config.checkpoint)
        return load_router("learned", path, work.serving, allow_drop=True, stochastic=False).policy
    network, key = PRESETS[config.preset].network, jax.random.key(config.seed)
    fresh = jax.jit(fresh_parameters, static_argnums=(0, 1, 2))  # one program for all layers
    weights = fresh(network, work.serving.num_experts, work.serving.slots, key)
    return learned_policy("learned", network, weights)


def _if_it_fits(label: str, measure: Measure, say: Callable[[str], None]) -> Iterator[Speed]:
    try:
        measured = measure()
        yield from [measured] if isinstance(measured, Speed) else measured
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        say(f"{label}: does not fit in memory, left out")
