"""One run of given requests, or of users, through a fleet: checked, simulated, written to its folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from qos_jax.errors import input_error
from qos_jax.evaluation import plots
from qos_jax.evaluation.prefix_plot import prefix_hits
from qos_jax.evaluation.run_config import SingleRunConfig
from qos_jax.logs import has_layout
from qos_jax.policies import REPLAYS, Policy, policy
from qos_jax.runs import plot_style
from qos_jax.runs.folder import RunFolder, settings_of
from qos_jax.serving import ServiceLimits, cut_at_limit
from qos_jax.simulation.cases import build_cases
from qos_jax.simulation.metrics import ALL_METRICS, summarise
from qos_jax.simulation.prefix_spared import prefix_spared
from qos_jax.simulation.records import (
    COMPLETED,
    FAILED,
    REJECTED,
    REJECTED_TOO_LONG,
    RequestRecords,
    write_records_csv,
)
from qos_jax.simulation.sessions import SessionRuns, session_metrics, simulate_sessions
from qos_jax.simulation.simulate import Runs, SimulationResult, repeated_limits, simulate
from qos_jax.simulation.world import World, simulate_world
from qos_jax.simulation.world_config import check_views
from qos_jax.workload import Fleet, Requests, measure_length_log_std, read_requests, read_trace
from qos_jax.workload.requests import requests_of_trace
from qos_jax.workload.setting import limit_record, limit_settings, open_fleet, open_setting
from qos_jax.workload.trace import warn_of_prefixes

CSV_CHUNK_REQUESTS = 8192  # records held as text at once while they are written


@dataclasses.dataclass(frozen=True)
class SingleRun:
    """A run that has passed every check, ready to simulate; make one with :func:`load_run`."""

    config: SingleRunConfig
    settings: dict[str, Any]  # all that determines the results, the content of config.json
    fleet: Fleet
    requests: Requests | SessionRuns  # of a file; or one run of users
    policy: Policy
    world: World | None  # None = routers see everything, servers have no faults

    @property
    def num_requests(self) -> int:
        """T."""
        given = self.requests
        return given.num_requests if isinstance(given, SessionRuns) else len(given.arrival_s)


def load_run(config: SingleRunConfig) -> SingleRun:
    """Read the files of a run and check that they fit together; nothing is written, users are drawn.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    if config.sessions is not None:
        return _load_sessions(config)
    replayed = config.policy in REPLAYS
    router = None if replayed else policy(config.policy, allow_drop=config.allow_drop)
    file, fleet = open_fleet(config.fleet)
    requests = _open_requests(config, fleet)
    if router is None:
        if requests.expert is None:
            fault = f"column is missing, and the policy {config.policy!r} replays it"
            remedy = "give the name of an expert for each request, or choose another policy"
            raise input_error(fault, file=config.requests, field="expert", remedy=remedy)
        router = policy(config.policy, assignment=jnp.asarray(requests.expert))
    _check_capacity(config, fleet, requests)
    files: dict[str, Any] = {"fleet": file, "requests": config.requests}
    settings = settings_of(
        "simulate",
        config,
        flat=("world",),
        files=files,
        views=config.views,
        **limit_record(config.service_limits),
    )
    worlds = config.world.worlds(fleet.names)
    if worlds:
        check_views([router])
    return SingleRun(config, settings, fleet, requests, router, worlds[config.views[0]] if worlds else None)


def _load_sessions(config: SingleRunConfig) -> SingleRun:
    """Return the run of users, whose turns are drawn: seed 0 of a comparison of as many, at the same seed."""
    talk = config.sessions
    assert talk is not None
    router = policy(config.policy, allow_drop=config.allow_drop)
    setting = open_setting(
        config.fleet, **limit_settings(config), table=talk.table, scheduler=config.scheduler, seed=config.seed
    )
    if setting.source_is_drawn:
        logging.warning("the models of fleet %s have no figures; drawn experts stand in", config.fleet)
    limits = config.service_limits
    (case,) = build_cases(talk.case_config(config.seed), setting.fleet, setting.source, limits)
    assert isinstance(case.runs, SessionRuns)
    settings = settings_of(
        "simulate",
        config,
        flat=("world",),
        files={"fleet": setting.file, "requests": None, "table": talk.table},
        views=(),
        **limit_record(limits),
    )
    return SingleRun(config, settings, setting.fleet, case.runs, router, None)


