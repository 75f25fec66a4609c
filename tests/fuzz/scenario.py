"""A fuzzed scenario: what is drawn of fleet, traffic and router, and the arrays that it stands for.

A new dimension is a field of :class:`Scenario` with its strategy, and what :func:`build` makes of it. Fields
are plain numbers and names, so that the ``repr`` of a scenario reproduces it; array sizes are those of
``SHAPES`` alone, so that all scenarios of a shape and a scheduler are one program.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from hypothesis import strategies as st

from qos_jax.policies import HEURISTICS, ORACLES
from qos_jax.policies.registry import NEVER_DROPPING
from qos_jax.serving import SCHEDULERS, DecodeKnot, FleetProfile, ServiceLimits, ServingConfig
from qos_jax.simulation.simulate import Runs
from qos_jax.workload import RequestTable
from tests.fuzz.world import EVENTS, WORLDS

RUNS, REQUESTS = 4, 32  # traces of a scenario, which share fleet and router, and requests of each
BLANK_TOKENS = 2**20  # of a prompt that no expert can hold, so that it changes nothing
POLICIES = (*HEURISTICS, *ORACLES, *NEVER_DROPPING, "assigned")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What programs are compiled for."""

    experts: int
    running_slots: int
    waiting_slots: int
    knots: int = 0  # of the table of decode times; 0 = the affine law
    context_limit: bool = False
    every_limit: bool = False  # of service, not of the latency per token alone

    def serving(self, scheduler: str) -> ServingConfig:
        return ServingConfig(self.experts, self.running_slots, self.waiting_slots, scheduler)


