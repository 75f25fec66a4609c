"""Bad answer logs, tables and flags to launch.prepare_data: one line each, exit code 2, nothing written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.launch.test_bad_input import TRACE, Case, Given, check_refused, tree

MODULE = "launch.prepare_data"
ROWS = 24
Record = dict[str, Any]


def records() -> list[Record]:
    """A good generic log of the models ant and bee, in two tasks."""
    rng = np.random.default_rng(0)
    return [
        {
            "prompt": f"Question {k}: what is {k} plus {k + 1}?",
            "prompt_tokens": 12,
            "task": "sums" if k % 2 else "facts",
            "answers": {
                model: {"score": int(rng.integers(0, 2)), "output_tokens": int(rng.integers(5, 50))}
                for model in ("ant", "bee")
            },
        }
        for k in range(ROWS)
    ]


def lines(log: list[Record]) -> str:
    """A log as JSON Lines."""
    return "".join(json.dumps(record) + "\n" for record in log)


def _spoil(id_: str, change: Callable[[Record], Any], *says: str, row: int = 3) -> Case:
    """A case in which one record of the log is changed, and which must name file and row."""

    def spoil(given: Given) -> None:
        log = records()
        change(log[row - 1])
        given.path("log.jsonl").write_text(lines(log))

    return Case(id_, spoil, (f"log.jsonl, row {row}", *says))


def _every(id_: str, change: Callable[[Record], Any], *says: str) -> Case:
    """A case in which every record of the log is changed."""

    def spoil(given: Given) -> None:
        log = records()
        for record in log:
            change(record)
        given.path("log.jsonl").write_text(lines(log))

    return Case(id_, spoil, says)


def _file(id_: str, name: str, content: str | bytes, *says: str) -> Case:
    """A case whose log is another file."""

    def spoil(given: Given) -> None:
        given.path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        given.flags["log"] = str(given.path(name))

    return Case(id_, spoil, (name, *says))


def _flag(id_: str, name: str, value: str, *says: str) -> Case:
    return Case(id_, lambda given: given.flags.update({name: value}), says)


def _answer(model: str, **fields: Any) -> Callable[[Record], None]:
    return lambda record: record["answers"][model].update(fields)


CSV = "prompt,task,score.ant,output_tokens.ant,score.bee,text.bee\n"
SPROUT = {
    "prompt": "Add 2 and 3.",
    "dataset": "sums",
    "ant": {"num_input_tokens": 5, "num_output_tokens": 4, "score": 1.0},
}
MIX = {
    "id": "sums/1",
    "instruction": "Add.",
    "input": "2 and 3",
    "candidates": [{"model": "ant", "text": "5", "scores": {"bertscore": 0.9}}],
}


def _mix(**fields: Any) -> str:
    return json.dumps([MIX | fields])


LOG_CASES = [
    Case("log missing", lambda g: g.path("log.jsonl").unlink(), ("log.jsonl", "no such file", "; ")),
    Case("no log", lambda g: g.flags.pop("log"), ("'log'", "names no file", "; give --log")),
    Case("log twice", lambda g: g.extra.append(f"--log={g.flags['log']}"), ("'log'", "twice", "; ")),
    _file("log of no known kind", "log.xml", "<log/>", "unknown kind", ".jsonl"),
    _file("log empty", "log.jsonl", "", "holds no record"),
    _file("log no text", "log.jsonl", b"\xff\xfe\x00{", "is not plain text", "UTF-8"),
    _file(
        "log a cut gzip file", "log.jsonl.gz", gzip.compress(lines(records()).encode())[:60], "damaged gzip"
    ),
    _file("log no gzip file", "log.jsonl.gz", lines(records()), "damaged gzip"),
    _file(
        "log of an unknown schema",
        "log.jsonl",
        '{"question": "x", "reply": "y"}\n',
        "no known format",
        "--format",
    ),
    _file("log a list of texts", "log.json", '["x"]', "row 1", "is no JSON object"),
    _file("line no JSON", "log.jsonl", lines(records()[:2]) + "{oops\n", "row 3", "is no JSON"),
    _file("line a number", "log.jsonl", lines(records()[:2]) + "7\n", "row 3", "is no JSON object"),
    _file(
        "field twice",
        "log.jsonl",
        '{"prompt": "x", "prompt": "y", "answers": {}}\n',
        "row 1",
        "'prompt' is given twice",
    ),
    _spoil("score NaN", _answer("ant", score=float("nan")), "NaN is not a finite number", "null"),
    _spoil("score infinite", _answer("ant", score=float("inf")), "Infinity is not a finite number"),
    _spoil("score infinite text", _answer("ant", score="inf"), "'answers.ant.score'", "not finite"),
    _spoil(
        "score above the range", _answer("ant", score=85), "'answers.ant.score'", "[0, 1]", "--score_range"
    ),
    _spoil("score negative", _answer("bee", score=-0.5), "'answers.bee.score'", "-0.5 is outside"),
    _spoil("score a word", _answer("ant", score="good"), "'answers.ant.score'", "'good' is not a number"),
    _spoil("score a truth value", _answer("ant", score=True), "'answers.ant.score'", "True is not a number"),
    _spoil("tokens negative", _answer("ant", output_tokens=-7), "'answers.ant.output_tokens'", "-7"),
    _spoil("tokens in part", _answer("ant", output_tokens=7.5), "'answers.ant.output_tokens'", "7.5"),
    _spoil(
        "tokens beyond int32",
        _answer("ant", output_tokens=2**40),
        "'answers.ant.output_tokens'",
        "1073741823",
    ),
    _spoil("tokens and text", _answer("ant", text="five"), "'text'", "beside 'output_tokens'"),
    _spoil("answer unknown field", _answer("ant", scroe=1), "'answers.ant.scroe'", "unknown", "score"),
    _spoil("answer no object", lambda r: r["answers"].update(ant=1), "'answers.ant'", "is no object"),
    _spoil("model without a name", lambda r: r["answers"].update({" ": {"score": 1}}), "'model'", "is empty"),
    _spoil("model called drop", lambda r: r["answers"].update(drop={"score": 1}), "'model'", "reserved"),
    _spoil("no answers", lambda r: r.pop("answers"), "'answers'", "is missing"),
    _spoil("answers empty", lambda r: r.update(answers={}), "'answers'", "no object of models"),
    _spoil("no prompt", lambda r: r.pop("prompt"), "'prompt'", "is missing"),
    _spoil("prompt misspelt", lambda r: r.update(promt=r.pop("prompt")), "'prompt'", "did you mean 'promt'"),
    _spoil("prompt empty", lambda r: r.update(prompt="  \n"), "'prompt'", "is empty"),
    _spoil("prompt a number", lambda r: r.update(prompt=7), "'prompt'", "7 is not text"),
    _spoil("prompt of no tokens", lambda r: r.update(prompt_tokens=0), "'prompt_tokens'", "below 1"),
    _spoil("unknown field", lambda r: r.update(tsk="sums"), "'tsk'", "unknown", "did you mean 'task'"),
    _spoil("task of some rows", lambda r: r.pop("task"), "'task'", "is missing", "every row or in none"),
    _spoil("task empty", lambda r: r.update(task=""), "'task'", "is empty"),
    _every("a model never answers", _answer("bee", score=None), "'bee'", "no score in any row"),
    _every(
        "every row misses an answer",
        lambda r: r["answers"].pop("ant" if r["task"] == "sums" else "bee"),
        "'missing'",
        "every row misses an answer",
        "--missing=fill",
    ),
    _spoil(
        "an answer beyond the last bucket",
        _answer("ant", output_tokens=20_000),
        "'output_tokens'",
        "20000 tokens",
        "--predictor.max_output_tokens=20000",
    ),
    _file("too few prompts", "log.jsonl", lines(records()[:12]), "different prompts"),
    _file(
        "CSV a cell too few", "log.csv", CSV + "x,sums,1,2,0.5\n", "row 2", "5 cells where the header has 6"
    ),
    _file("CSV column twice", "log.csv", CSV.replace("score.bee", "score.ant"), "'score.ant'", "twice"),
    _file("CSV quote left open", "log.csv", CSV + '"x,sums,1,2,0.5,y\n', "is no CSV file"),
    _file(
        "CSV model without a name", "log.csv", "prompt,score.\nx,1\n", "row 2", "'score.'", "names no model"
    ),
    _file(
        "CSV score a word", "log.csv", CSV + "x,sums,good,2,0.5,y\n", "row 2", "'answers.ant.score'", "'good'"
    ),
    _file("CSV no answer", "log.csv", "prompt,task\nx,sums\n", "row 2", "'answers'", "is missing"),
    _file(
        "long: answers twice",
        "log.csv",
        "prompt,model,score,output_tokens\nx,ant,1,2\ny,ant,1,2\nx,ant,0,3\n",
        "row 4",
        "'model'",
        "answers this prompt twice",
    ),
    _file(
        "long: task differs",
        "log.csv",
        "prompt,task,model,score,output_tokens\nx,a,ant,1,2\nx,b,bee,1,2\n",
        "row 3",
        "'task'",
        "differs",
    ),
    _file(
        "routerbench: no response",
        "log.csv",
        "prompt,ant,bee,ant|model_response\nx,1,0,five\n",
        "row 2",
        "'bee'",
        "has no column 'bee|model_response'",
        "output_tokens.bee",
    ),
    _file("routerbench: pickled", "log.pkl", b"\x80\x04", "is a pickle", "read_pickle", "to_csv"),
    _file(
        "routellm: no responses",
        "mmlu_anatomy.csv",
        "prompt,ant,bee\nx,True,False\n",
        "row 2",
        "has no column 'ant_response'",
        "output lengths are unknown",
        "score.ant and output_tokens.ant",
    ),
    _file(
        "routellm: no truth",
        "log.csv",
        "prompt,ant,ant_response\nx,True,five\ny,maybe,six\n",
        "row 3",
        "'maybe' is no score",
        "True or False",
    ),
    _file(
        "llmrouterbench: record without score",
        "log.json",
        json.dumps({"records": [{"prompt": "x"}]}, indent=1),
        "row 1",
        "'records.score'",
        "is missing",
    ),
    _file(
        "JSON over many lines of no known format",
        "log.jsonl",
        json.dumps({"question": "x"}, indent=1),
        "no known format",
        "--format",
    ),
    _file(
        "sprout: model no object",
        "log.jsonl",
        json.dumps(SPROUT | {"bee": 0.5}),
        "row 1",
        "'bee'",
        "no object of a model",
    ),
    _file(
        "sprout: no prompt tokens",
        "log.jsonl",
        json.dumps(SPROUT | {"ant": {"num_output_tokens": 4, "score": 1}}),
        "row 1",
        "'num_input_tokens'",
        "is missing",
    ),
    _file(
        "mixinstruct: no such score",
        "log.json",
        _mix(candidates=[MIX["candidates"][0] | {"scores": {"bert": 1}}]),
        "row 1",
        "bertscore'",
        "is missing",
        "--score_name",
    ),
    _file(
        "mixinstruct: no candidates", "log.json", _mix(candidates=7), "row 1", "'candidates'", "is no list"
    ),
    _file(
        "mixinstruct: model twice",
        "log.json",
        _mix(candidates=MIX["candidates"] * 2),
        "row 1",
        "'model'",
        "answers this prompt twice",
    ),
    _file(
        "mixinstruct: nothing asked",
        "log.json",
        _mix(instruction="", input=" "),
        "row 1",
        "'prompt'",
        "is empty",
    ),
]


def _lookahead(id_: str, change: Callable[[Path, dict[str, np.ndarray]], Any], *says: str) -> Case:
    """A case whose log is a folder in the layout of lookahead6, spoilt before it is written."""

    def spoil(given: Given) -> None:
        folder = given.path("lookahead")
        folder.mkdir()
        prompts = [{"row": k, "prompt": record["prompt"]} for k, record in enumerate(records())]
        (folder / "prompts.jsonl.gz").write_bytes(gzip.compress(lines(prompts).encode()))
        arrays = {
            "models": np.array(["ant", "bee"]),
            "score": np.full((ROWS, 2), 0.5, np.float32),
            "out_tokens": np.full((ROWS, 2), 9, np.int32),
            "prompt_tokens": np.full(ROWS, 12, np.int32),
            "dataset": np.full(ROWS, "sums"),
        }
        change(folder, arrays)
        np.savez(folder / "scores_lengths.npz", **arrays)
        given.flags["log"] = str(folder)

    return Case(id_, spoil, ("lookahead", *says))


LOOKAHEAD_CASES = [
    Case("a folder", lambda g: g.flags.update(log=str(g.folder)), ("folder", "layout of lookahead6", "; ")),
    _lookahead("no score", lambda f, a: a.pop("score"), "scores_lengths.npz, field 'score'", "is missing"),
    _lookahead(
        "score of another shape",
        lambda f, a: a.update(score=a["score"][:5]),
        "scores_lengths.npz, field 'score'",
        "shape (5, 2)",
    ),
    _lookahead(
        "score out of range",
        lambda f, a: a["score"].__setitem__((4, 1), 3),
        "prompts.jsonl.gz, row 5, field 'score[4, 1] of scores_lengths.npz'",
        "3 is outside",
    ),
    _lookahead(
        "out_tokens negative",
        lambda f, a: a["out_tokens"].__setitem__((2, 0), -3),
        "row 3",
        "out_tokens[2, 0]",
        "-3",
    ),
    _lookahead(
        "prompts missing", lambda f, a: (f / "prompts.jsonl.gz").unlink(), "prompts.jsonl.gz", "no such file"
    ),
    _lookahead(
        "prompts of another table",
        lambda f, a: (f / "prompts.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "x"}\n')),
        "prompts.jsonl.gz",
        "holds 1 prompts",
        str(ROWS),
    ),
]


def _verify(id_: str, content: bytes | None, *says: str) -> Case:
    def spoil(given: Given) -> None:
        given.flags.pop("log")
        given.flags["verify"] = str(given.path("table.npz"))
        if content is not None:
            given.path("table.npz").write_bytes(content)

    return Case(id_, spoil, says)


FLAG_CASES = [
    _flag("unknown format", "format", "generc", "'format'", "did you mean 'generic'", "; use one of auto"),
    _flag(
        "format of another",
        "format",
        "sprout",
        "log.jsonl, row 1",
        "'prompt_tokens'",
        "no object of a model",
        "; ",
    ),
    _flag("score range of one number", "score_range", "1", "--score_range", "not 2 numbers", "; see --help"),
    _flag("score range backwards", "score_range", "1,0", "'score_range'", "is no range", "; "),
    _flag("score range words", "score_range", "low,high", "--score_range", "'low'", "; see --help"),
    _flag("shares not three", "split_shares", "0.5,0.5", "'split_shares'", "no shares", "; "),
    _flag(
        "shares without test",
        "split_shares",
        "0.9,0.1,0",
        "'split_shares'",
        "leave train or test empty",
        "; ",
    ),
    _flag("shares negative", "split_shares", "0.9,-0.1,0.2", "'split_shares'", "no shares", "; "),
    _flag(
        "no such task held out",
        "held_out_task",
        "sum",
        "'held_out_task'",
        "'sum'",
        "; use one of facts, sums",
    ),
    _flag("no such task excluded", "exclude_task", "chat", "'exclude_task'", "'chat'", "; use one of facts"),
    Case(
        "every task excluded",
        lambda g: g.extra.extend(["--exclude_task=sums", "--exclude_task=facts"]),
        ("'exclude_task'", "leaves no row", "; "),
    ),
    _flag("one fold", "folds", "1", "'folds'", "out of range", "; "),
    _flag("more folds than rows", "folds", "99", "'folds'", "fewer than 99 folds", "; "),
    _flag("no such fleet", "fleet", "edge7", "edge7", "; "),
    _flag("fleet of others", "fleet", "edge6", "'fleet'", "no answers of 'Llama-3.1-8B-Instruct'", "; "),
    _flag("tokenizer missing", "tokenizer", "/nowhere/tokenizer.json", "tokenizer", "; "),
    _flag("unknown encoder", "predictor.encoder", "bert", "encoder", "bert", "; "),
    _flag("trace missing", "trace", "/nowhere/trace.csv", "/nowhere/trace.csv", "no such file", "; "),
    Case(
        "trace window empty",
        lambda g: g.flags.update(trace=str(g.path("trace.csv")), trace_start_s="100"),
        ("trace.csv", "no request arrives in [100 s", "; "),
    ),
    Case(
        "window backwards",
        lambda g: g.flags.update(trace=str(g.path("trace.csv")), trace_end_s="0"),
        ("'trace_start_s'", "is no window", "; "),
    ),
    Case("out is a file", lambda g: Path(g.flags["out"]).write_text("mine"), ("out", "is a file", "--out")),
    Case(
        "verify beside log",
        lambda g: g.flags.update(verify=str(g.path("table.npz"))),
        ("'verify'", "beside --log", "; "),
    ),
    _verify("verify nothing", None, "table.npz", "no such file", "; "),
    _verify("verify no table", b"PK\x03\x04 cut", "table.npz", "is not a readable .npz", "; "),
]

CASES = [*LOG_CASES, *LOOKAHEAD_CASES, *FLAG_CASES]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_refused_in_one_line(launch, tmp_path: Path, case: Case):
    folder = tmp_path / "inputs"
    folder.mkdir()
    (folder / "log.jsonl").write_text(lines(records()))
    (folder / "trace.csv").write_text(TRACE)
    given = Given(folder, {"log": str(folder / "log.jsonl"), "plots": "false", "out": str(tmp_path / "out")})
    case.spoil(given)
    before = tree(tmp_path)
    ended = launch(MODULE, *given.arguments)
    check_refused(ended.code, ended.out, ended.err, case.says)
    assert tree(tmp_path) == before


def test_every_kind_once():
    assert len({case.id for case in CASES}) == len(CASES)
