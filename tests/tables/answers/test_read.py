from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.tables.answers.log import MISSING_TOKENS, AnswerLog
from qos_jax.tables.answers.read import LogConfig, read_answers
from qos_jax.tables.answers.token_count import APPROXIMATION, approximate_tokens, token_counter

WIDE = [
    {
        "prompt": "Add 2 and 3.",
        "prompt_tokens": 6,
        "task": "sums",
        "answers": {"ant": {"score": 1, "output_tokens": 4}, "bee": {"score": 0.25, "output_tokens": 9}},
    },
    {
        "prompt": 'Who wrote\n# "Faust", a play?',
        "prompt_tokens": 8,
        "task": "facts",
        "answers": {"bee": {"score": 0.5, "output_tokens": 7}, "ant": {"score": None, "output_tokens": 3}},
    },
]
WIDE_CSV = (
    "prompt,prompt_tokens,task,score.ant,output_tokens.ant,score.bee,output_tokens.bee\n"
    "Add 2 and 3.,6,sums,1,4,0.25,9\n"
    '"Who wrote\n# ""Faust"", a play?",8,facts,,3,0.5,7\n'
)
LONG_CSV = (
    "prompt,prompt_tokens,task,model,score,output_tokens\n"
    "Add 2 and 3.,6,sums,ant,1,4\n"
    '"Who wrote\n# ""Faust"", a play?",8,facts,bee,0.5,7\n'
    "Add 2 and 3.,6,sums,bee,0.25,9\n"
    '"Who wrote\n# ""Faust"", a play?",8,facts,ant,,3\n'
)
SPROUT = [
    {
        "key": "k1",
        "dataset": "sums",
        "dataset_level": None,
        "dataset_idx": 0,
        "prompt": "Add 2 and 3.",
        "golden_answer": "5",
        "ant": {"num_input_tokens": 5, "num_output_tokens": 4, "response": "5", "score": 1.0},
        "bee": {"num_input_tokens": 7, "num_output_tokens": 9, "response": "six", "score": 0.25},
    },
    {
        "key": "k2",
        "dataset": "facts",
        "prompt": 'Who wrote\n# "Faust", a play?',
        "ant": {"num_input_tokens": 8, "num_output_tokens": 3, "score": None},
        "bee": {"num_input_tokens": 8, "num_output_tokens": 7, "score": 0.5, "judge_response": "fair"},
    },
]
MIXINSTRUCT = [
    {
        "id": "sums/1",
        "instruction": "Add the numbers.",
        "input": "2 and 3",
        "output": "5",
        "candidates": [
            {
                "decoding_method": "top_p",
                "model": "ant",
                "text": "five",
                "scores": {"bertscore": 0.9, "bleu": 3},
            },
            {"decoding_method": "top_p", "model": "bee", "text": "", "scores": {"bertscore": 0.1, "bleu": 0}},
        ],
    }
]


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _read(path: Path, **config: Any) -> AnswerLog:
    return read_answers(LogConfig(log=(str(path),), **config))[0]


def _check(log: AnswerLog) -> None:
    """The log that WIDE tells, its experts in either order."""
    assert log.prompts == ("Add 2 and 3.", 'Who wrote\n# "Faust", a play?')
    assert sorted(log.experts) == ["ant", "bee"]
    assert log.task == ("sums", "facts")
    np.testing.assert_array_equal(log.prompt_tokens, [6, 8])
    at = [log.experts.index(name) for name in ("ant", "bee")]
    np.testing.assert_array_equal(log.quality[:, at], np.float32([[1, 0.25], [np.nan, 0.5]]))
    np.testing.assert_array_equal(log.output_tokens[:, at], [[4, 9], [3, 7]])
    np.testing.assert_array_equal(log.missing[:, at], [[False, False], [True, False]])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.jsonl", _lines(WIDE)),
        ("log.json", json.dumps(WIDE, indent=1)),
        ("log.csv", WIDE_CSV),
        ("long.csv", LONG_CSV),
        ("sprout.jsonl", _lines(SPROUT)),
        ("sprout.json", json.dumps(SPROUT)),
    ],
)
def test_same_log_from_every_format(tmp_path: Path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text)
    _check(_read(path))
    zipped = tmp_path / f"{name}.gz"
    zipped.write_bytes(gzip.compress(text.encode()))
    _check(_read(zipped))


def test_long_json_lines_and_several_files(tmp_path: Path):
    long = [
        {"prompt": record["prompt"], "prompt_tokens": record["prompt_tokens"], "task": record["task"]}
        | {"model": model, **answer}
        for record in WIDE
        for model, answer in record["answers"].items()
    ]
    (tmp_path / "a.jsonl").write_text(_lines(long[:2]))
    (tmp_path / "b.jsonl").write_text(_lines(long[2:]))
    log, _ = read_answers(LogConfig(log=(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))))
    _check(log)


