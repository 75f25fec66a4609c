"""Read answer logs of routing benchmarks from downloaded files: RouterBench, LLMRouterBench and RouteLLM.

RouterBench (arXiv 2403.12031; withmartian/routerbench, its pickled table saved as CSV): a prompt a row, with
``prompt``, optionally ``eval_name`` (taken as the task), ``sample_id`` and ``oracle_model_to_route_to`` (not
used), and for each model the columns ``MODEL``, its score, ``MODEL|model_response`` and ``MODEL|total_cost``
(not used). Prompts and responses may be written as a list of turns, ``['...']``. It has no token counts: they
are counted from the texts.

LLMRouterBench (arXiv 2601.07206; its result files): one JSON object a file, the answers of one model to one
data set; give a file of each model, and they make one table. ``records`` is a list of objects with
``prompt``, ``score`` (null = missing), ``prompt_tokens`` and ``completion_tokens``. The model is
``model_name``, which older files lack: then it is the folder that the file lies in where that is laid out as
published, ``DATASET/SPLIT/MODEL/FILE``, else the file's name. ``dataset_name``, else that layout's, is the
task. Records with the same prompt are one row, the n-th of a prompt in one file with the n-th in another; the
row takes the median of the models' counts of its prompt tokens, rounded.

RouteLLM (arXiv 2406.18665; routellm/evals of its repository): a prompt a row of CSV, with ``prompt`` and for
each model the column ``MODEL``, True or False, and ``MODEL_response``. The task is the file's name, without
``_responses``. Files without responses, as those of MMLU, tell no output lengths and are refused.
"""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from qos_jax.tables.answers.log_builder import LogBuilder
from qos_jax.tables.answers.records import Record, read_records
from qos_jax.tables.answers.token_count import TokenCount

_RESPONSE, _COST, _ROUTELLM_RESPONSE = "|model_response", "|total_cost", "_response"
_ROUTERBENCH_ROW = ("prompt", "sample_id", "eval_name", "oracle_model_to_route_to")
_TRUTH = {"true": 1.0, "false": 0.0}
_RESULT_FILE = re.compile(r"(?:.*-)?\d{8}_\d{6}|result")  # stems that LLMRouterBench gives its files
_Seen = dict[tuple[str, int], int]  # rows of LLMRouterBench by prompt and which of that prompt it is


def is_routerbench(record: Record) -> bool:
    """Return whether a record is a row of RouterBench."""
    return any(name.endswith((_RESPONSE, _COST)) for name in record)


def is_llmrouterbench(record: Record) -> bool:
    """Return whether a record is a whole file of LLMRouterBench."""
    return isinstance(record.get("records"), list)


def is_routellm(record: Record) -> bool:
    """Return whether a record is a row of RouteLLM: a prompt beside columns of True and False."""
    scores = [value for name, value in record.items() if name != "prompt" and _is_truth(value)]
    return "prompt" in record and bool(scores)


def add_routerbench(builder: LogBuilder, path: str, count: TokenCount) -> None:
    """Add a RouterBench file's answers to a log; errors name file, row, field and remedy."""
    builder.file = path
    for row, record in read_records(path):
        models = [
            name for name in record if name not in _ROUTERBENCH_ROW and not name.endswith((_RESPONSE, _COST))
        ]
        _check_responses(builder, row, record, models, _RESPONSE)
        prompt = _turns(builder.text(row, "prompt", record.get("prompt")))
        index = builder.add_row(row, prompt, max(count(prompt), 1), record.get("eval_name"))
        for model in models:
            field = f"{model}{_RESPONSE}"
            text = record[field]
            length = None if text is None else count(_turns(builder.text(row, field, text)))
            builder.add_answer(index, row, model, record[model], length, (model, field))


