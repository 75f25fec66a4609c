"""The answer log: prompts and each expert's answers, checked, of whatever format."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

MISSING_TOKENS = -1


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerLog:
    """M prompts and the answers of N experts."""

    prompts: tuple[str, ...]  # M texts, none blank
    prompt_tokens: npt.NDArray[np.int32]  # [M] int32, tokens, >= 1
    experts: tuple[str, ...]  # N unique names, in order of first appearance
    quality: npt.NDArray[np.float32]  # [M, N] float32 in [0, 1], NaN = missing
    output_tokens: npt.NDArray[np.int32]  # [M, N] int32, tokens, >= 1; ``MISSING_TOKENS`` = missing
    task: tuple[str, ...] | None  # M names of what a prompt is an example of, or None
    file: str  # paths of all its files, for errors
    files: tuple[str, ...]  # M, the file of each row
    line: npt.NDArray[np.int32]  # [M] int32, line of each row in its file, or its index in a list, from 1
    notes: tuple[str, ...] = ()  # remarks on how it was read, for the user, such as counts that are estimates

    @property
    def num_rows(self) -> int:
        """Number of prompts M."""
        return len(self.prompts)

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """[M, N] whether an answer has no score or no length."""
        return np.isnan(self.quality) | (self.output_tokens == MISSING_TOKENS)


def take_rows(log: AnswerLog, rows: npt.ArrayLike) -> AnswerLog:
    """Return the rows of a mask or of indices, in that order."""
    at = np.arange(log.num_rows)[np.asarray(rows)]
    return dataclasses.replace(
        log,
        prompts=tuple(log.prompts[k] for k in at),
        prompt_tokens=log.prompt_tokens[at],
        quality=log.quality[at],
        output_tokens=log.output_tokens[at],
        task=None if log.task is None else tuple(log.task[k] for k in at),
        files=tuple(log.files[k] for k in at),
        line=log.line[at],
    )