def test_mixinstruct_counts_tokens_of_texts(tmp_path: Path):
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(MIXINSTRUCT))
    log = _read(path)
    assert log.prompts == ("Add the numbers.\n2 and 3",)
    assert log.task == ("sums",)
    np.testing.assert_array_equal(log.output_tokens, [[approximate_tokens("five"), 1]])
    np.testing.assert_array_equal(log.quality, np.float32([[0.9, 0.1]]))
    assert APPROXIMATION in log.notes
    assert any("1 answers of 0 tokens" in note for note in log.notes)
    rescaled = _read(path, score_name="bleu", score_range=(0.0, 4.0))
    np.testing.assert_array_equal(rescaled.quality, np.float32([[0.75, 0.0]]))


def test_mixinstruct_tasks(tmp_path: Path):
    path = tmp_path / "mix.jsonl"
    ids = ["sums/1", "7", "/x", 8]
    path.write_text(_lines([{**MIXINSTRUCT[0], "id": name, "input": str(name)} for name in ids]))
    assert _read(path).task == ("sums", "other", "other", "other")
    path.write_text(_lines([{k: v for k, v in MIXINSTRUCT[0].items() if k != "id"}]))
    assert _read(path).task is None


def test_lookahead_layout(tmp_path: Path):
    _write_lookahead(tmp_path)
    _check(_read(tmp_path))


def _write_lookahead(folder: Path) -> None:
    prompts = [{"row": k, "prompt": record["prompt"]} for k, record in enumerate(WIDE)]
    (folder / "prompts.jsonl.gz").write_bytes(gzip.compress(_lines(prompts).encode()))
    np.savez(
        folder / "scores_lengths.npz",
        models=np.array(["ant", "bee"]),
        score=np.float32([[1, 0.25], [np.nan, 0.5]]),
        out_tokens=np.int32([[4, 9], [3, 7]]),
        prompt_tokens=np.int32([6, 8]),
        dataset=np.array(["sums", "facts"]),
    )


def test_real_lookahead(shared: Path):
    log = _read(shared / "data/lookahead6")
    assert log.num_rows == 8045
    assert int(log.missing.any(axis=1).sum()) == 500
    counts = np.array([approximate_tokens(prompt) for prompt in log.prompts])
    # What the approximation says of itself.
    assert abs(counts.sum() / log.prompt_tokens.sum() - 1.016) < 0.001
    assert np.mean(np.abs(counts / log.prompt_tokens - 1)) < 0.047


def test_tasks_are_left_out_and_counted(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text(_lines(WIDE))
    log, excluded = read_answers(LogConfig(log=(str(path),), exclude_task=("facts",)))
    assert log.prompts == ("Add 2 and 3.",)
    assert excluded == {"facts": 1}


def test_an_absent_answer_is_missing(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    answers = {"ant": {"score": 1, "text": "Five."}, "bee": None}
    path.write_text(_lines([*WIDE, {**WIDE[0], "prompt": "x", "answers": answers}]))
    log = _read(path)
    column = log.experts.index("bee")
    assert np.isnan(log.quality[2, column])
    assert log.output_tokens[2, column] == MISSING_TOKENS
    assert log.output_tokens[2, 1 - column] == approximate_tokens("Five.") == 2


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        (" ", 1),
        ("hello world", 2),
        ("1234567", 3),
        ("a == b", 3),
        ("internationalisation", 3),
        ("日本語", 3),
    ],
)
def test_approximate_tokens(text: str, tokens: int):
    assert approximate_tokens(text) == tokens
    assert token_counter(None)(text) == tokens


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    path = tmp_path / "log.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"log\.parquet: .*pyarrow.*; run: pip install pyarrow"):
        _read(path)


def test_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="an optional library")
    parquet = pytest.importorskip("pyarrow.parquet", reason="an optional library")
    path = tmp_path / "sprout.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(SPROUT), path)
    _check(_read(path))


def test_tokenizer_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"'tokenizer': .*not installed; run: pip install tokenizers"):
        token_counter(tmp_path / "tokenizer.json")


def test_tokenizer_counts_whole_texts(tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers", reason="an optional library")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1, "[CLS]": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 2)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    count = token_counter(tmp_path / "tokenizer.json")
    assert [count(text) for text in ("", "a", "a b a b a b a")] == [0, 1, 7]
    (tmp_path / "log.jsonl").write_text(_lines([{**WIDE[0], "prompt": "a b a", "prompt_tokens": None}]))
    log = _read(tmp_path / "log.jsonl", tokenizer=str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(log.prompt_tokens, [3])
    assert log.notes == ()


def test_no_tokenizer(tmp_path: Path):
    pytest.importorskip("tokenizers", reason="an optional library")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: is no tokenizer"):
        token_counter(tmp_path / "tokenizer.json")