def add_routellm(builder: LogBuilder, path: str, count: TokenCount) -> None:
    """Add a RouteLLM file's answers to a log; errors name file, row, field and remedy."""
    builder.file = path
    task = _stem(path).removesuffix("_responses")
    for row, record in read_records(path):
        models = [
            name
            for name in record
            if name != "prompt" and name.removesuffix(_ROUTELLM_RESPONSE) not in (set(record) - {name})
        ]
        _check_responses(builder, row, record, models, _ROUTELLM_RESPONSE)
        prompt = builder.text(row, "prompt", record.get("prompt"))
        index = builder.add_row(row, prompt, max(count(prompt), 1), task)
        for model in models:
            score, field = record[model], f"{model}{_ROUTELLM_RESPONSE}"
            if score is not None and not _is_truth(score):
                raise builder.error(row, model, f"{score!r} is no score", "write True or False")
            text = record[field]
            length = None if text is None else count(builder.text(row, field, text))
            quality = None if score is None else builder.of_share(_TRUTH[str(score).lower()])
            builder.add_answer(index, row, model, quality, length, (model, field))


def add_llmrouterbench(builder: LogBuilder, path: str, seen: _Seen) -> None:
    """Add an LLMRouterBench file's answers to a log; errors name file, record, field and remedy.

    Args:
      builder: of the log.
      path: the file.
      seen: the rows that earlier files made; those of this file are added.
    """
    builder.file = path
    for row, document in read_records(path):
        records = document.get("records")
        if not isinstance(records, list):
            raise builder.error(row, "records", "is no list", "give a result file of LLMRouterBench")
        model, task = _names(path, document)
        times: dict[str, int] = {}
        for number, record in enumerate(records, start=1):
            if not isinstance(record, Mapping):
                raise builder.error(
                    number, "records", "holds no object here", "give prompt, score and tokens"
                )
            for field in ("prompt", "score", "prompt_tokens", "completion_tokens"):
                if field not in record:
                    raise builder.error(number, f"records.{field}", "is missing", "give it in every record")
            prompt = builder.text(number, "records.prompt", record["prompt"])
            times[prompt] = times.get(prompt, 0) + 1
            key = prompt, times[prompt]
            if key in seen:
                builder.add_prompt_tokens(seen[key], number, record["prompt_tokens"])
            else:
                seen[key] = builder.add_row(number, prompt, record["prompt_tokens"], task)
            fields = "records.score", "records.completion_tokens"
            builder.add_answer(seen[key], number, model, record["score"], record["completion_tokens"], fields)


def _names(path: str, document: Record) -> tuple[Any, Any]:
    """Return model and task of an LLMRouterBench file."""
    model, task = document.get("model_name"), document.get("dataset_name")
    folders = pathlib.Path(path).resolve().parents
    if _RESULT_FILE.fullmatch(_stem(path)) and len(folders) > 2:
        return model or folders[0].name, task or folders[2].name
    return model or _stem(path), task


def _stem(path: str) -> str:
    """Return a file's name without its endings ``.csv``, ``.json``, ``.gz``."""
    name = pathlib.Path(path).name
    return name.removesuffix(".gz").rpartition(".")[0]


def _check_responses(builder: LogBuilder, row: int, record: Record, models: list[str], ending: str) -> None:
    """Refuse models without a column of responses: their output lengths are unknown."""
    for model in models:
        if f"{model}{ending}" not in record:
            fault = f"has no column {model + ending!r}, so its output lengths are unknown"
            remedy = f"add it, or write score.{model} and output_tokens.{model} with --format=generic"
            raise builder.error(row, model, fault, remedy)


def _turns(text: str) -> str:
    """Return the text of a list of turns written as Python does, ``['...']``; any other as it is."""
    if text.startswith("[") and text.endswith("]"):
        try:
            turns = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        if isinstance(turns, list) and all(isinstance(turn, str) for turn in turns):
            return "\n".join(turns)
    return text


def _is_truth(value: Any) -> bool:
    return str(value).lower() in _TRUTH
