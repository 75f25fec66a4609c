"""Read the generic answer log: prompts with scores and answers per model, as JSON Lines or CSV, wide or long.

Wide, a prompt a record, in JSON:

    {"prompt": TEXT, "prompt_tokens": INT, "task": NAME, "id": ANY,
     "answers": {MODEL: {"score": NUMBER, "output_tokens": INT}, MODEL: {"score": NUMBER, "text": TEXT}, ...}}

and in CSV the columns ``prompt``, ``prompt_tokens``, ``task``, ``id``, and for each model ``score.MODEL``
and either ``output_tokens.MODEL`` or ``text.MODEL``. Long, an answer a record, in JSON or CSV:

    prompt, model, score, output_tokens or text; prompt_tokens, task, id

Only ``prompt`` and the answers are required. A score lies in the score range ([0, 1] by
default); tokens that are not given are counted from the text. An answer or a field that is absent, null
or an empty cell is missing; the text "" is an answer of nothing, which takes the one token that ends it.
Records of the long form with the same prompt are one row; where its models count the prompt's tokens
differently, the row takes their median, rounded. ``id`` is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qos_jax.tables.answers.log_builder import LogBuilder, check_fields, one_of
from qos_jax.tables.answers.records import CSV, Record, read_records, record_kind
from qos_jax.tables.answers.token_count import TokenCount

_ROW = ("prompt_tokens", "task", "id")
_ANSWER = ("score", "output_tokens", "text")
_LENGTH = ("output_tokens", "text")
_Rows = dict[str, tuple[int, tuple[Any, Any]]]  # by prompt, of the long form: its index, tokens and task


def is_generic(record: Record) -> bool:
    """Return whether a record is of this format."""
    return "answers" in record or "model" in record or any(name.startswith("score.") for name in record)


def add_generic(builder: LogBuilder, path: str, count: TokenCount) -> bool:
    """Add a file's answers to a log; return whether any tokens were counted from a text.

    Raises:
      InputError: naming file, row, field and remedy of the first fault.
    """
    builder.file = path
    rows: _Rows = {}
    counted = False
    for row, record in read_records(path):
        if "model" in record:
            counted |= _add_long(builder, row, record, rows, count)
        else:
            wide = _gathered(builder, row, record) if record_kind(path) == CSV else record
            counted |= _add_wide(builder, row, wide, count)
    return counted


def _add_wide(builder: LogBuilder, row: int, record: Record, count: TokenCount) -> bool:
    check_fields(record, ("prompt", "answers"), _ROW, builder, row)
    answers = record["answers"]
    if not isinstance(answers, Mapping) or not answers:
        raise builder.error(row, "answers", "is no object of models", "write {MODEL: {score, ...}, ...}")
    index, counted = _add_row(builder, row, record, count)
    for model, answer in answers.items():
        if answer is None:
            continue
        if not isinstance(answer, Mapping):
            raise builder.error(row, f"answers.{model}", "is no object", f"give {', '.join(_ANSWER)}")
        counted |= _add_answer(builder, index, row, model, answer, f"answers.{model}.", count)
    return counted


def _add_long(builder: LogBuilder, row: int, record: Record, rows: _Rows, count: TokenCount) -> bool:
    check_fields(record, ("prompt", "model"), (*_ROW, *_ANSWER), builder, row)
    prompt, given = record["prompt"], (record.get("prompt_tokens"), record.get("task"))
    counted = False
    if isinstance(prompt, str) and prompt in rows:
        index, before = rows[prompt]
        if given[1] != before[1] or (given[0] is None) != (before[0] is None):
            field = "task" if given[1] != before[1] else "prompt_tokens"
            raise builder.error(
                row, field, "differs from that of the same prompt above", "give it alike in all rows"
            )
        if given[0] is not None:
            builder.add_prompt_tokens(index, row, given[0])
    else:
        index, counted = _add_row(builder, row, record, count)
        rows[prompt] = index, given
    answer = {name: record.get(name) for name in _ANSWER}
    return _add_answer(builder, index, row, record["model"], answer, "", count) or counted


def _add_row(builder: LogBuilder, row: int, record: Record, count: TokenCount) -> tuple[int, bool]:
    tokens = record.get("prompt_tokens")
    counted = tokens is None
    if counted:
        tokens = max(count(builder.text(row, "prompt", record["prompt"])), 1)
    return builder.add_row(row, record["prompt"], tokens, record.get("task")), counted


def _add_answer(
    builder: LogBuilder,
    index: int,
    row: int,
    model: Any,
    answer: Mapping[str, Any],
    prefix: str,
    count: TokenCount,
) -> bool:
    for name in answer:
        if name not in _ANSWER:
            raise builder.error(row, prefix + name, "is unknown", f"give {', '.join(_ANSWER)}")
    length = one_of(answer, _LENGTH, builder, row)
    counted = length == "text"
    tokens = None if length is None else answer[length]
    if counted:
        tokens = count(builder.text(row, f"{prefix}text", tokens))
    fields = f"{prefix}score", f"{prefix}output_tokens"
    builder.add_answer(index, row, model, answer.get("score"), tokens, fields)
    return counted


def _gathered(builder: LogBuilder, row: int, record: Record) -> Record:
    """Return a wide CSV record in the form of the JSON one."""
    gathered: dict[str, Any] = {}
    answers: dict[str, dict[str, Any]] = {}
    for name, value in record.items():
        field, dot, model = name.partition(".")
        if dot and field in _ANSWER:
            if model != model.strip() or not model:
                raise builder.error(row, name, "names no model", "write e.g. score.MODEL")
            answers.setdefault(model, {})[field] = value
        else:
            gathered[name] = value
    return {**gathered, "answers": answers} if answers else gathered
