"""Fit the six coefficients to an iteration log: non-negative, in relative error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qos_jax.errors import input_error
from qos_jax.profiling.coefficients import CoefficientFit
from qos_jax.profiling.goodness import Goodness, goodness
from qos_jax.profiling.iteration_log import IterationLog
from qos_jax.profiling.linear_fit import Array, check_identified, robust_covariance, solve
from qos_jax.profiling.price_law import AFFINE, DECODE, PREFILL

SPARE_ROWS = 2  # rows beyond the coefficients to fit, so that there is an error to speak of


@dataclasses.dataclass(frozen=True, eq=False)
class IterationFit:
    """Coefficients fitted to R iterations, and how well they fit them."""

    fit: CoefficientFit
    predicted_s: npt.NDArray[np.float64]  # [R] seconds
    quality: dict[str, Goodness]  # of "prefill" (mixed ones too) and "decode" iterations, where there are any


def iteration_design(log: IterationLog) -> Array:
    """Return the rows [R, C] whose product with the coefficients is each iteration's seconds."""
    return AFFINE.rows(log.batch, log.context_tokens, log.prefill_tokens, log.prefill_tokens_sq)


def fit_iterations(log: IterationLog, fixed: Mapping[str, float]) -> IterationFit:
    """Return the coefficients >= 0 that minimise the sum of squared relative errors, with standard errors.

    Args:
      log: R iterations.
      fixed: values of coefficients that are given, by name.

    Raises:
      InputError: too few rows, or rows that cannot identify a coefficient beside the others, naming it.
    """
    check_iterations(log, fixed)
    design = iteration_design(log) / log.duration_s[:, None]
    value = solve(design, np.ones(len(design)), fixed)
    covariance = robust_covariance(design, 1.0 - design @ value, np.arange(len(design)), fixed)
    predicted_s = iteration_design(log) @ value
    return IterationFit(
        fit=CoefficientFit(value, covariance, tuple(fixed)),
        predicted_s=predicted_s,
        quality=iteration_quality(log, predicted_s),
    )


def iteration_quality(log: IterationLog, predicted_s: npt.ArrayLike) -> dict[str, Goodness]:
    """Return the agreement of predicted seconds [R] with those of the log, by kind of iteration."""
    predicted = np.asarray(predicted_s)
    kinds = {"prefill": log.is_prefill, "decode": ~log.is_prefill}
    return {
        kind: goodness(predicted[rows], log.duration_s[rows]) for kind, rows in kinds.items() if rows.any()
    }


def iteration_subset(log: IterationLog, rows: npt.NDArray[np.bool_]) -> IterationLog:
    """Return the iterations where ``rows`` [R] is true."""
    arrays = {name: values[rows] for name, values in vars(log).items() if name != "file"}
    return IterationLog(**arrays, file=log.file)


def check_iterations(log: IterationLog, fixed: Mapping[str, float]) -> None:
    """Raise InputError as :func:`fit_iterations` does, without the fit."""
    for kind, names, rows in (("prefill", PREFILL, log.is_prefill), ("decode", DECODE, ~log.is_prefill)):
        free = [name for name in names if name not in fixed]
        if free and rows.sum() < len(free) + SPARE_ROWS:
            fault = f"{rows.sum()} {kind} iterations are too few for {', '.join(free)}"
            remedy = f"give at least {len(free) + SPARE_ROWS}, or --fix={free[0]}=VALUE and the others"
            raise input_error(fault, file=log.file, field=free[0], remedy=remedy)
    check_identified(iteration_design(log) / log.duration_s[:, None], fixed, log.file, _facts(log))


def _facts(log: IterationLog) -> list[str]:
    """Return what never varies in the log, in words."""
    decode, prefill = ~log.is_prefill, log.is_prefill
    facts = (
        (decode, log.batch, "every decode iteration has batch {}"),
        (decode, log.context_tokens, "every decode iteration has {} context tokens"),
        (prefill, log.prefill_tokens, "every prefill iteration has {} prompt tokens"),
    )
    return [
        text.format(values[rows][0])
        for rows, values, text in facts
        if rows.any() and np.ptp(values[rows]) == 0
    ]
