"""The iteration-time coefficients of an expert: fitted values, errors and confidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from qos_jax.errors import input_error, near_match
from qos_jax.profiling.price_law import AFFINE, COEFFICIENTS, PriceLaw

_WITHIN = 0.975  # quantile of the errors' distribution at either end of a 95% interval
WEAK_SHARE = 0.15  # of its value: a standard error above it makes a coefficient weakly identified

# What a log needs for a coefficient to be identified beside the others.
NEEDS = {
    "prefill_base_s": "shorter prompts",
    "prefill_per_token_s": "prompts of other lengths",
    "prefill_per_token_sq_s": "at least three different prompt lengths",
    "decode_base_s": "decoding at other batch sizes",
    "decode_per_seq_s": "decoding at other batch sizes",
    "decode_per_context_token_s": "decoding at other context lengths with the same batch size",
}


@dataclasses.dataclass(frozen=True, eq=False)
class CoefficientFit:
    """Values of the coefficients of a law and their covariance, in its order."""

    value: npt.NDArray[np.float64]  # [C] float64, seconds per unit, >= 0
    covariance: npt.NDArray[np.float64]  # [C, C] float64, 0 where fixed, NaN where unknown (a roofline)
    fixed: tuple[str, ...] = ()  # names that were given, not fitted
    law: PriceLaw = AFFINE
    converged: bool = True  # whether the search found the minimum; if not, nothing fitted is identified
    # Of Student's t, by which errors known from few groups of requests are spread: the groups less 1 (Cameron
    # and Miller, Journal of Human Resources 2015).
    degrees: float = np.inf

    @property
    def standard_error(self) -> npt.NDArray[np.float64]:
        """[C] float64, seconds per unit."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def low(self) -> npt.NDArray[np.float64]:
        """[C] float64, lower end of the 95% interval, at least 0."""
        return np.maximum(self.value - self._reach, 0.0)

    @property
    def high(self) -> npt.NDArray[np.float64]:
        """[C] float64, upper end of the 95% interval."""
        return self.value + self._reach

    @property
    def _reach(self) -> npt.NDArray[np.float64]:
        return self.standard_error * float(stats.t.ppf(_WITHIN, self.degrees))

    def as_dict(self) -> dict[str, float]:
        """Return the values by name."""
        return dict(zip(self.law.names, self.value.tolist(), strict=True))

    def confidence(self, name: str) -> str:
        """Return what is known of a coefficient, in a word or two.

        ``"fixed"``: given. ``"assumed"``: nothing was measured. ``"not converged"``: the search did not find
        the minimum. ``"at zero"``: the bound holds it. ``"weak"``: the standard error is above ``WEAK_SHARE``
        of the value. Else ``"identified"``.
        """
        at = self.law.names.index(name)
        if name in self.fixed:
            return "fixed"
        if np.isnan(self.standard_error[at]):
            return "assumed"
        if not self.converged:
            return "not converged"
        if self.value[at] <= 0:
            return "at zero"
        return "identified" if self.standard_error[at] <= WEAK_SHARE * self.value[at] else "weak"


def check_fixed(fixed: Mapping[str, float]) -> None:
    """Raise InputError unless ``fixed`` gives known coefficients values that are finite and >= 0."""
    for name, value in fixed.items():
        if name not in COEFFICIENTS:
            fault = f"no coefficient {name!r}{near_match(name, COEFFICIENTS)}"
            raise input_error(fault, field="fix", remedy=f"use some of {', '.join(COEFFICIENTS)}")
        if not (np.isfinite(value) and value >= 0):
            raise input_error(
                f"{name} = {value} is not a finite number >= 0", field="fix", remedy="give seconds, such as 0"
            )


def typical_iterations(
    fit: CoefficientFit, batch: float, context: float, prompt: float
) -> list[dict[str, Any]]:
    """Return seconds and standard error of a typical prefill and decode iteration, sums of coefficients.

    Args:
      fit: the coefficients.
      batch: requests of the decode iteration.
      context: sum of their contexts, tokens.
      prompt: tokens of the one prompt of the prefill iteration.
    """
    prefill = fit.law.rows(0, 0, prompt, prompt**2)
    decode = fit.law.rows(batch, context, 0, 0)
    kinds = (
        ("prefill", prefill, {"prompt_tokens": prompt}),
        ("decode", decode, {"batch": batch, "context_tokens": context}),
    )
    return [
        {
            "iteration": kind,
            **about,
            "duration_s": float(fit.value @ row),
            "standard_error_s": float(np.sqrt(row @ fit.covariance @ row)),
        }
        for kind, row, about in kinds
    ]