def simulate_requests(
    fleet: Fleet,
    requests: Requests,
    router: Policy,
    limits: ServiceLimits | float,
    *,
    scheduler: str = "prefill_first",
    prefix_entries: int = 0,
    seed: int = 0,
    keep_snapshots: bool = False,
    on_progress: Callable[[int], None] | None = None,
    world: World | None = None,
) -> SimulationResult:
    """Route T requests to N experts by a policy, and return what became of each.

    The error of the predicted lengths, which a router may know, is the one measured on these requests.

    Args:
      fleet: the experts.
      requests: what arrives, and when.
      router: who routes.
      limits: the service levels; a number is L alone, seconds per output token.
      scheduler: of every expert, one of ``serving.SCHEDULERS``.
      prefix_entries: prefix groups that each expert remembers besides those in its slots; 0 = no caching.
      seed: of the policy's own randomness, 0 to 2**32 - 1.
      keep_snapshots: also return the experts' load before each arrival.
      on_progress: called every few hundred requests with the number just routed.
      world: where routers do not see everything, or servers err; there are no snapshots of it.

    Returns:
      The result of one run: records [1, T], totals [1, N].
    """
    runs = Runs(
        profile=fleet.profile,
        limits=repeated_limits(limits, 1),
        length_log_std=np.asarray(measure_length_log_std(requests.table))[None],
        arrival_s=requests.arrival_s[None],
        requests=jax.tree.map(lambda x: np.asarray(x)[None], requests.table),
        seed=np.array([seed], np.uint32),
    )
    config = fleet.serving(scheduler, prefix_entries)
    if world is not None:
        return simulate_world(config, router, runs, world, on_progress=on_progress)
    return simulate(config, router, runs, keep_snapshots=keep_snapshots, on_progress=on_progress)