SHAPES = {
    "affine": Shape(3, 4, 4),
    "table": Shape(2, 6, 3, knots=3, every_limit=True),
    "limited": Shape(4, 3, 2, context_limit=True),
}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One fleet, one router, ``RUNS`` traces."""

    shape: str
    scheduler: str
    policy: str
    seed: int  # of all numbers that no other field says
    exact: bool  # times in binary fractions: float32 is exact, and events at one instant are common
    used: int  # requests that count; the rest are blank
    prompt_up_to: int
    output_up_to: int
    mean_gap_s: float
    tie_share: float  # arrivals at the instant of the one before
    burst_share: float  # arrivals after a gap of 20 times the mean, the others bunched
    memory: float  # KV capacity in units of the largest request, at most
    limit_s: float  # L, seconds per output token, at most
    ttft_limit_s: float  # these three at most, too, where the shape has every limit
    tpot_limit_s: float
    e2e_limit_s: float
    length_log_std: float  # of predicted lengths
    free: tuple[str, ...]  # coefficients of iteration times that are 0
    world: str  # one of WORLDS, beside the fleet that routers see and that never errs; "" = none
    scrape_period_s: float  # these where there is a world
    pace_log_std: float  # of fixed errors and of drift
    slowdown_per_s: float
    outage_per_s: float
    scripted_outages: int  # at most EVENTS
    detection_delay_s: float
    failure_delay_s: float
    retry: bool

    @property
    def has_faults(self) -> bool:
        """Whether servers of the world may differ from their profile."""
        return self.pace_log_std + self.slowdown_per_s + self.outage_per_s + self.scripted_outages > 0


def scenarios(
    shapes: tuple[str, ...] = tuple(SHAPES),
    schedulers: tuple[str, ...] = SCHEDULERS,
    policies: tuple[str, ...] = POLICIES,
    worlds: tuple[str, ...] = ("", *WORLDS),
) -> st.SearchStrategy[Scenario]:
    """Return the strategy of scenarios, the simplest values first, which failures shrink to."""
    return st.builds(
        Scenario,
        shape=st.sampled_from(shapes),
        scheduler=st.sampled_from(schedulers),
        policy=st.sampled_from(policies),
        seed=st.integers(0, 2**32 - 1),
        exact=st.sampled_from([True, False, False]),
        used=st.sampled_from([1, 2, 4, 8, 16, *[REQUESTS] * 8]),
        prompt_up_to=st.sampled_from([1, 6, 24, 80, 300]),
        output_up_to=st.sampled_from([1, 2, 12, 40, 100, 600]),
        mean_gap_s=st.sampled_from([0.3, 0.05, 0.01, 0.002]),
        tie_share=st.sampled_from([0.0, 0.2, 0.7]),
        burst_share=st.sampled_from([0.0, 0.1]),
        memory=st.sampled_from([30.0, 4.0, 2.0]),
        limit_s=st.sampled_from([np.inf, 1.0, 0.1, 0.05, 0.01]),
        ttft_limit_s=st.sampled_from([np.inf, 2.0, 0.1]),
        tpot_limit_s=st.sampled_from([np.inf, 0.1, 0.02]),
        e2e_limit_s=st.sampled_from([np.inf, 3.0, 0.3]),
        length_log_std=st.sampled_from([0.0, 0.5, 1.0]),
        free=st.sampled_from([(), ("prefill_per_token_sq_s",), ("decode_per_seq_s", "network_rtt_s"), TIMES]),
        world=st.sampled_from(worlds),
        scrape_period_s=st.sampled_from([0.0, np.inf, 0.5, 0.05]),
        pace_log_std=st.sampled_from([0.0, 0.0, 0.4]),
        slowdown_per_s=st.sampled_from([0.0, 2.0]),
        outage_per_s=st.sampled_from([0.0, 2.0]),
        scripted_outages=st.sampled_from([0, 1, EVENTS]),
        detection_delay_s=st.sampled_from([0.0, 0.1, np.inf]),
        failure_delay_s=st.sampled_from([0.0, 0.05, np.inf]),
        retry=st.booleans(),
    )


# Coefficients, and their largest value, in seconds and, where exact, in units of 2^-10 s.
_SCALES = {
    "prefill_base_s": (0.02, 8),
    "prefill_per_token_s": (1e-3, 2),
    "prefill_per_token_sq_s": (1e-5, 0),
    "decode_per_seq_s": (2e-3, 2),
    "decode_per_context_token_s": (1e-4, 1),
    "network_rtt_s": (0.02, 4),
}
TIMES = tuple(_SCALES)


@dataclasses.dataclass(frozen=True)
class Built:
    """The arrays of a scenario."""

    serving: ServingConfig
    runs: Runs  # [RUNS, REQUESTS]
    assignment: np.ndarray  # [REQUESTS] int32, for the policy ``assigned``; -1 drops


def build(scenario: Scenario) -> Built:
    """Return the arrays that a scenario stands for."""
    shape, rng = SHAPES[scenario.shape], np.random.default_rng(scenario.seed)
    profile = _fleet(scenario, shape, rng)
    lanes = np.random.default_rng(rng.integers(2**63)).spawn(RUNS)
    gap_s = np.stack([_gaps(scenario, lane) for lane in lanes])
    tables = [_table(scenario, shape, lane) for lane in lanes]
    runs = Runs(
        profile=profile,
        limits=_limits(scenario, shape, rng),
        length_log_std=np.full((RUNS, shape.experts), scenario.length_log_std, np.float32),
        arrival_s=np.cumsum(gap_s.astype(np.float64), axis=1),
        requests=jax.tree.map(lambda *leaves: np.stack(leaves), *tables),
        seed=rng.integers(0, 2**32, RUNS, np.uint32),
    )
    assignment = rng.integers(-1, shape.experts, REQUESTS).astype(np.int32)
    return Built(shape.serving(scenario.scheduler), runs, assignment)


def _limits(scenario: Scenario, shape: Shape, rng: np.random.Generator) -> ServiceLimits:
    """Return the limits of each run, leaves [RUNS] float32."""
    names = ("ttft_limit_s", "tpot_limit_s", "e2e_limit_s") if shape.every_limit else ()
    most = {"latency_limit_s": scenario.limit_s} | {name: getattr(scenario, name) for name in names}
    drawn = {name: (value * rng.uniform(0.3, 1.0, RUNS)).astype(np.float32) for name, value in most.items()}
    return ServiceLimits(**drawn)


def _fleet(scenario: Scenario, shape: Shape, rng: np.random.Generator) -> FleetProfile:
    count = shape.experts
    seconds = functools.partial(_seconds, scenario.exact, rng)
    max_running = rng.integers(1, shape.running_slots + 1, count)
    max_running[rng.integers(count)] = shape.running_slots
    largest = scenario.prompt_up_to + scenario.output_up_to
    capacity = 2 + (largest * rng.uniform(0.7, scenario.memory, count)).astype(int)
    if scenario.scheduler == "llama_cpp":  # a slot's share of it
        capacity = capacity * max_running
    times = {name: seconds(*scale, (count,)) * (name not in scenario.free) for name, scale in _SCALES.items()}
    profile = FleetProfile(
        max_running=max_running.astype(np.int32),
        max_waiting=rng.integers(1, shape.waiting_slots + 1, count).astype(np.int32),
        max_batched_tokens=(max_running + rng.integers(0, 60, count)).astype(np.int32),
        kv_capacity_tokens=capacity.astype(np.int32),
        decode_base_s=np.maximum(seconds(0.03, 8, (count,)), np.float32(2.0**-10)),
        busy_power_w=np.full(count, 300.0, np.float32),
        idle_power_w=np.full(count, 50.0, np.float32),
        **times,
    )
    if shape.context_limit:
        limits = rng.integers(2, largest + 2, count)
        limits[rng.random(count) < 0.3] = np.iinfo(np.int32).max
        profile = dataclasses.replace(profile, context_limit_tokens=limits.astype(np.int32))
    if shape.knots:
        size = (shape.knots, count)
        step = 2.0 if scenario.exact else rng.uniform(0.5, 2.5, size)
        batch = 1.0 + np.cumsum(np.broadcast_to(step, size), axis=0)
        fixed_s = np.cumsum(np.maximum(seconds(0.02, 8, size), np.float32(2.0**-10)), axis=0)
        price_s = seconds(*_SCALES["decode_per_context_token_s"], size)
        batch[0] = 1.0
        rows = np.stack([batch, fixed_s, price_s], axis=1).astype(np.float32)
        profile = dataclasses.replace(profile, decode_knots=tuple(DecodeKnot(*row) for row in rows))
    return profile


def _seconds(
    exact: bool, rng: np.random.Generator, scale_s: float, units: int, size: tuple[int, ...]
) -> np.ndarray:
    values = rng.integers(0, units + 1, size) / 1024 if exact else rng.uniform(0.0, scale_s, size)
    return values.astype(np.float32)


def _gaps(scenario: Scenario, rng: np.random.Generator) -> np.ndarray:
    """Return the seconds before each arrival, [REQUESTS] float32."""
    mean_s = scenario.mean_gap_s
    gap_s = rng.exponential(mean_s, REQUESTS)
    if scenario.burst_share:
        bursts = rng.random(REQUESTS) < scenario.burst_share
        gap_s = np.where(bursts, 20.0 * gap_s, 0.2 * gap_s)
    gap_s[rng.random(REQUESTS) < scenario.tie_share] = 0.0
    if scenario.exact:
        gap_s = np.round(gap_s * 1024) / 1024
    return gap_s.astype(np.float32)


def _table(scenario: Scenario, shape: Shape, rng: np.random.Generator) -> RequestTable:
    """Return the requests of one trace, row t that of arrival t."""
    size = (REQUESTS, shape.experts)
    output = rng.integers(1, scenario.output_up_to + 1, size)
    quality = rng.integers(0, 5, size) / 4
    prompt = rng.integers(1, scenario.prompt_up_to + 1, REQUESTS)
    prompt[scenario.used :] = BLANK_TOKENS
    error = np.exp(scenario.length_log_std * rng.normal(size=size))
    guess = np.clip(0.3 + 0.5 * quality + rng.normal(0.0, 0.1, size), 0.0, 1.0)
    return RequestTable(
        prompt_tokens=prompt.astype(np.int32),
        quality=quality.astype(np.float32),
        output_tokens=output.astype(np.int32),
        predicted_quality=guess.astype(np.float32),
        predicted_output_tokens=np.maximum(output * error, 1.0).astype(np.float32),
    )
