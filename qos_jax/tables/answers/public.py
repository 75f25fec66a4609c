"""Read answer logs of public data sets from downloaded files: SPROUT (CARROT) and MixInstruct.

What is assumed of SPROUT (arXiv 2502.03261; CARROT-LLM-Routing/SPROUT): a record a prompt, with the text
``prompt``, ``dataset`` (taken as the task), optionally ``key``, ``dataset_level``, ``dataset_idx`` and
``golden_answer`` (not used), and a field for each model, an object with ``score`` in [0, 1],
``num_input_tokens`` and ``num_output_tokens``; what else it holds (the response, the judge's) is not read.
Prompt tokens differ by model there, as each has its own tokenizer and template: a row takes their median,
rounded.

Of MixInstruct (LLM-Blender, arXiv 2306.02561; llm-blender/mix-instruct): a record a prompt, with the texts
``instruction`` and ``input`` (the prompt is the two, a line break between them, either may be empty), and
``candidates``, a list of objects with ``model``, ``text`` and ``scores``, an object of numbers by name, of
which ``bertscore`` is the quality unless another is named. What else it holds is not read. It has no token
counts: they are counted from the texts. The task is the part of ``id`` before its first ``/``, "other"
where it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qos_jax.errors import near_match
from qos_jax.tables.answers.log_builder import LogBuilder, check_fields
from qos_jax.tables.answers.records import Record, read_records
from qos_jax.tables.answers.token_count import TokenCount

BERTSCORE = "bertscore"

_SPROUT_ROW = ("key", "dataset", "dataset_level", "dataset_idx", "golden_answer")
_SPROUT_TOKENS = ("num_input_tokens", "num_output_tokens")


def is_mixinstruct(record: Record) -> bool:
    """Return whether a record is one of MixInstruct."""
    return "candidates" in record


def is_sprout(record: Record) -> bool:
    """Return whether a record is one of SPROUT."""
    return any(
        isinstance(value, Mapping) and any(name in value for name in _SPROUT_TOKENS)
        for value in record.values()
    )


def add_sprout(builder: LogBuilder, path: str) -> None:
    """Add a SPROUT file's answers to a log; errors name file, row, field and remedy."""
    builder.file = path
    for row, record in read_records(path):
        models = [name for name in record if name not in ("prompt", *_SPROUT_ROW)]
        check_fields(record, ("prompt",), (*_SPROUT_ROW, *models), builder, row)
        answers = {name: record[name] for name in models if record[name] is not None}
        for name, answer in answers.items():
            if not isinstance(answer, Mapping):
                raise builder.error(
                    row, name, "is no object of a model", f"give score, {', '.join(_SPROUT_TOKENS)}"
                )
        prompt_tokens = [
            builder.tokens(row, f"{name}.num_input_tokens", answer["num_input_tokens"])
            for name, answer in answers.items()
            if answer.get("num_input_tokens") is not None
        ]
        if not prompt_tokens:
            remedy = "give the num_input_tokens of a model"
            raise builder.error(row, "num_input_tokens", "is missing for every model", remedy)
        first, *others = (max(tokens, 1) for tokens in prompt_tokens)
        index = builder.add_row(row, record["prompt"], first, record.get("dataset"))
        for tokens in others:
            builder.add_prompt_tokens(index, row, tokens)
        for name, answer in answers.items():
            fields = f"{name}.score", f"{name}.num_output_tokens"
            score, length = answer.get("score"), answer.get("num_output_tokens")
            builder.add_answer(index, row, name, score, length, fields)


def add_mixinstruct(builder: LogBuilder, path: str, count: TokenCount, score_name: str) -> None:
    """Add a MixInstruct file's answers to a log; errors name file, row, field and remedy."""
    builder.file = path
    for row, record in read_records(path):
        for field in ("instruction", "input", "candidates"):
            if field not in record:
                near = near_match(field, record)
                raise builder.error(row, field, f"is missing{near}", "give the fields of MixInstruct")
        texts = [builder.text(row, field, record[field]) for field in ("instruction", "input")]
        prompt = "\n".join(text for text in texts if text.strip())
        index = builder.add_row(row, prompt, max(count(prompt), 1), _source(record.get("id")))
        candidates = record["candidates"]
        if not isinstance(candidates, list):
            raise builder.error(row, "candidates", "is no list", "give one object per model")
        for k, candidate in enumerate(candidates):
            field = f"candidates[{k}]"
            if not isinstance(candidate, Mapping) or not isinstance(candidate.get("scores"), Mapping):
                raise builder.error(row, field, "is no object with scores", "give model, text and scores")
            scores, text = candidate["scores"], candidate.get("text")
            if score_name not in scores:
                fault = f"is missing{near_match(score_name, scores)}"
                remedy = "choose another score with --score_name"
                raise builder.error(row, f"{field}.scores.{score_name}", fault, remedy)
            length = None if text is None else count(builder.text(row, f"{field}.text", text))
            fields = f"{field}.scores.{score_name}", f"{field}.text"
            builder.add_answer(index, row, candidate.get("model"), scores[score_name], length, fields)


def _source(identifier: Any) -> str | None:
    """Return the name of the data set that an identifier such as ``unified_chip2/69962`` begins with."""
    if identifier is None:
        return None
    source, slash, _ = str(identifier).partition("/")
    return source if slash and source.strip() else "other"
