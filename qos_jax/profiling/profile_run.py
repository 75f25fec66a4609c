"""One expert's profile from measurements: loaded and checked, fitted, written to its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qos_jax.errors import input_error
from qos_jax.files import sha256
from qos_jax.profiling import (
    COEFFICIENTS,
    CoefficientFit,
    IterationLog,
    RequestLog,
    RooflineConfig,
    SearchConfig,
    ServerLimits,
    fit_iterations,
    fit_requests,
    read_iterations,
    read_request_log,
    roofline,
)
from qos_jax.profiling.coefficients import check_fixed, typical_iterations
from qos_jax.profiling.goodness import Goodness
from qos_jax.profiling.iteration_fit import (
    check_iterations,
    iteration_design,
    iteration_quality,
    iteration_subset,
)
from qos_jax.profiling.profile_files import append_expert, check_new_expert, fleet_of_one, write_profile_csv
from qos_jax.profiling.profile_report import Agreement, predicted_against_measured
from qos_jax.profiling.request_fit import (
    StartResult,
    check_requests,
    num_replays,
    request_pairs,
    request_quality,
    typical_load,
)
from qos_jax.profiling.roofline import roofline_kv_tokens
from qos_jax.runs import plot_style
from qos_jax.runs.folder import RunFolder
from qos_jax.serving import SCHEDULERS

SOURCES = ("iterations", "requests", "roofline")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """What to fit a profile to, and the columns of its row that are given.

    Raises:
      InputError: a value out of its range, naming the field, which is also the flag's name.
    """

    expert: str  # its name in the fleet
    iterations: str | None = None  # an iteration log; one of the three sources
    requests: str | None = None  # a request log
    roofline: RooflineConfig | None = None
    column: tuple[str, ...] = ()  # OURS=THEIRS: names of the log's columns
    fix: tuple[str, ...] = ()  # NAME=VALUE: coefficients that are given, not fitted
    scheduler: str = "chunked_prefill"  # of the server whose requests were logged
    max_running: int = 256  # requests
    max_waiting: int = 256  # requests, of the row alone
    max_batched_tokens: int = 2048  # tokens of an iteration
    kv_capacity_tokens: int | None = None  # tokens; None = what a roofline's memory holds
    network_rtt_s: float = 0.0  # of the row alone, as the next two
    busy_power_w: float = 0.0
    idle_power_w: float = 0.0
    test_share: float = 0.0  # kept out of a second fit that predicts it: the last requests, any iterations
    seed: int = 0  # of the starting points and the choice of test iterations
    append_to: str | None = None  # a fleet CSV that gets the row too

    def __post_init__(self) -> None:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise input_error(
                f"{' and '.join(given)} are given" if given else "no source is given",
                field=given[-1] if given else "iterations",
                remedy="give one of --iterations=FILE, --requests=FILE and --roofline",
            )
        if self.scheduler not in SCHEDULERS:
            raise input_error(
                f"{self.scheduler!r} is unknown",
                field="scheduler",
                remedy=f"use one of {', '.join(SCHEDULERS)}",
            )
        if not 0 <= self.test_share < 1:
            raise input_error(
                f"{self.test_share} is out of range", field="test_share", remedy="give 0 to below 1"
            )
        if not 0 <= self.seed < 2**32:
            raise input_error(f"{self.seed} is out of range", field="seed", remedy="use 0 to 2^32 - 1")
        if self.roofline is None:
            if self.kv_capacity_tokens is None:
                raise input_error(
                    "is missing",
                    field="kv_capacity_tokens",
                    remedy="give what the server logged at its start",
                )
            return
        for name, none in (("column", ()), ("fix", ()), ("test_share", 0.0)):
            if getattr(self, name) != none:
                raise input_error(
                    "a roofline fits no log", field=name, remedy=f"leave out --{name}, or give a log"
                )


@dataclasses.dataclass(frozen=True, eq=False)
class ProfilePlan:
    """A profile that has passed every check, ready to fit; make one with :func:`load_profile`."""

    config: ProfileConfig
    settings: dict[str, Any]  # all that determines the results, the content of config.json
    fixed: dict[str, float]
    log: IterationLog | RequestLog | None  # None for a roofline
    kv_capacity_tokens: int
    search: SearchConfig

    @property
    def limits(self) -> ServerLimits:
        """How the server batches."""
        c = self.config
        return ServerLimits(c.scheduler, c.max_running, c.max_batched_tokens, self.kv_capacity_tokens)

    @property
    def replays(self) -> int:
        """How many replays of the log the fits take at most; 0 without a request log."""
        if not isinstance(self.log, RequestLog):
            return 0
        return num_replays(self.search, self.fixed) * (2 if self.config.test_share else 1)

    @property
    def fitted_rows(self) -> np.ndarray:
        """[R] bool, the rows that the second fit sees: the first requests, or iterations at random."""
        assert self.log is not None
        if isinstance(self.log, RequestLog):
            rows = self.log.num_requests
            return np.arange(rows) < round(rows * (1 - self.config.test_share))
        rows = len(self.log.duration_s)
        order = np.random.default_rng(self.config.seed).permutation(rows)
        return order < round(rows * (1 - self.config.test_share))


def load_profile(config: ProfileConfig, search: SearchConfig | None = None) -> ProfilePlan:
    """Read the files of a profile and check that they fit together; nothing is fitted or written.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    columns = _pairs(config.column, "column", "OURS=THEIRS")
    fixed = _numbers(_pairs(config.fix, "fix", "NAME=VALUE"))
    check_fixed(fixed)
    kv_capacity_tokens = config.kv_capacity_tokens
    if kv_capacity_tokens is None:
        assert config.roofline is not None
        kv_capacity_tokens = roofline_kv_tokens(config.roofline)
    # The row but for the coefficients, so that a limit that no fleet takes is refused before the fit.
    row = _row(config, kv_capacity_tokens, dict.fromkeys(COEFFICIENTS, 1e-3) | fixed)
    fleet_of_one(config.expert, row)
    if config.append_to is not None:
        check_new_expert(config.append_to, config.expert)
    log: IterationLog | RequestLog | None = None
    if config.iterations is not None:
        log = read_iterations(config.iterations, columns)
    elif config.requests is not None:
        log = read_request_log(config.requests, columns)
    source = config.iterations or config.requests
    plan = ProfilePlan(
        config=config,
        settings={
            "launcher": "calibrate",
            **dataclasses.asdict(config),
            "sha256": sha256(source) if source else None,
            "kv_capacity_tokens": kv_capacity_tokens,
        },
        fixed=fixed,
        log=log,
        kv_capacity_tokens=kv_capacity_tokens,
        search=dataclasses.replace(search or SearchConfig(), seed=config.seed),
    )
    if isinstance(log, IterationLog):
        check_iterations(log, fixed)
        if config.test_share:
            check_iterations(iteration_subset(log, plan.fitted_rows), fixed)
    elif log is not None:
        check_requests(log, plan.limits, fixed, plan.fitted_rows)
    return plan