def execute_run(
    run: SingleRun, folder: RunFolder, *, plot: bool, on_progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Simulate a run and write ``records.csv``, ``summary.json`` and, with ``plot``, ``plots/``.

    Every file is written whole or not at all; the same run gives the same bytes.

    Returns:
      The content of ``summary.json``: the configuration, every metric by name, and the experts.
    """
    config = run.config
    if isinstance(run.requests, SessionRuns):
        serving = run.fleet.serving(config.scheduler, config.prefix_entries)
        result = simulate_sessions(
            serving, run.policy, run.requests, keep_snapshots=plot, on_progress=on_progress
        )
    else:
        result = simulate_requests(
            run.fleet,
            run.requests,
            run.policy,
            config.service_limits,
            scheduler=config.scheduler,
            prefix_entries=config.prefix_entries,
            seed=config.seed,
            keep_snapshots=plot,
            on_progress=on_progress,
            world=run.world,
        )
    records = result.records.at(0)
    summary = summarise_run(run, result)
    rtt_s = run.fleet.profile.network_rtt_s
    limits = config.service_limits
    write_records_csv(folder.file("records.csv"), _chunks(records), run.fleet.names, limits, rtt_s)
    if plot:
        for name, figure in _figures(run, result):
            plot_style.save_figure(figure, folder.file(f"plots/{name}.png"))
    folder.write_json("summary.json", summary)
    return summary


def summarise_run(run: SingleRun, result: SimulationResult) -> dict[str, Any]:
    """Return the configuration of a run, its metrics by name, and what each expert did."""
    figures = summarise(result.records, result.totals, run.fleet.profile, run.config.service_limits)
    if isinstance(run.requests, SessionRuns):
        figures |= session_metrics(run.requests, figures, result.totals.makespan_s)
    counts = {name for name, metric in ALL_METRICS.items() if metric.unit in ("requests", "tokens")}
    metrics = {
        name: int(values[0]) if name in counts else float(values[0]) for name, values in figures.items()
    }
    records, makespan_s = result.records.at(0), float(result.totals.makespan_s[0])
    experts = []
    for index, name in enumerate(run.fleet.names):
        status = records.status[records.expert == index]
        capacity = float(run.fleet.profile.kv_capacity_tokens[index])
        experts.append(
            {
                "expert": name,
                "routed": int(status.size),
                "completed": int(np.sum(status == COMPLETED)),
                "rejected": int(np.sum(status == REJECTED)),
                "rejected_too_long": int(np.sum(status == REJECTED_TOO_LONG)),
                "failed": int(np.sum(status == FAILED)),
                "busy_share": _share(result.totals.busy_s[0, index], makespan_s),
                "kv_utilisation": _share(result.totals.kv_token_s[0, index], makespan_s * capacity),
                **prefix_figures(records, run.fleet, index),
            }
        )
    config = dataclasses.asdict(run.config)
    config |= config.pop("world") | {"views": run.config.views} | limit_record(run.config.service_limits)
    return {**config, **metrics, "makespan_s": makespan_s, "experts": experts}


def prefix_figures(records: RequestRecords, fleet: Fleet, index: int) -> dict[str, float]:
    """Return what an expert's prefix cache spared it: tokens, their share, seconds of prefill; {} without.

    Args:
      records: of one run, [T].
      fleet: the experts.
      index: which of them.
    """
    if records.cached_tokens is None:
        return {}
    spared = {name: float(values[index]) for name, values in prefix_spared(records, fleet.profile).items()}
    cached = int(spared["cached_tokens"])
    return {"cached_tokens": cached, **{name: spared[name] for name in ("hit_rate", "prefill_saved_s")}}


def _open_requests(config: SingleRunConfig, fleet: Fleet) -> Requests:
    """Return the requests of our own CSV file, or of a trace or a log of another layout."""
    assert config.requests is not None
    if not has_layout(config.requests):
        return read_requests(config.requests, fleet.names)
    trace = dataclasses.replace(read_trace(config.requests), name=config.requests)
    warn_of_prefixes(trace, config.prefix_entries)
    return requests_of_trace(trace, fleet.num_experts)


def _check_capacity(config: SingleRunConfig, fleet: Fleet, requests: Requests) -> None:
    """Refuse requests of which the fleet can hold none, or whose tokens cannot be counted."""
    limited = fleet.under(config.scheduler).profile
    capacity = np.asarray(limited.request_capacity_tokens, np.int64)
    prompt = np.asarray(requests.table.prompt_tokens, np.int64)
    served = cut_at_limit(limited, requests.table, np)
    total = prompt[:, None] + np.asarray(served.output_tokens, np.int64)  # [T, N]
    if not np.any(total <= capacity):
        raise input_error(
            f"the largest is {capacity.max()} tokens, and no expert can hold any of the {len(prompt)} "
            f"requests of {config.requests}: prompt + output is {total.min()} tokens at least",
            file=config.fleet,
            field="kv_capacity_tokens",
            remedy="give an expert more, or bring shorter requests",
        )
    if total.max() > np.iinfo(np.int32).max:
        at = int(np.argmax(total.max(axis=1)))
        fault = f"request {at} has {total.max()} prompt and output tokens"
        remedy = f"keep their sum below {np.iinfo(np.int32).max}"
        raise input_error(fault, file=config.requests, field="output_tokens", remedy=remedy)


def _chunks(records: RequestRecords) -> Iterator[RequestRecords]:
    """Yield records [T] some thousands at a time."""
    held = {name: values for name, values in vars(records).items() if values is not None}
    for start in range(0, records.status.size, CSV_CHUNK_REQUESTS):
        part = slice(start, start + CSV_CHUNK_REQUESTS)
        yield RequestRecords(**{name: values[part] for name, values in held.items()})


def _figures(run: SingleRun, result: SimulationResult) -> Iterator[tuple[str, Any]]:
    """Yield name and figure of each plot of a run."""
    if (load := result.snapshots) is not None:
        yield (
            "timeline",
            plots.timeline(
                result.records.arrival_s[0] - result.records.arrival_s[0, 0],
                np.asarray(load.running[0]),
                np.asarray(load.waiting[0]),
                np.asarray(load.kv_tokens[0]) / np.asarray(run.fleet.profile.kv_capacity_tokens),
                run.fleet.names,
            ),
        )
    records = {run.config.policy: result.records.at(0)}
    curves = plots.limit_cdfs(records, run.config.service_limits, run.fleet.profile.network_rtt_s)
    yield from curves.items()
    if result.records.cached_tokens is not None:
        yield "prefix_hits", prefix_hits(records, run.fleet.profile, run.fleet.names)


def _share(part: float, whole: float) -> float:
    """Return part / whole, NaN where there is no whole."""
    return float(part) / whole if whole > 0 else math.nan
