"""Check all that a live router needs before anything is compiled or the port opens."""

from __future__ import annotations

import dataclasses
import importlib.util

import jax
import numpy as np

from qos_jax.errors import InputError, input_error, near_match
from qos_jax.live.config import RouterConfig, ServeConfig
from qos_jax.live.exported import LiveRouter, load_exported
from qos_jax.live.prompts import Expectations
from qos_jax.live.router import PlannedRouter, plan_router
from qos_jax.live.upstreams import Upstream, expected_answers, read_upstreams
from qos_jax.predictors.predictor import Predictor
from qos_jax.predictors.predictor_file import load_predictor
from qos_jax.workload.profiles import load_calibration
from qos_jax.workload.setting import open_fleet
from qos_jax.workload.synthetic import sample_table
from qos_jax.workload.synthetic_params import experts_named

_PACKAGES = ("aiohttp", "httptools", "prometheus_client", "starlette", "uvicorn")
_FIGURE_ROWS = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class LivePlan:
    """A live router that has passed every check."""

    config: ServeConfig
    router: PlannedRouter | LiveRouter
    upstreams: tuple[Upstream, ...]  # of N experts
    expectations: Expectations
    api_key: str | None  # that clients must give

    def compiled(self) -> LiveRouter:
        """Return the router with its decision compiled."""
        return self.router.compiled() if isinstance(self.router, PlannedRouter) else self.router


def plan_live(config: ServeConfig) -> LivePlan:
    """Read all files of a live router and check that they fit together.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found; a package that is missing.
    """
    check_packages()
    api_key = config.client_key()
    router: PlannedRouter | LiveRouter | None = None
    if config.exported is not None:
        router = load_exported(config.exported)
        experts = router.experts
    else:
        assert config.router.fleet is not None
        experts = open_fleet(config.router.fleet)[1].names
    upstreams = read_upstreams(config.upstreams, experts)
    if config.predictor is not None:
        predictor, order = predictor_for(config.predictor, experts)
        expectations, log_std = Expectations(None, None, predictor, order), predictor.length_log_std[order]
    else:
        quality, tokens = expected_answers(upstreams, config.upstreams, _figures(upstreams, experts))
        expectations = Expectations(quality, tokens)
        log_std = np.array([upstream.length_log_std for upstream in upstreams], np.float32)
    if router is None:
        router = plan_router(config.router, log_std)
    return LivePlan(config, router, upstreams, expectations, api_key)


def predictor_for(path: str, experts: tuple[str, ...]) -> tuple[Predictor, list[int]]:
    """Return the predictor of a file, and the index of each expert in it.

    Raises:
      InputError: any fault of the file, or it lacks one of the experts.
    """
    predictor = load_predictor(path)
    for expert in experts:
        if expert not in predictor.experts:
            fault = f"predicts nothing of {expert!r}{near_match(expert, predictor.experts)}"
            remedy = "name the fleet's experts as in the log that prepare_data was given"
            raise input_error(fault, file=path, field="experts", remedy=remedy)
    return predictor, [predictor.experts.index(expert) for expert in experts]


def plan_export(config: RouterConfig, predictor: str | None) -> PlannedRouter:
    """Check a router that is to be exported.

    Raises:
      InputError: naming file, field and remedy of the first fault found.
    """
    config.check_complete()
    assert config.fleet is not None
    if predictor is None:
        return plan_router(config)
    experts = open_fleet(config.fleet)[1].names
    found, order = predictor_for(predictor, experts)
    return plan_router(config, found.length_log_std[order])


def check_packages() -> None:
    """Check that what serving needs is installed.

    Raises:
      InputError: naming the first package that is missing.
    """
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            remedy = "run: pip install 'qos_jax[serve]'"
            raise input_error(f"the package {name} is not installed", field="serve", remedy=remedy)


def _figures(
    upstreams: tuple[Upstream, ...], experts: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return mean quality and median output tokens of calibrated models, None if one is unknown."""
    if not any(None in (upstream.quality, upstream.output_tokens) for upstream in upstreams):
        return None
    try:
        figures = experts_named(load_calibration(), experts)
    except InputError:
        return None
    table = sample_table(jax.random.key(0), figures, _FIGURE_ROWS)
    return np.mean(np.asarray(table.quality), axis=0), np.median(np.asarray(table.output_tokens), axis=0)
