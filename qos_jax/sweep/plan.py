"""A sweep, checked: its files read, its cells worked out, its memory planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from qos_jax.checks import COUNT_OR_ZERO, check_distinct, check_range, check_some_of
from qos_jax.errors import InputError, input_error
from qos_jax.files import sha256
from qos_jax.options import check_options, option
from qos_jax.policies import Policy
from qos_jax.policies.greedy_params import PRICE_MEASURED, SEARCHED
from qos_jax.policies.registry import CHECKPOINT, CHECKPOINT_HELP, NEVER_DROPS, resolve, router_of
from qos_jax.policies.saved import LearnedRouter, load_router
from qos_jax.routing.telemetry import TelemetryConfig
from qos_jax.runs.folder import settings_of
from qos_jax.serving import SCHEDULERS
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.metrics import METRICS, PREFIX_METRICS, metric_names
from qos_jax.simulation.world_config import WorldConfig, check_views, under_views
from qos_jax.sweep.axes import ALIKE, CONVERSATIONS, SWEEP_HELP, check_axes, parse_axis
from qos_jax.sweep.capacity import Search, check_metric, parse_search
from qos_jax.sweep.grid import OF_WORKLOAD, CellGroup, Grid, build_grid
from qos_jax.sweep.lane import LaneConfig
from qos_jax.sweep.program import ChunkPlan, plan_chunks
from qos_jax.sweep.worlds import swept_worlds
from qos_jax.workload.conversations import MEAN_TURNS
from qos_jax.workload.limit_presets import LIMIT_PRESETS, PRESET_HELP
from qos_jax.workload.named import CONVERSATION, RECORDED, SESSIONS, SYNTHETIC, TRACE
from qos_jax.workload.named_table import ALL_ROWS, SPLITS
from qos_jax.workload.setting import open_setting

# Parameters that some policies alone read.
_BY_NET_GAIN = ("projected_greedy", "load_aware_greedy", "clairvoyant_greedy")
_OF_POLICIES = {
    **dict.fromkeys(SEARCHED, _BY_NET_GAIN),
    **dict.fromkeys((*PRICE_MEASURED, "margin"), (*_BY_NET_GAIN, "measured_greedy")),
    "impact_weight": ("impact_greedy",),
}


DRAWN = (*SYNTHETIC, *RECORDED, CONVERSATION)  # workloads of which a cell's requests are drawn
_OF_FIGURES = ("error_level", "quality_bias", "length_bias_log")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What to sweep, over what."""

    fleet: tuple[str, ...] = option(
        ("edge6",),
        help="a fleet CSV, or the name of a shipped one: edge6, paper6; with several an axis",
        repeatable=True,
    )
    policies: tuple[str, ...] = option(
        ("shortest_queue", "projected_greedy"),
        help="policies by name; all = heuristics and oracles; heuristics = those alone",
    )
    checkpoint: tuple[str, ...] = option((), help=CHECKPOINT_HELP, repeatable=True)
    stochastic: bool = False  # let learned routers draw from their policy, not take its most likely action
    scheduler: str = option("prefill_first", known=SCHEDULERS)  # iteration scheduler of every expert
    allow_drop: bool = True  # let greedy and learned routers drop what no expert gains from
    sweep: tuple[str, ...] = option((), help=SWEEP_HELP, repeatable=True)
    workload: str = option("poisson", known=DRAWN)  # how requests arrive
    prefix_entries: int = option(
        0,
        help="prefix groups that each expert's cache remembers besides those in its slots, such as 64; 0 = "
        "no prefix caching. As all that follows of conversations, of workload conversation alone",
    )
    conversation_turns: float = MEAN_TURNS  # mean turns of a conversation
    open_conversations: int = 100  # at a time: a user thinks for so many arrivals
    conversation_limit_tokens: int = 4096  # a conversation ends before a turn exceeds it
    system_prompts: int = 0  # one of which each conversation begins with; 0 = with what the user says
    system_prompt_tokens: int = 256  # of each of system_prompts
    system_prompt_skew: float = 1.0  # Zipf's exponent of how popular they are; 0 = all alike
    replicas: bool = False  # whether all experts answer as the fleet's first: one model on several servers
    limits: str | None = option(None, help=PRESET_HELP, known=LIMIT_PRESETS)
    table: str | None = None  # request table (.npz) whose rows are the requests, drawn evenly
    table_split: str = option(ALL_ROWS, known=(ALL_ROWS, *SPLITS))  # which rows of the table
    seeds: int = 4  # independent draws of requests and arrivals, the same for every cell and policy
    seed: int = 0  # of all draws
    num_requests: int = 512  # requests of a run
    capacity: str | None = option(
        None, help="search the largest arrival_rate (or load) that meets --target, per cell and policy"
    )
    target: str | None = None  # METRIC>=VALUE (or <=), of the mean over seeds
    capacity_range: tuple[float, ...] = option(
        (), help="LOW,HIGH of the search, in units of --capacity; empty = 0.02 to 4 of the fleet's capacity"
    )
    capacity_tolerance: float = 0.02  # of the search, relative
    plot_metrics: tuple[str, ...] = option(
        ("average_qos", "share_within_limit"),
        help=f"metrics to plot: some of {', '.join(METRICS)}; with prefix_entries "
        f"of {', '.join(PREFIX_METRICS)}, too",
    )
    world: WorldConfig = option(WorldConfig, flat=True)

    def __post_init__(self) -> None:
        if self.workload == TRACE:
            fault, remedy = "a recorded trace is not drawn from", "use launch.evaluate for traces"
            raise input_error(fault, field="workload", remedy=remedy)
        if self.workload == SESSIONS:
            fault = "the turns of sessions wait for answers, and a cell's arrivals for none"
            remedy = f"give --workload={CONVERSATION}, or use launch.evaluate for sessions"
            raise input_error(fault, field="workload", remedy=remedy)
        check_options(self)
        check_range(self, ("prefix_entries",), COUNT_OR_ZERO)
        for field in dataclasses.fields(self):
            unread = field.name in ALIKE and getattr(self, field.name) != field.default
            if unread and self.workload != CONVERSATION:
                fault, remedy = (
                    f"is read by workload {CONVERSATION!r} alone",
                    f"give --workload={CONVERSATION}",
                )
                raise input_error(fault, field=field.name, remedy=remedy)


