"""The answer log: prompts and each expert's answers, checked, of whatever format."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

MISSING_TOKENS = -1


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerLog:
    """M prompts and the answers of N experts.

    Attributes:
      prompts: M texts, none blank.
      prompt_tokens: [M] int32, tokens, >= 1.
      experts: N unique names, in order of first appearance.
      quality: [M, N] float32 in [0, 1], NaN = missing.
      output_tokens: [M, N] int32, tokens, >= 1; ``MISSING_TOKENS`` = missing.
      task: M names of what a prompt is an example of, or None.
      file: paths of all its files, for errors.
      files: M, the file of each row.
      line: [M] int32, line of each row in its file, or its index in a list, from 1.
      notes: remarks on how it was read, for the user, such as counts that are estimates.
    """

    prompts: tuple[str, ...]
    prompt_tokens: npt.NDArray[np.int32]
    experts: tuple[str, ...]
    quality: npt.NDArray[np.float32]
    output_tokens: npt.NDArray[np.int32]
    task: tuple[str, ...] | None
    file: str
    files: tuple[str, ...]
    line: npt.NDArray[np.int32]
    notes: tuple[str, ...] = ()

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
