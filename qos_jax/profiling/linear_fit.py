"""Non-negative least squares with some coefficients given: solution, covariance, identifiability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from qos_jax.errors import input_error
from qos_jax.profiling.coefficients import NEEDS
from qos_jax.profiling.price_law import COEFFICIENTS

Array = npt.NDArray[np.float64]

# Of a column's length, left unexplained by the other columns: below it, a coefficient is not identified.
MIN_OWN_SHARE = 1e-4


def free_columns(fixed: Mapping[str, float], names: Sequence[str] = COEFFICIENTS) -> list[int]:
    """Return the indices of the coefficients to fit."""
    return [at for at, name in enumerate(names) if name not in fixed]


def solve(
    design: Array, target: Array, fixed: Mapping[str, float], names: Sequence[str] = COEFFICIENTS
) -> Array:
    """Return theta >= 0 [C] that minimises ``|design @ theta - target|``, those of ``fixed`` as given.

    Args:
      design: [R, C] rows already weighted.
      target: [R] likewise.
      fixed: values by name.
      names: of the C coefficients.
    """
    theta = np.array([fixed.get(name, 0.0) for name in names])
    free = free_columns(fixed, names)
    columns = design[:, free]
    scale = np.linalg.norm(columns, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    # QR first: nnls then works on at most C rows, however long the log.
    q, r = np.linalg.qr(columns / scale)
    solution, _ = nnls(r, q.T @ (target - design @ theta))
    theta[free] = solution / scale
    return theta


def robust_covariance(
    design: Array,
    residuals: Array,
    group: npt.NDArray[np.int64],
    fixed: Mapping[str, float],
    names: Sequence[str] = COEFFICIENTS,
) -> Array:
    """Return the covariance of the free coefficients [C, C], 0 where fixed; robust to errors groups share.

    The sandwich ``(A'A)^-1 (sum over groups of A_g' r_g r_g' A_g) (A'A)^-1``, times G / (G - 1): it takes
    neither equal variances nor, within a group, independence for granted (Liang and Zeger, Biometrika
    1986). The bound at 0 is left out of account, which is on the safe side.

    Args:
      design: [R, C] rows already weighted, A.
      residuals: [R] likewise, r.
      group: [R] index of the group that a row belongs to, 0 to G - 1, G >= 2.
      fixed: values by name.
      names: of the C coefficients.
    """
    free = free_columns(fixed, names)
    columns = design[:, free]
    scale = np.linalg.norm(columns, axis=0)
    columns = columns / scale
    groups = int(group.max()) + 1
    scores = np.zeros((groups, len(free)))
    np.add.at(scores, group, columns * residuals[:, None])
    bread = np.linalg.pinv(columns.T @ columns)
    inner = bread @ scores.T @ scores @ bread * groups / (groups - 1) / np.outer(scale, scale)
    full = np.zeros((design.shape[1], design.shape[1]))
    full[np.ix_(free, free)] = inner
    return full


def check_identified(design: Array, fixed: Mapping[str, float], file: str, facts: Sequence[str] = ()) -> None:
    """Raise InputError, naming the coefficients, if these rows cannot identify some of them.

    A coefficient is identified if the part of its column that the other columns do not explain is at least
    ``MIN_OWN_SHARE`` of its length (the square root of 1 / its variance inflation factor).

    Args:
      design: [R, C] rows already weighted.
      fixed: values by name, whose columns do not count.
      file: the log, for the error.
      facts: what never varies in the log, such as "every decode iteration has batch 8", for the error.
    """
    free = free_columns(fixed)
    columns = design[:, free]
    length = np.linalg.norm(columns, axis=0)
    absent = [COEFFICIENTS[free[k]] for k in np.flatnonzero(length == 0)]
    confused = [] if absent else [COEFFICIENTS[free[k]] for k in unexplained(columns / length)]
    lost = absent or confused
    if not lost:
        return
    why = f" ({', '.join(facts)})" if facts else ""
    if absent:
        fault = f"no row depends on {_listed(lost)}{why}"
    else:
        fault = f"its rows cannot tell {_listed(lost)} apart{why}"
    needed = ", ".join(dict.fromkeys(NEEDS[name] for name in lost))
    raise input_error(
        fault, file=file, field=lost[-1], remedy=f"add {needed}, or give --fix={lost[-1]}=VALUE in seconds"
    )


def unexplained(columns: Array) -> list[int]:
    """Return the columns, of length 1, of which the others leave less than ``MIN_OWN_SHARE``."""
    lost = []
    for at in range(columns.shape[1]):
        others = np.delete(columns, at, axis=1)
        rest = columns[:, at] - others @ np.linalg.lstsq(others, columns[:, at], rcond=1e-10)[0]
        if np.linalg.norm(rest) < MIN_OWN_SHARE:
            lost.append(at)
    return lost


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
