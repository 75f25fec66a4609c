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

from qos_jax.errors import input_error, near_match
from qos_jax.files import atomic_write, read_npz
from qos_jax.workload.fleet import DROP_NAME
from qos_jax.workload.named_table import SPLITS, NamedTable
from qos_jax.workload.request_table import RequestTable, measure_prediction_error
from qos_jax.workload.requests import MIN_PREDICTED_TOKENS
from qos_jax.workload.text_table import MAX_INT32, Path

VERSION = 1
MAX_LENGTH_LOG_STD = 10.0  # more is no log of tokens

# Per array: its axes, and the least and the greatest value allowed.
_INTEGERS: dict[str, tuple[str, float, float]] = {
    "prompt_tokens": ("M", 1, MAX_INT32),
    "output_tokens": ("MN", 1, MAX_INT32),
    "split": ("M", 0, len(SPLITS) - 1),
}
_REALS: dict[str, tuple[str, float, float]] = {
    "quality": ("MN", 0, 1),
    "predicted_quality": ("MN", 0, 1),
    "predicted_output_tokens": ("MN", MIN_PREDICTED_TOKENS, MAX_INT32),
    "length_log_std": ("N", 0, MAX_LENGTH_LOG_STD),
}
_LEAVES = tuple(field.name for field in dataclasses.fields(RequestTable))
_OPTIONAL = ("split", "length_log_std")
_REQUIRED = ("experts", *_LEAVES)


def read_table(path: Path) -> NamedTable:
    """Read a request table from a file of the schema above.

    Raises:
      InputError: naming file, array, place (from 0, as an index) and remedy of the first fault found: no such
        file, no .npz, another version, an array missing, unknown or of the wrong kind or shape, a value that
        is not finite or out of range, a name empty or given twice.
    """
    arrays = read_npz(path, remedy="write it with write_table")
    return _checked(arrays, str(path))


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
    _check_version(arrays, file)
    for name in _REQUIRED:
        if name not in arrays:
            raise input_error(
                f"array is missing{near_match(name, arrays)}",
                file=file,
                field=name,
                remedy=f"give {', '.join(('version', *_REQUIRED))}",
            )
    known = ("version", *_REQUIRED, *_OPTIONAL)
    for name in arrays:
        if name not in known:
            raise input_error(
                f"array is unknown{near_match(name, known)}",
                file=file,
                field=name,
                remedy="rename or remove it",
            )
    names = _checked_names(arrays["experts"], file)
    sizes = {"M": max(arrays["prompt_tokens"].size, 1), "N": len(names)}
    read = {
        name: _checked_array(arrays[name], name, sizes, file)
        for name in (*_INTEGERS, *_REALS)
        if name in arrays
    }
    footprint = read["prompt_tokens"].astype(np.int64)[:, None] + read["output_tokens"]
    if footprint.max() > MAX_INT32:
        raise input_error(
            f"prompt and output of row {int(footprint.max(axis=1).argmax())} are {footprint.max()} tokens",
            file=file,
            field="output_tokens",
            remedy=f"keep their sum at most {MAX_INT32}",
        )
    split, length_log_std = read.pop("split", None), read.pop("length_log_std", None)
    leaves: dict[str, Any] = read
    table = RequestTable(**leaves)
    if length_log_std is None:
        length_log_std = np.asarray(measure_prediction_error(table).length_log_std)
    return NamedTable(names, table, length_log_std, split, file)


def _check_version(arrays: Mapping[str, np.ndarray], file: str) -> None:
    if "version" not in arrays:
        raise input_error(
            "array is missing", file=file, field="version", remedy="write the table with write_table"
        )
    version = arrays["version"]
    if version.shape != () or version.dtype.kind not in "iu" or int(version) != VERSION:
        raise input_error(
            f"is {str(version)[:40]!r}, and only {VERSION} is known",
            file=file,
            field="version",
            remedy="write the table anew with this program's write_table",
        )


def _checked_names(experts: np.ndarray, file: str) -> tuple[str, ...]:
    if experts.ndim != 1 or experts.dtype.kind != "U" or not experts.size:
        raise input_error(
            f"is {experts.dtype} of shape {experts.shape}",
            file=file,
            field="experts",
            remedy="give a list of names, as text",
        )
    names = tuple(str(name) for name in experts)
    for place, name in enumerate(names):
        faults = {
            "is empty": not name.strip(),
            "is not printable": not name.isprintable(),
            "is reserved": name.casefold() == DROP_NAME,
            "appears twice": name in names[:place],
        }
        if any(faults.values()):
            raise input_error(
                f"name {name!r} at experts[{place}] {next(f for f, found in faults.items() if found)}",
                file=file,
                field="experts",
                remedy="give every expert a name of its own",
            )
    return names


def _checked_array(values: np.ndarray, field: str, sizes: Mapping[str, int], file: str) -> np.ndarray:
    """Return an array as int32 or float32 if its kind, shape and every value are right."""
    integral = field in _INTEGERS
    axes, low, high = (_INTEGERS if integral else _REALS)[field]
    shape = tuple(sizes[axis] for axis in axes)
    if values.shape != shape:
        raise input_error(
            f"has shape {values.shape}, not {shape}",
            file=file,
            field=field,
            remedy="give M requests, at least 1, as in prompt_tokens, and N experts, as in experts",
        )
    if values.dtype.kind not in ("iu" if integral else "iuf"):
        raise input_error(
            f"is {values.dtype}", file=file, field=field, remedy=f"give {'integers' if integral else 'reals'}"
        )
    bad = ~((values >= low) & (values <= high))  # NaN fails too
    if bad.any():
        where = np.unravel_index(int(np.argmax(bad)), bad.shape)
        place = f"{field}[{', '.join(str(int(k)) for k in where)}]"
        raise input_error(
            f"{values[where]} at {place} is out of range",
            file=file,
            field=field,
            remedy=f"give numbers in [{low:g}, {high:.10g}]",
        )
    return values.astype(np.int32 if integral else np.float32)
