"""Check the answers that predictors are fitted to: prompts, quality and output tokens of each expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from qos_jax.checks import check_names
from qos_jax.errors import input_error
from qos_jax.predictors.config import PredictorConfig

MIN_PROMPTS = 10  # different ones


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What N experts answered to M prompts."""

    quality: np.ndarray  # [M, N] float64, in [0, 1]; NaN = missing
    output_tokens: np.ndarray  # [M, N] int64, >= 1; -1 = missing

    def take(self, rows: np.ndarray) -> Answers:
        """Return some rows."""
        return Answers(self.quality[rows], self.output_tokens[rows])


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise InputError unless this is a list of one or more texts."""
    if isinstance(prompts, str) or not len(prompts):
        raise input_error("is no list of prompts", field="prompts", remedy="give a list of at least one text")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise input_error(
                f"prompts[{row}] is a {type(prompt).__name__}", field="prompts", remedy="give text"
            )


def check_answers(
    config: PredictorConfig,
    prompts: Sequence[str],
    quality: np.ndarray,
    output_tokens: np.ndarray,
    experts: Sequence[str],
) -> Answers:
    """Check the answers that N experts gave to M prompts.

    Args:
      config: for the longest answer that has a length bucket.
      prompts: [M] texts.
      quality: [M, N] in [0, 1]; NaN = missing.
      output_tokens: [M, N] whole numbers from 1; -1 = missing.
      experts: N names.

    Returns:
      The answers, float64 and int64.

    Raises:
      InputError: naming field, index and remedy of the first fault: prompts that are no texts or too few
        different ones, another shape or kind, a value out of range.
    """
    check_names("experts", experts)
    check_prompts(prompts)
    shape = (len(prompts), len(experts))
    reals, whole = np.asarray(quality), np.asarray(output_tokens)
    for field, values, kinds in (("quality", reals, "fiub"), ("output_tokens", whole, "iu")):
        if values.shape != shape:
            fault = f"has shape {values.shape}, not {shape}"
            raise input_error(fault, field=field, remedy="give a row per prompt and a column per expert")
        if values.dtype.kind not in kinds:
            remedy = "give whole numbers, -1 = missing" if field == "output_tokens" else "give numbers"
            raise input_error(f"is {values.dtype}", field=field, remedy=remedy)
    reals = reals.astype(np.float64)
    fine = np.isnan(reals) | ((reals >= 0) & (reals <= 1))
    _check_values("quality", reals, fine, "a number in [0, 1]", "NaN")
    limit = config.max_output_tokens
    rule = f"a whole number in [1, {limit}] (PredictorConfig.max_output_tokens)"
    _check_values("output_tokens", whole, (whole == -1) | ((whole >= 1) & (whole <= limit)), rule, "-1")
    different = len(set(groups_of(prompts).tolist()))
    if different < MIN_PROMPTS:
        raise input_error(
            f"only {different} different prompts", field="prompts", remedy=f"give at least {MIN_PROMPTS}"
        )
    return Answers(reals, whole.astype(np.int64))


def groups_of(prompts: Sequence[str]) -> np.ndarray:
    """Return the group of each of M texts, [M] int: equal for texts equal but for case and white space."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(" ".join(text.split()).casefold(), len(seen)) for text in prompts])


def _check_values(field: str, values: np.ndarray, fine: np.ndarray, rule: str, missing: str) -> None:
    if not fine.all():
        row, expert = (int(k) for k in np.unravel_index(int(np.argmin(fine)), fine.shape))
        fault = f"{values[row, expert]} at {field}[{row}, {expert}]"
        raise input_error(fault, field=field, remedy=f"give {rule}, or {missing} where it is missing")
