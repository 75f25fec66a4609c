"""Request tables as files: real answers and their predictions in one .npz, checked on the way in and out.

The arrays of a file of version 1, for M requests and N experts:

    version                  []      integer, 1
    experts                  [N]     text, unique names, the order of every N axis
    prompt_tokens            [M]     integer, tokens, >= 1
    quality                  [M, N]  in [0, 1], of the true answer
    output_tokens            [M, N]  integer, tokens of the true answer, >= 1
    predicted_quality        [M, N]  in [0, 1]
    predicted_output_tokens  [M, N]  tokens, > 0: the predictor's MEDIAN
    split                    [M]     optional; integer, 0 = train, 1 = validation, 2 = test
    length_log_std           [N]     optional; std of log(true) - log(predicted) output tokens, as a router is
                                     to know it; without it, measured over all rows of the file

``split`` is that of the *predictor*: it was fitted on ``train``, whose own predictions should be out-of-fold,
and never saw ``validation`` or ``test``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qos_jax.checks import SHARE, Interval, check_names
from qos_jax.errors import InputError, input_error, near_match
from qos_jax.files import Path, atomic_write, read_npz
from qos_jax.text_table import MAX_INT32, TOKENS
from qos_jax.workload.fleet import DROP_NAME
from qos_jax.workload.named_table import SPLITS, NamedTable
from qos_jax.workload.request_table import PREFIX_FIELDS, RequestTable, measure_length_log_std
from qos_jax.workload.requests import MIN_PREDICTED_TOKENS

VERSION = 1
MAX_LENGTH_LOG_STD = 10.0  # more is no log of tokens

# Per array: its axes and the numbers allowed.
_ARRAYS: dict[str, tuple[str, Interval]] = {
    "prompt_tokens": ("M", TOKENS),
    "output_tokens": ("MN", TOKENS),
    "split": ("M", Interval(0, len(SPLITS) - 1, whole=True)),
    "quality": ("MN", SHARE),
    "predicted_quality": ("MN", SHARE),
    "predicted_output_tokens": ("MN", Interval(MIN_PREDICTED_TOKENS, MAX_INT32)),
    "length_log_std": ("N", Interval(0, MAX_LENGTH_LOG_STD)),
}
_WRITE_ANEW = "write the table with qos_jax.workload.write_table"
# Rows are drawn one by one, so that none follows those whose prompt's beginning it shares.
_LEAVES = tuple(f.name for f in dataclasses.fields(RequestTable) if f.name not in PREFIX_FIELDS)
_OPTIONAL = ("split", "length_log_std")
_REQUIRED = ("experts", *_LEAVES)


def read_table(path: Path) -> NamedTable:
    """Read a request table from a file of the schema above.

    Raises:
      InputError: naming file, array, index (from 0) and remedy of the first fault found: no such file, no
        .npz, another version, an array missing, unknown or of the wrong kind or shape, a value that is not
        finite or out of range, a name empty or given twice.
    """
    return _checked(read_npz(path, remedy=_WRITE_ANEW), str(path))


def write_table(
    path: Path,
    names: Sequence[str],
    table: RequestTable,
    *,
    split: npt.ArrayLike | None = None,
    length_log_std: npt.ArrayLike | None = None,
) -> None:
    """Write a request table so that :func:`read_table` returns it again; whole or not at all.

    Args:
      path: the file, ``.npz`` by custom.
      names: N unique names of the table's experts, in its order.
      table: M rows.
      split: [M] index into ``SPLITS``, or None.
      length_log_std: [N], std of log(true) - log(predicted) output tokens; None = measured when read.

    Raises:
      InputError: as :func:`read_table` would; nothing is written.
    """
    arrays: dict[str, Any] = {"version": np.int32(VERSION), "experts": np.array(list(names), dtype=np.str_)}
    arrays |= {field: np.asarray(getattr(table, field)) for field in _LEAVES}
    given = {"split": split, "length_log_std": length_log_std}
    arrays |= {name: np.asarray(values) for name, values in given.items() if values is not None}
    _checked(arrays, str(path))
    with atomic_write(path, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def _checked(arrays: Mapping[str, np.ndarray], file: str) -> NamedTable:
    """Return the table that the arrays of a file are, or raise the error of the first fault."""

    def error(field: str, fault: str, remedy: str) -> InputError:
        return input_error(fault, file=file, field=field, remedy=remedy)

    for name in ("version", *_REQUIRED):
        if name not in arrays:
            remedy = f"{_WRITE_ANEW}: a file holds {', '.join(('version', *_REQUIRED))}"
            raise error(name, f"array is missing{near_match(name, arrays)}", remedy)
        if name == "version":
            version = arrays[name]
            if version.shape != () or version.dtype.kind not in "iu" or int(version) != VERSION:
                raise error(name, f"is {str(version)[:40]!r}, and only {VERSION} is known", _WRITE_ANEW)
    known = ("version", *_REQUIRED, *_OPTIONAL)
    for name in arrays:
        if name not in known:
            raise error(name, f"array is unknown{near_match(name, known)}", "rename or remove it")
    experts = arrays["experts"]
    if experts.ndim != 1 or experts.dtype.kind != "U" or not experts.size:
        fault = f"is {experts.dtype} of shape {experts.shape}"
        raise error("experts", fault, "give a list of names, as text")
    names = tuple(str(name) for name in experts)
    check_names("experts", names, file=file, reserved=DROP_NAME)
    sizes = {"M": max(arrays["prompt_tokens"].size, 1), "N": len(names)}
    read = {name: _checked_array(arrays[name], name, sizes, file) for name in _ARRAYS if name in arrays}
    footprint = read["prompt_tokens"].astype(np.int64)[:, None] + read["output_tokens"]
    if footprint.max() > MAX_INT32:
        row = int(footprint.max(axis=1).argmax())
        fault = f"prompt and output of row {row} are {footprint.max()} tokens"
        raise error("output_tokens", fault, f"keep their sum at most {MAX_INT32}")
    split, length_log_std = read.pop("split", None), read.pop("length_log_std", None)
    leaves: dict[str, Any] = read
    table = RequestTable(**leaves)
    if length_log_std is None:
        length_log_std = np.asarray(measure_length_log_std(table))
    return NamedTable(names, table, length_log_std, split, file)


def _checked_array(values: np.ndarray, field: str, sizes: Mapping[str, int], file: str) -> np.ndarray:
    """Return an array as int32 or float32 if its kind, shape and every value are right."""
    axes, allowed = _ARRAYS[field]
    shape = tuple(sizes[axis] for axis in axes)
    bad = ~((values >= allowed.low) & (values <= allowed.high)) if values.dtype.kind in "iuf" else None
    if values.shape != shape:
        fault = f"has shape {values.shape}, not {shape}"
        remedy = "give M requests, at least 1, as in prompt_tokens, and N experts, as in experts"
    elif values.dtype.kind not in ("iu" if allowed.whole else "iuf"):
        fault, remedy = f"is {values.dtype}", f"give {'integers' if allowed.whole else 'reals'}"
    elif bad is not None and bad.any():  # NaN too
        where = tuple(int(k) for k in np.unravel_index(int(np.argmax(bad)), bad.shape))
        fault = f"{values[where]} at {field}[{', '.join(map(str, where))}] is out of range"
        remedy = f"give {allowed}"
    else:
        return values.astype(np.int32 if allowed.whole else np.float32)
    raise input_error(fault, file=file, field=field, remedy=remedy)