@dataclasses.dataclass(frozen=True, eq=False)
class SweepPlan:
    """A sweep that has passed every check; see :func:`load_sweep`."""

    settings: dict[str, Any]  # all that determines the results, the content of config.json
    grid: Grid
    policies: list[Policy]  # POLICY@VIEW, where there are views
    choices: dict[str, TelemetryConfig]  # of each policy's view; none = routers see everything
    config: SweepConfig
    search: Search | None
    search_ends: tuple[np.ndarray, np.ndarray] | None  # [C] each, requests / s

    def lane_config(self, group: CellGroup, policy_name: str) -> LaneConfig:
        """Return the static part of the program of a group and a policy."""
        given, choices = self.config, self.choices.get(policy_name)
        return LaneConfig(
            group.serving,
            given.workload,
            given.num_requests,
            given.seeds,
            replicas=given.replicas,
            choices=choices,
        )

    @property
    def cell_requests(self) -> int:
        """Requests that a cell takes of one policy, all seeds and rounds of a search counted."""
        return self.config.seeds * self.config.num_requests * (self.search.rounds if self.search else 1)

    @property
    def total_requests(self) -> int:
        """Requests of the whole sweep."""
        return self.grid.num_cells * len(self.policies) * self.cell_requests


def load_sweep(config: SweepConfig) -> SweepPlan:
    """Read the files of a sweep, check that they and the parameters fit, and work out its cells.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    axes = [parse_axis(text) for text in config.sweep]
    check_axes(axes)
    given = {axis.name for axis in axes}
    search = parse_search(
        config.capacity,
        config.target,
        config.capacity_range or (0.02, 4.0),
        config.capacity_tolerance,
        config.prefix_entries,
    )
    worlds = swept_worlds(config.world, axes)
    chosen = resolve(
        config.policies,
        config.checkpoint,
        allow_drop=config.allow_drop,
        stochastic=config.stochastic,
        with_bounds=False,
        with_measuring=worlds is None,
    )
    for name in chosen.checkpoints:
        if (router := router_of(name)) != name:
            fault = f"names {router!r} twice, and sweeps do not take training runs together"
            remedy = f"name each once: --{CHECKPOINT}=NAME=DIR"
            raise input_error(fault, field=CHECKPOINT, remedy=remedy)
    draws = CaseConfig(
        workloads=(config.workload,),
        **{
            name: getattr(config, name)
            for name in ("seeds", "seed", "num_requests", "replicas", *CONVERSATIONS)
        },
    )
    _check_readers(config, given, chosen.names)
    if search is not None:
        for name in {"load", "arrival_rate"} & given:
            raise input_error(
                "is what the search is for", field=name, remedy="leave out its --sweep, or --capacity"
            )
    for name in config.plot_metrics:
        check_metric("plot_metrics", name, config.prefix_entries)
    check_some_of("plot_metrics", config.plot_metrics, metric_names(config.prefix_entries))
    if not config.fleet:
        raise input_error("names no fleet", field="fleet", remedy="give --fleet=NAME or a fleet CSV")
    check_distinct("fleet", config.fleet)
    limits_s = next((axis.values for axis in axes if axis.name == "latency_limit_s"), None)
    fleets = [
        open_setting(
            name,
            latency_limit_s=limits_s[0] if limits_s else None,
            limits=config.limits,
            table=config.table,
            table_split=config.table_split,
            seed=config.seed,
        )
        for name in config.fleet
    ]
    grid = build_grid(fleets, axes, config.scheduler, draws, worlds, config.prefix_entries)
    routers: dict[str, LearnedRouter] = {}
    for name, folder in chosen.checkpoints.items():
        for group in grid.groups:  # it must fit them all
            routers[name] = load_router(
                name, folder, group.serving, allow_drop=config.allow_drop, stochastic=config.stochastic
            )
    ends = None
    if search is not None:
        relative = search.name == "load" or not config.capacity_range
        unit = grid.capacity_per_s if relative else np.ones(grid.num_cells)
        ends = (search.low * unit, search.high * unit)
    policies = [*chosen.policies, *(router.policy for router in routers.values())]
    if worlds is not None:
        check_views(policies)
    policies, choices = under_views(policies, {} if worlds is None else worlds.choices)
    return SweepPlan(
        settings=settings_of(
            "sweep",
            {name: value for name, value in dataclasses.asdict(config).items() if name != "plot_metrics"},
            files={"table": config.table},
            flat=("world",),
            views=() if worlds is None else worlds.views,
            sweep={axis.name: axis.values for axis in axes},
            fleet_sha256={fleet.name: sha256(fleet.file) for fleet in fleets},
            policies=chosen.names,
            checkpoint={name: router.record for name, router in routers.items()},
            latency_limits_s={fleet.name: None if limits_s else fleet.latency_limit_s for fleet in fleets},
        ),
        grid=grid,
        policies=policies,
        choices=choices,
        config=config,
        search=search,
        search_ends=ends,
    )


def plan_memory(
    plan: SweepPlan, mesh: Mesh, max_bytes: float, chunk_requests: int | None = None
) -> list[ChunkPlan]:
    """Return how each group is cut to stay within ``max_bytes`` on this process' devices; see plan_chunks."""
    return [
        plan_chunks(
            plan.lane_config(group, plan.policies[0].name),
            group,
            mesh,
            max_bytes,
            cell_requests=plan.cell_requests,
            chunk_requests=chunk_requests,
        )
        for group in plan.grid.groups
    ]


