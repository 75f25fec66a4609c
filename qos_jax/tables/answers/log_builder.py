"""Build an answer log from the records of any format, and refuse what is malformed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qos_jax.errors import InputError, input_error, near_match
from qos_jax.tables.answers.log import MISSING_TOKENS, AnswerLog
from qos_jax.text_table import MAX_INT32
from qos_jax.workload.fleet import DROP_NAME

MAX_TOKENS = MAX_INT32 // 2  # of a prompt or an answer, so that their sum is an int32 too


class LogBuilder:
    """Builds an :class:`AnswerLog` row by row and answer by answer, and refuses what is malformed.

    Args:
      file: of the rows that come next, for errors; may be set anew between files.
      score_range: what scores run from and to; they are rescaled to [0, 1].
    """

    def __init__(self, file: str, score_range: tuple[float, float] = (0.0, 1.0)) -> None:
        self.file = file
        self._low, self._high = score_range
        self._prompts: list[str] = []
        self._prompt_tokens: list[list[int]] = []  # by row, what each model that was asked says
        self._tasks: list[str | None] = []
        self._line: list[int] = []
        self._files: list[str] = []
        self._answers: list[dict[str, tuple[float, int]]] = []
        self._experts: dict[str, None] = {}
        self._empty_answers = 0

    def error(self, row: int, field: str | None, fault: str, remedy: str) -> InputError:
        """Return the error of a fault in the file at hand."""
        return input_error(fault, file=self.file, row=row, field=field, remedy=remedy)

    def add_row(self, row: int, prompt: Any, prompt_tokens: Any, task: Any) -> int:
        """Add a prompt.

        Args:
          row: line in the file, for errors.
          prompt: its text.
          prompt_tokens: its length, a number or the text of one.
          task: name of its task; None = not given.

        Returns:
          The index of the prompt.
        """
        text = self.text(row, "prompt", prompt)
        if not text.strip():
            raise self.error(row, "prompt", "is empty", "give the text of the prompt")
        if task is not None and not self.text(row, "task", task).strip():
            raise self.error(row, "task", "is empty", "name a task, or leave the field out")
        self._prompts.append(text)
        self._prompt_tokens.append([])
        self.add_prompt_tokens(len(self._prompts) - 1, row, prompt_tokens)
        self._tasks.append(task)
        self._line.append(row)
        self._files.append(self.file)
        self._answers.append({})
        return len(self._prompts) - 1

    def add_prompt_tokens(self, index: int, row: int, prompt_tokens: Any) -> None:
        """Add what another model counts a prompt as: a row takes the median over its models, rounded.

        Args:
          index: of the prompt, from :meth:`add_row`.
          row: line in the file, for errors.
          prompt_tokens: its length, a number or the text of one.
        """
        tokens = self.tokens(row, "prompt_tokens", prompt_tokens)
        if tokens < 1:
            raise self.error(row, "prompt_tokens", f"{prompt_tokens!r} is below 1", "give at least 1")
        self._prompt_tokens[index].append(tokens)

    def of_share(self, share: float) -> float:
        """Return the score that a quality in [0, 1] has in the score range."""
        return self._low + share * (self._high - self._low)

    def add_answer(
        self, index: int, row: int, expert: Any, score: Any, tokens: Any, fields: tuple[str, str]
    ) -> None:
        """Add an expert's answer to a prompt.

        Args:
          index: of the prompt, from :meth:`add_row`.
          row: line in the file, for errors.
          expert: its name.
          score: number within the score range; None = missing.
          tokens: length of the answer; None = missing; 0 counts as the one token that ends an answer.
          fields: names of the score and of the length, for errors.
        """
        name = self.text(row, "model", expert).strip()
        faults = {
            "is empty": not name,
            "is not printable": not name.isprintable(),
            "is reserved": name.casefold() == DROP_NAME,
            "answers this prompt twice": name in self._answers[index],
        }
        if any(faults.values()):
            fault = next(fault for fault, found in faults.items() if found)
            remedy = "name every model of a prompt once"
            raise self.error(row, "model", f"{name!r} {fault}", remedy)
        self._experts.setdefault(name)
        quality = np.nan if score is None else self._quality(row, fields[0], score)
        count = MISSING_TOKENS if tokens is None else self.tokens(row, fields[1], tokens)
        self._empty_answers += count == 0
        self._answers[index][name] = quality, 1 if count == 0 else count

    def text(self, row: int, field: str, value: Any) -> str:
        """Return a value that must be text."""
        if not isinstance(value, str):
            raise self.error(row, field, f"{_shown(value)} is not text", "write a string")
        return value

    def number(self, row: int, field: str, value: Any) -> float:
        """Return a value that must be a finite number, or the text of one."""
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise self.error(row, field, f"{_shown(value)} is not a number", "write a number") from None
        if not np.isfinite(number):
            remedy = "write a finite number, or leave the answer out if it is missing"
            raise self.error(row, field, f"{number} is not finite", remedy)
        return number

    def tokens(self, row: int, field: str, value: Any) -> int:
        """Return a value that must be a number of tokens, >= 0."""
        number = self.number(row, field, value)
        if number != round(number) or not 0 <= number <= MAX_TOKENS:
            remedy = f"write a whole number from 0 to {MAX_TOKENS}"
            raise self.error(row, field, f"{_shown(value)} is no number of tokens", remedy)
        return int(number)

    def build(self, notes: Sequence[str] = ()) -> AnswerLog:
        """Return the log.

        Raises:
          InputError: no prompt; an expert without a score or without a length anywhere; a task given for
            some prompts only.
        """
        experts = tuple(self._experts)
        if not self._prompts or not experts:
            what = "no prompt" if not self._prompts else "no answer"
            raise input_error(f"holds {what}", file=self.file, remedy="give prompts with answers")
        shape = len(self._prompts), len(experts)
        quality = np.full(shape, np.nan, np.float32)
        output_tokens = np.full(shape, MISSING_TOKENS, np.int32)
        column = {name: k for k, name in enumerate(experts)}
        for index, answers in enumerate(self._answers):
            for name, (score, tokens) in answers.items():
                quality[index, column[name]], output_tokens[index, column[name]] = score, tokens
        for name, k in column.items():
            for what, absent in (
                ("score", np.isnan(quality[:, k])),
                ("number of tokens", output_tokens[:, k] == MISSING_TOKENS),
            ):
                if absent.all():
                    fault = f"model {name!r} has no {what} in any row"
                    remedy = "give its answers, or leave the model out"
                    raise input_error(fault, file=self.file, remedy=remedy)
        return AnswerLog(
            prompts=tuple(self._prompts),
            prompt_tokens=np.array(
                [max(round(statistics.median(x)), 1) for x in self._prompt_tokens], np.int32
            ),
            experts=experts,
            quality=quality,
            output_tokens=output_tokens,
            task=self._checked_tasks(),
            file=self.file,
            files=tuple(self._files),
            line=np.array(self._line, np.int32),
            notes=(*notes, *self._own_notes()),
        )

    def _own_notes(self) -> list[str]:
        notes = []
        if self._empty_answers:
            notes.append(f"{self._empty_answers} answers of 0 tokens count as the one token that ends them")
        spread = [
            max(counts) / min(counts) - 1 for counts in self._prompt_tokens if max(counts) > min(counts)
        ]
        if spread:
            notes.append(
                f"prompt tokens differ by model in {len(spread)} of {len(self._prompts)} prompts, the most "
                f"over the fewest by {statistics.median(spread):.1%} in the median and {max(spread):.1%} at "
                "most: each prompt takes the median over its models"
            )
        return notes

    def _checked_tasks(self) -> tuple[str, ...] | None:
        given = [task for task in self._tasks if task is not None]
        if given and len(given) < len(self._tasks):
            at = self._tasks.index(None)
            self.file = self._files[at]
            fault = "is missing, and other rows have it"
            raise self.error(self._line[at], "task", fault, "give it in every row or in none")
        return tuple(given) or None

    def _quality(self, row: int, field: str, value: Any) -> float:
        number = self.number(row, field, value)
        if not self._low <= number <= self._high:
            fault = f"{number:g} is outside [{self._low:g}, {self._high:g}]"
            raise self.error(row, field, fault, "give --score_range=LOW,HIGH, what scores run from and to")
        return (number - self._low) / (self._high - self._low)


def one_of(record: Mapping[str, Any], names: Sequence[str], builder: LogBuilder, row: int) -> str | None:
    """Return which of the names a record has, None if none has a value; more than one is refused."""
    given = [name for name in names if record.get(name) is not None]
    if len(given) > 1:
        raise builder.error(row, given[1], f"is given beside {given[0]!r}", "keep one of the two")
    return given[0] if given else None


def check_fields(
    record: Mapping[str, Any], required: Sequence[str], optional: Sequence[str], builder: LogBuilder, row: int
) -> None:
    """Refuse a record without a required field or with an unknown one."""
    for name in required:
        if name not in record:
            near = near_match(name, record)
            raise builder.error(row, name, f"is missing{near}", f"give {', '.join(required)}")
    known = (*required, *optional)
    for name in record:
        if name not in known:
            near = near_match(name, known)
            raise builder.error(row, name, f"is unknown{near}", "rename or remove it")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