def execute_profile(
    plan: ProfilePlan, folder: RunFolder, *, plot: bool, on_progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Fit a profile and write ``profile.json``, ``profile.csv``, with ``plot`` a plot, and the fleet's row.

    Each refined start of a request log is in ``metrics.jsonl`` as soon as it is done, and a run resumed takes
    it from there.

    Returns:
      The content of ``profile.json``.

    Raises:
      InputError: a log that cannot tell a coefficient, naming it.
    """
    fit, report, agreement = _fitted(plan, folder, on_progress)
    config = plan.config
    if fit.as_dict()["decode_base_s"] <= 0:
        raise input_error(
            "the log is fitted best by 0, and an iteration takes some time",
            file=plan.settings["iterations"],
            field="decode_base_s",
            remedy="add decode iterations of small batches, or give --fix=decode_base_s=VALUE in seconds",
        )
    row = _row(config, plan.kv_capacity_tokens, fit.as_dict())
    source, notes = _source(plan)
    summary = {
        "expert": config.expert,
        "source": source,
        "notes": notes,
        "row": row,
        "coefficients": {
            name: {
                "value": fit.value[at],
                "standard_error": fit.standard_error[at],
                "ci_low": fit.low[at],
                "ci_high": fit.high[at],
                "confidence": fit.confidence(name),
            }
            for at, name in enumerate(COEFFICIENTS)
        },
        **report,
    }
    comments = [f"{config.expert}: {notes}"]
    if plot:
        figure = predicted_against_measured(agreement)
        plot_style.save_figure(figure, folder.file("plots/predicted_against_measured.png"))
    write_profile_csv(folder.file("profile.csv"), config.expert, row, comments)
    folder.write_json("profile.json", summary)
    if config.append_to is not None:
        append_expert(config.append_to, config.expert, row, comments)
    return summary


_Fitted = tuple[CoefficientFit, dict[str, Any], dict[str, Agreement]]


def _fitted(plan: ProfilePlan, folder: RunFolder, on_progress: Callable[[int], None] | None) -> _Fitted:
    """Return the fit, what ``profile.json`` says of it and what to plot."""
    if isinstance(plan.log, IterationLog):
        return _fit_iterations(plan, plan.log)
    if isinstance(plan.log, RequestLog):
        return _fit_requests(plan, plan.log, folder, on_progress)
    config = plan.config
    assert config.roofline is not None
    found = roofline(config.roofline, config.max_running, config.max_batched_tokens, plan.kv_capacity_tokens)
    predicted_s = iteration_design(found.grid) @ found.fit.value
    return found.fit, {"quality": _plain(found.quality)}, _by_kind(found.grid, predicted_s, None)


def _fit_iterations(plan: ProfilePlan, log: IterationLog) -> _Fitted:
    found = fit_iterations(log, plan.fixed)
    report: dict[str, Any] = {
        "rows": len(log.duration_s),
        "quality": _plain(found.quality),
        "typical_iterations": typical_iterations(
            found.fit,
            _median(log.batch[~log.is_prefill]),
            _median(log.context_tokens[~log.is_prefill]),
            _median(log.prefill_tokens[log.is_prefill]),
        ),
    }
    held_out = None
    predicted_s = found.predicted_s
    if plan.config.test_share:
        seen = plan.fitted_rows
        part = fit_iterations(iteration_subset(log, seen), plan.fixed)
        held_out = ~seen
        predicted_s = iteration_design(log) @ part.fit.value
        test_log = iteration_subset(log, held_out)
        report["test"] = {
            "rows": int(held_out.sum()),
            "quality": _plain(iteration_quality(test_log, predicted_s[held_out])),
        }
    return found.fit, report, _by_kind(log, predicted_s, held_out)


def _by_kind(log: IterationLog, predicted_s: np.ndarray, held_out: np.ndarray | None) -> dict[str, Agreement]:
    kinds = {"prefill iteration": log.is_prefill, "decode iteration": ~log.is_prefill}
    return {
        kind: Agreement(predicted_s[rows], log.duration_s[rows], None if held_out is None else held_out[rows])
        for kind, rows in kinds.items()
        if rows.any()
    }


def _fit_requests(
    plan: ProfilePlan, log: RequestLog, folder: RunFolder, on_progress: Callable[[int], None] | None
) -> _Fitted:
    done = folder.read_metrics()

    def fit(stage: str, rows: np.ndarray) -> Any:
        return fit_requests(
            log,
            plan.limits,
            plan.fixed,
            plan.search,
            rows=rows,
            finished=[
                StartResult(np.array(line["value"]), line["cost"]) for line in done if line["stage"] == stage
            ],
            on_start=lambda start: folder.append_metrics(
                {"stage": stage, "value": start.value, "cost": start.cost}
            ),
            on_progress=on_progress,
        )

    every = np.ones(log.num_requests, bool)
    found = fit("all", every)
    batch, context = typical_load(log, plan.limits)
    report: dict[str, Any] = {
        "rows": log.num_requests,
        "quality": _plain(request_quality(log, found.ttft_s, found.latency_s, every)),
        "typical_iterations": typical_iterations(
            found.fit, batch, context, float(np.mean(log.prompt_tokens))
        ),
        "starts": [
            {"cost": start.cost, **dict(zip(COEFFICIENTS, start.value.tolist(), strict=True))}
            for start in found.starts
        ],
    }
    shown, held_out = found, np.zeros(log.num_requests, bool)
    if plan.config.test_share:
        held_out = ~plan.fitted_rows
        shown = fit("test", ~held_out)
        report["test"] = {
            "rows": int(held_out.sum()),
            "coefficients": shown.fit.as_dict(),
            "quality": _plain(request_quality(log, shown.ttft_s, shown.latency_s, held_out)),
        }
    agreement = {
        name: Agreement(replayed[rows], measured[rows], held_out[rows] if held_out.any() else None)
        for name, (replayed, measured, rows) in request_pairs(
            log, shown.ttft_s, shown.latency_s, every
        ).items()
    }
    return found.fit, report, agreement


def _source(plan: ProfilePlan) -> tuple[str, str]:
    """Return the kind of source, and one line that says what the numbers are worth."""
    config = plan.config
    if config.roofline is not None:
        r = config.roofline
        return "roofline", (
            f"ROOFLINE, NOT MEASURED: {r.parameters / 1e9:.4g} B parameters x {r.weight_bytes:g} bytes, "
            f"{r.layers} layers, hidden {r.hidden_size}, {r.kv_heads} KV heads of {r.head_dim}; "
            f"{r.bandwidth_gb_per_s:g} GB/s x {r.bandwidth_efficiency:g}, "
            f"{r.tflop_per_s:g} TFLOP/s x {r.compute_efficiency:g}, overhead {r.overhead_s:g} s"
        )
    given = f"; given, not fitted: {', '.join(plan.fixed)}" if plan.fixed else ""
    if isinstance(plan.log, IterationLog):
        return "iterations", f"fitted to {len(plan.log.duration_s)} iterations of {plan.log.file}{given}"
    assert plan.log is not None
    return "requests", (
        f"fitted to {plan.log.num_requests} requests of {plan.log.file} by replay, {config.scheduler}{given}"
    )


def _row(config: ProfileConfig, kv_capacity_tokens: int, coefficients: Mapping[str, float]) -> dict[str, Any]:
    """Return the columns of the fleet's row but the name."""
    names = (
        "max_running",
        "max_waiting",
        "max_batched_tokens",
        "network_rtt_s",
        "busy_power_w",
        "idle_power_w",
    )
    return {
        **{name: getattr(config, name) for name in names},
        "kv_capacity_tokens": kv_capacity_tokens,
        **coefficients,
    }


def _pairs(items: tuple[str, ...], field: str, form: str) -> dict[str, str]:
    """Return ``A=B`` items as a mapping."""
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise input_error(f"{item!r} is not {form}", field=field, remedy=f"write --{field}={form}")
        if name in pairs:
            raise input_error(f"{name} is given twice", field=field, remedy="give it once")
        pairs[name] = value
    return pairs


def _numbers(pairs: Mapping[str, str]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in pairs.items()}
    except ValueError as error:
        raise input_error(str(error), field="fix", remedy="give seconds, such as 0.01") from None


def _plain(quality: Mapping[str, Goodness]) -> dict[str, Any]:
    return {name: dataclasses.asdict(value) for name, value in quality.items()}


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else 0.0
