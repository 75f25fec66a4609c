"""Load and check the plan of a profile: configuration, logs, limits of the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from qos_jax.checks import POSITIVE, SEED, Interval, check_range
from qos_jax.errors import input_error
from qos_jax.options import check_options, option
from qos_jax.profiling import (
    COEFFICIENTS,
    IterationLog,
    RequestLog,
    RooflineConfig,
    SearchConfig,
    ServerLimits,
    read_iterations,
    read_request_logs,
)
from qos_jax.profiling.choose_law import CHOICE_REPLAYS
from qos_jax.profiling.coefficients import check_fixed
from qos_jax.profiling.iteration_fit import check_iterations, iteration_subset
from qos_jax.profiling.limit_hints import limit_hints
from qos_jax.profiling.profile_files import check_new_expert, fleet_of_one
from qos_jax.profiling.request_fit import check_capacity, check_requests, num_replays
from qos_jax.profiling.roofline import roofline_kv_tokens
from qos_jax.runs.folder import settings_of
from qos_jax.serving import SCHEDULERS

SOURCES = ("iterations", "requests", "roofline")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Configuration of a profile: what it is fitted to, and the columns of its fleet row that are given.

    Raises:
      InputError: a value out of its range, naming the field, which is also the flag's name.
    """

    expert: str  # name of the expert in the fleet
    iterations: str | None = option(
        None,
        help="CSV file of iterations: batch, context_tokens, duration_s, and for prefill prefill_tokens with "
        "prefill_tokens_sq, or prompt_tokens (lengths separated by spaces)",
    )
    requests: tuple[str, ...] = option(
        (),
        help="all requests of one server: the file of a benchmark (vLLM, SGLang, AIPerf, GuideLLM, others: "
        "qos_jax/logs), or CSV or JSON lines of arrival_s, prompt_tokens, output_tokens, first_token_s or "
        "ttft_s, last_token_s or latency_s; several logs of the server are one fit",
        repeatable=True,
    )
    predict: tuple[str, ...] = option(
        (), help="another request log of the same server, which the fit predicts", repeatable=True
    )
    ttft_limit_s: float | None = None  # seconds: report the share of predicted requests within it
    tpot_limit_s: float | None = None  # seconds per token, likewise
    roofline: RooflineConfig | None = option(
        None, help="no measurement: a roofline of the model and GPU given", flat=True
    )
    column: tuple[str, ...] = option(
        (), help="OURS=THEIRS:unit: the log's own name of a column, in s, ms, us or ns", repeatable=True
    )
    fix: tuple[str, ...] = option(
        (),
        help=f"NAME=VALUE in seconds: a coefficient given, one of {', '.join(COEFFICIENTS)}",
        repeatable=True,
    )
    decode_law: str = option(
        "auto",
        known=("auto", "affine", "table"),
        help="how decode times depend on the batch; auto = a table by batch size where it predicts requests "
        "held out of the fit better than the affine law",
    )
    scheduler: str = option("chunked_prefill", known=SCHEDULERS)  # iteration scheduler of the logged server
    max_running: int = 256  # requests batched at once
    max_waiting: int = 256  # requests queued before rejection, for the fleet's row
    max_batched_tokens: int = 2048  # tokens of an iteration
    kv_capacity_tokens: int | None = option(
        None, help="tokens the KV cache holds; none = for a roofline, what --memory_gb leaves"
    )
    context_limit_tokens: int | None = option(
        None,
        help="most prompt + output tokens of a request (vLLM: max_model_len); none = no limit of its own",
    )
    network_rtt_s: float = 0.0  # for the fleet's row, seconds
    busy_power_w: float = 0.0  # for the fleet's row, watts
    idle_power_w: float = 0.0  # for the fleet's row, watts
    test_share: float = option(
        0.0,
        help="share kept out of a second fit that predicts it: the last requests, or iterations at random",
    )
    seed: int = 0  # of the starting points and of the choice of test iterations
    append_to: str | None = None  # fleet CSV that gets the row too

    def __post_init__(self) -> None:
        given = [name for name in SOURCES if getattr(self, name) not in (None, ())]
        if len(given) != 1:
            fault = f"{' and '.join(given)} are given" if given else "no source is given"
            remedy = "give one of --iterations=FILE, --requests=FILE and --roofline"
            raise input_error(fault, field=given[-1] if given else "iterations", remedy=remedy)
        check_options(self)
        check_range(self, ["test_share"], Interval(0, 1, below=True))
        check_range(self, ["seed"], SEED)
        limits = [name for name in ("ttft_limit_s", "tpot_limit_s") if getattr(self, name) is not None]
        check_range(self, limits, POSITIVE)
        if (self.predict or limits) and not self.requests:
            field = "predict" if self.predict else limits[0]
            remedy = "give --requests=FILE of the same server"
            raise input_error("there is no request log to fit", field=field, remedy=remedy)
        if self.decode_law == "table" and (not self.requests or self.fix):
            remedy = "give --requests=FILE without --fix, or leave --decode_law out"
            raise input_error("a table is fitted to request logs alone", field="decode_law", remedy=remedy)
        if limits and not self.predict:
            fault, remedy = "no log is predicted", "give --predict=FILE, or leave the limit out"
            raise input_error(fault, field=limits[0], remedy=remedy)
        if self.roofline is None:
            if self.kv_capacity_tokens is None:
                remedy = "give what the server logged at its start"
                raise input_error("is missing", field="kv_capacity_tokens", remedy=remedy)
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
    log: IterationLog | None  # where iterations are the source
    requests: tuple[RequestLog, ...]  # where request logs are
    predicted: tuple[RequestLog, ...]  # request logs that the fit predicts
    kv_capacity_tokens: int
    search: SearchConfig

    @property
    def limits(self) -> ServerLimits:
        """How the server batches."""
        c = self.config
        limits = (c.max_running, c.max_batched_tokens, self.kv_capacity_tokens, c.context_limit_tokens)
        return ServerLimits(c.scheduler, *limits)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on how the logs were read and what they show of the limits, for the user."""
        notes = [note for log in (*self.requests, *self.predicted) for note in log.notes]
        return (*dict.fromkeys(notes), *limit_hints(self.requests, self.limits))

    @property
    def replays(self) -> int:
        """How many replays of the logs the fits take at most; 0 without a request log."""
        fits = 2 if self.config.test_share else 1
        choice = CHOICE_REPLAYS if self.config.decode_law == "auto" else 0
        return (fits * num_replays(self.search) + choice) * len(self.requests)

    def fitted_rows(self, rows: int) -> np.ndarray:
        """Return which rows of a log the second fit sees: the first requests, or iterations at random.

        Args:
          rows: how many the log has, R.

        Returns:
          [R] bool.
        """
        order = np.arange(rows)
        if self.log is not None:
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
    row = profile_row(config, kv_capacity_tokens, dict.fromkeys(COEFFICIENTS, 1e-3) | fixed)
    fleet_of_one(config.expert, row)
    if config.append_to is not None:
        check_new_expert(config.append_to, config.expert)
    log = None if config.iterations is None else read_iterations(config.iterations, columns)
    logs = read_request_logs(
        (*config.requests, *config.predict), columns if config.iterations is None else {}
    )
    requests, predicted = logs[: len(config.requests)], logs[len(config.requests) :]
    files: dict[str, Any] = {"log": config.iterations or list(config.requests) or None}
    if config.predict:
        files["predicted"] = list(config.predict)
    plan = ProfilePlan(
        config=config,
        settings=settings_of("calibrate", config, files=files, kv_capacity_tokens=kv_capacity_tokens),
        fixed=fixed,
        log=log,
        requests=requests,
        predicted=predicted,
        kv_capacity_tokens=kv_capacity_tokens,
        search=dataclasses.replace(search or SearchConfig(), seed=config.seed),
    )
    if log is not None:
        check_iterations(log, fixed)
        if config.test_share:
            check_iterations(iteration_subset(log, plan.fitted_rows(len(log.duration_s))), fixed)
    elif plan.requests:
        for other in plan.predicted:
            check_capacity(other, plan.limits)
        rows = [plan.fitted_rows(each.num_requests) for each in plan.requests]
        check_requests(plan.requests, plan.limits, fixed, rows)
    return plan


def profile_row(
    config: ProfileConfig, kv_capacity_tokens: int, coefficients: Mapping[str, float]
) -> dict[str, Any]:
    """Return the columns of the fleet's row but the name, by name."""
    limits = ("max_running", "max_waiting", "max_batched_tokens")
    names = (*limits, "network_rtt_s", "busy_power_w", "idle_power_w")
    given = {name: getattr(config, name) for name in names}
    if config.context_limit_tokens is not None:
        given["context_limit_tokens"] = config.context_limit_tokens
    return {**given, "kv_capacity_tokens": kv_capacity_tokens, **coefficients}


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