def describe(plan: SweepPlan, mesh: Mesh, chunks: Sequence[ChunkPlan]) -> str:
    """Return what a sweep will do and what memory it takes, for the user to read before it starts."""
    grid = plan.grid
    rounds = f" x {plan.search.rounds} rounds" if plan.search else ""
    lines = [
        f"{grid.num_cells:,} cells x {len(plan.policies)} policies x {plan.config.seeds} seeds{rounds} of "
        f"{plan.config.num_requests:,} requests = {plan.total_requests:,} requests, on {mesh.size} device(s)"
    ]
    for group, cut in zip(grid.groups, chunks, strict=True):
        lines.append(
            f"{group.serving.num_experts} experts x {group.serving.slots} slots: {len(group.cell):,} cells "
            f"in {cut.chunks} chunk(s) of {cut.chunk_cells:,}, blocks of {cut.block_runs} runs, about "
            f"{cut.run_bytes / 1e3:,.0f} kB a run in a block, {cut.chunk_bytes / 1e6:,.0f} MB in all"
        )
    return "\n".join(lines)


def _check_readers(config: SweepConfig, given: set[str], policies: Sequence[str]) -> None:
    """Refuse to sweep what nothing in this sweep reads: every cell would be the same."""

    def unread(name: str, reader: str, remedy: str) -> InputError:
        return input_error(f"is read by {reader} alone", field=name, remedy=remedy)

    rules = {name.removesuffix(NEVER_DROPS) for name in policies}
    for name in sorted(given):
        workload = OF_WORKLOAD.get(name, config.workload)
        if workload != config.workload:
            raise unread(name, f"workload {workload!r}", f"give --workload={workload}")
        readers = _OF_POLICIES.get(name)
        if readers and not set(readers) & rules:
            raise unread(name, " and ".join(readers), f"add {readers[0]} to --policies")
        if config.table is not None and name in _OF_FIGURES:
            raise input_error(
                "is of synthetic predictions, and a table has its own", field=name, remedy="leave it out"
            )
