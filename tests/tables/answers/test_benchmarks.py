"""Answer logs of routing benchmarks, on files in the shape that each is published in."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qos_jax.tables.answers.log import AnswerLog
from qos_jax.tables.answers.read import LogConfig, read_answers
from qos_jax.tables.answers.token_count import APPROXIMATION, approximate_tokens

ROUTERBENCH = [
    [
        "sample_id",
        "prompt",
        "eval_name",
        *("gpt-4", "org/Yi-34B", "gpt-4|model_response", "org/Yi-34B|model_response"),
        *("gpt-4|total_cost", "org/Yi-34B|total_cost", "oracle_model_to_route_to"),
    ],
    [
        "m.0",
        "['Answer by a letter, it\\'s easy.']",
        "mmlu",
        1.0,
        0.25,
        "['A']",
        "['B, I think']",
        2e-4,
        1e-5,
        "gpt-4",
    ],
    ["t.1", "['One.', 'Two.']", "mtbench", 0.5, 0.75, "['a', 'b c']", "plain text", 2e-4, 1e-5, "org/Yi-34B"],
    ["m.2", "[1, 2] is a list", "mmlu", 0.0, "", "", "['D']", 2e-4, "", "no_model_correct"],
]
ROUTELLM = [
    ["prompt", "mixtral", "gpt-4", "mixtral_response", "gpt-4_response"],
    ["How many eggs?\nCount them.", "False", "True", " Ten, I say.", "Nine."],
    ["How many bolts?", "True", "True", "Three.", "It is three."],
]


def _read(*paths: Path, **config: Any) -> AnswerLog:
    return read_answers(LogConfig(log=tuple(map(str, paths)), **config))[0]


def _csv(path: Path, rows: list[list[Any]]) -> Path:
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def _gzipped(path: Path) -> Path:
    zipped = path.with_name(f"{path.name}.gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    return zipped


def _tokens(*texts: str) -> list[int]:
    return [approximate_tokens(text) for text in texts]


def _llmrouterbench(tokens: list[tuple[int, int]], scores: list[float | None], **fields: Any) -> str:
    """A result file of one model: (prompt tokens, completion tokens) and score of each record."""
    prompts = ["Sum of 2 and 2?", "Sum of 3 and 3?", "Sum of 2 and 2?"][: len(tokens)]
    records = [
        {
            "index": k,
            "origin_query": prompt,
            "prompt": f"Question: {prompt}\nAnswer:",
            "prediction": "4",
            "ground_truth": "4",
            "score": score,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost": 1e-4,
            "raw_output": ["It is 4."],
        }
        for k, (prompt, score, (prompt_tokens, completion_tokens)) in enumerate(
            zip(prompts, scores, tokens, strict=True), start=1
        )
    ]
    totals = {"performance": 0.5, "time_taken": 12.0, "counts": len(records), "demo": False}
    return json.dumps(totals | fields | {"records": records}, indent=2)


def test_routerbench(tmp_path: Path):
    path = _csv(tmp_path / "routerbench_0shot.csv", ROUTERBENCH)
    for log in (_read(path), _read(_gzipped(path))):
        assert log.prompts == ("Answer by a letter, it's easy.", "One.\nTwo.", "[1, 2] is a list")
        assert log.experts == ("gpt-4", "org/Yi-34B")
        assert log.task == ("mmlu", "mtbench", "mmlu")
        np.testing.assert_array_equal(log.quality, np.float32([[1, 0.25], [0.5, 0.75], [0, np.nan]]))
        np.testing.assert_array_equal(log.prompt_tokens, _tokens(*log.prompts))
        lengths = [_tokens("A", "B, I think"), _tokens("a\nb c", "plain text"), [-1, *_tokens("D")]]
        np.testing.assert_array_equal(log.output_tokens, lengths)
        assert log.notes == (APPROXIMATION,)


def test_the_index_that_pandas_writes_is_left_out(tmp_path: Path):
    plain = _read(_csv(tmp_path / "plain.csv", ROUTERBENCH))
    numbered = [["", *ROUTERBENCH[0]], *([k, *row] for k, row in enumerate(ROUTERBENCH[1:]))]
    log = _read(_csv(tmp_path / "numbered.csv", numbered))
    assert (log.prompts, log.experts, log.task) == (plain.prompts, plain.experts, plain.task)
    np.testing.assert_array_equal(log.output_tokens, plain.output_tokens)


def test_routellm(tmp_path: Path):
    path = _csv(tmp_path / "gsm8k_responses.csv", ROUTELLM)
    other = _csv(tmp_path / "mmlu_anatomy.csv", [ROUTELLM[0], ["A or B?", "True", "False", "A", "B"]])
    for first in (path, _gzipped(path)):
        log = _read(first, other)
        assert log.experts == ("mixtral", "gpt-4")
        assert log.task == ("gsm8k", "gsm8k", "mmlu_anatomy")
        assert log.prompts[0] == "How many eggs?\nCount them."
        np.testing.assert_array_equal(log.quality, [[0, 1], [1, 1], [1, 0]])
        answers = [_tokens(*row[3:]) for row in ROUTELLM[1:]]
        np.testing.assert_array_equal(log.output_tokens, [*answers, [1, 1]])
    np.testing.assert_array_equal(_read(path, score_range=(-1, 3)).quality, [[0, 1], [1, 1]])


def test_llmrouterbench_files_of_models_are_one_table(tmp_path: Path):
    """The model is named by the file, by its folder or by the file's name; a prompt may come twice."""
    named = tmp_path / "any.json"
    fields = {"model_name": "a/llama", "dataset_name": "aime"}
    named.write_text(_llmrouterbench([(20, 34), (40, 255), (20, 7)], [1.0, 0.0, 0.5], **fields))
    laid_out = tmp_path / "bench/aime/test/qwen/aime-test-qwen-20251002_120304.json"
    laid_out.parent.mkdir(parents=True)
    laid_out.write_text(_llmrouterbench([(21, 30), (44, 0), (23, 9)], [0.0, None, 1.0]))
    for first in (named, _gzipped(named)):
        log = _read(first, laid_out)
        assert log.experts == ("a/llama", "qwen")
        assert log.task == ("aime",) * 3
        assert log.prompts[0] == log.prompts[2] == "Question: Sum of 2 and 2?\nAnswer:"
        np.testing.assert_array_equal(log.quality, np.float32([[1, 0], [0, np.nan], [0.5, 1]]))
        np.testing.assert_array_equal(log.output_tokens, [[34, 30], [255, 1], [7, 9]])
        np.testing.assert_array_equal(log.prompt_tokens, [20, 42, 22])  # medians 20.5, 42 and 21.5, rounded
        spread = "prompt tokens differ by model in 3 of 3 prompts, the most over the fewest by 10.0% in the"
        assert any(note.startswith(spread) and "15.0% at most" in note for note in log.notes)
    by_name = tmp_path / "ds-qwen.json"
    by_name.write_text(_llmrouterbench([(20, 34)], [1.0]))
    alone = _read(by_name)
    assert alone.experts == ("ds-qwen",)
    assert alone.task is None
    assert alone.notes == ()


def test_generic_rows_of_models_with_prompt_counts_of_their_own(tmp_path: Path):
    path = tmp_path / "long.jsonl"
    answers = [("a/llama", 39, 34), ("b/qwen", 41, 30), ("c", 49, 5)]
    path.write_text(
        "".join(
            json.dumps({"prompt": "x", "model": m, "score": 1.0, "output_tokens": o, "prompt_tokens": p})
            + "\n"
            for m, p, o in answers
        )
    )
    log = _read(path)
    np.testing.assert_array_equal(log.prompt_tokens, [41])
    np.testing.assert_array_equal(log.output_tokens, [[34, 30, 5]])
    assert "differ by model in 1 of 1 prompts" in log.notes[0]


@pytest.mark.parametrize(
    ("name", "experts"),
    [
        ("routerbench_wide.csv", 3),
        ("llmrouterbench_model_a.json", 1),
        ("llmrouterbench_as_generic.jsonl", 2),
    ],
)
def test_files_people_have(shared: Path, name: str, experts: int):
    log = _read(shared / "cases" / name)
    assert (log.num_rows, len(log.experts), int(log.missing.sum())) == (60, experts, 0)
