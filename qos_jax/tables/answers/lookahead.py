"""Read an answer log in the layout of lookahead6: ``prompts.jsonl.gz`` beside ``scores_lengths.npz``.

``scores_lengths.npz`` holds, for M prompts and N models, ``models`` [N] text, ``score`` [M, N] (NaN =
missing), ``out_tokens`` [M, N] integer (-1 = missing), ``prompt_tokens`` [M] integer and ``dataset`` [M]
text, the task. The M lines of ``prompts.jsonl.gz`` are objects with ``prompt``, in the same order; ``row``,
where given, is checked.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from qos_jax.errors import InputError, input_error
from qos_jax.files import read_npz
from qos_jax.tables.answers.log import MISSING_TOKENS
from qos_jax.tables.answers.log_builder import LogBuilder
from qos_jax.tables.answers.records import read_records

ARRAYS, PROMPTS = "scores_lengths.npz", "prompts.jsonl.gz"

_AXES = {"models": "N", "score": "MN", "out_tokens": "MN", "prompt_tokens": "M", "dataset": "M"}
_KINDS = {"models": "U", "score": "iuf", "out_tokens": "iu", "prompt_tokens": "iu", "dataset": "U"}


def is_lookahead(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder of this layout."""
    return (pathlib.Path(path) / ARRAYS).is_file()


def add_lookahead(builder: LogBuilder, folder: str) -> None:
    """Add a folder's answers to a log.

    Raises:
      InputError: naming file, line or array, and remedy of the first fault.
    """
    prompts_file = os.path.join(folder, PROMPTS)
    arrays = read_arrays(folder)
    prompts: list[tuple[int, Any]] = []
    for line, record in read_records(prompts_file):
        if "prompt" not in record:
            raise input_error(
                "is missing", file=prompts_file, row=line, field="prompt", remedy="give the text"
            )
        if record.get("row", len(prompts)) != len(prompts):
            fault = f"{record['row']!r} is not the row's index, {len(prompts)}"
            remedy = "give the prompts in the order of the arrays"
            raise input_error(fault, file=prompts_file, row=line, field="row", remedy=remedy)
        prompts.append((line, record["prompt"]))
    if len(prompts) != len(arrays["prompt_tokens"]):
        fault = f"holds {len(prompts)} prompts, and {ARRAYS} {len(arrays['prompt_tokens'])}"
        raise input_error(fault, file=prompts_file, remedy="give both files of one table")
    builder.file = prompts_file
    models = [str(name) for name in arrays["models"]]
    score, out_tokens = arrays["score"].astype(np.float64), arrays["out_tokens"]
    for k, (line, prompt) in enumerate(prompts):
        index = builder.add_row(line, prompt, int(arrays["prompt_tokens"][k]), str(arrays["dataset"][k]))
        for n, model in enumerate(models):
            quality = None if np.isnan(score[k, n]) else float(score[k, n])
            tokens = None if out_tokens[k, n] == MISSING_TOKENS else int(out_tokens[k, n])
            fields = f"score[{k}, {n}] of {ARRAYS}", f"out_tokens[{k}, {n}] of {ARRAYS}"
            builder.add_answer(index, line, model, quality, tokens, fields)


def read_arrays(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of ``scores_lengths.npz`` in a folder, by name, of the shapes above.

    Raises:
      InputError: the file is missing or unreadable, or lacks an array of the right shape and kind.
    """
    path = pathlib.Path(folder) / ARRAYS
    remedy = f"give a folder with {ARRAYS} of {', '.join(_AXES)}"

    def error(name: str, fault: str) -> InputError:
        return input_error(fault, file=path, field=name, remedy=remedy)

    content = read_npz(path, remedy=remedy)
    missing = next((name for name in _AXES if name not in content), None)
    if missing is not None:
        raise error(missing, "array is missing")
    arrays = {name: content[name] for name in _AXES}
    sizes = {"M": arrays["prompt_tokens"].size, "N": arrays["models"].size}
    for name, axes in _AXES.items():
        shape = tuple(sizes[axis] for axis in axes)
        if arrays[name].shape != shape or arrays[name].dtype.kind not in _KINDS[name]:
            raise error(name, f"is {arrays[name].dtype} of shape {arrays[name].shape}, not of shape {shape}")
    return arrays
