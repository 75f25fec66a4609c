"""Bad input to the launchers: one line that names the place and the remedy, exit code 2, nothing written."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.launch.trained import network, save_run

TRACE = "arrival_s,prompt_tokens,output_tokens\n0,10,3\n0.5,12,4\n1.5,14,5\n7.0,16,6\n"


def _good_flags(module: str, inputs: Path) -> dict[str, str]:
    """Flags that the launcher would run with, but for ``--out``."""
    fleet, trace = {"fleet": str(inputs / "fleet.csv")}, str(inputs / "trace.csv")
    return {
        "launch.simulate": {
            **fleet,
            "requests": str(inputs / "requests.csv"),
            "policy": "random",
            "latency_limit_s": "0.05",
        },
        "launch.evaluate": {
            **fleet,
            "trace": trace,
            "workloads": "trace",
            "policies": "random,shortest_queue",
            "seeds": "2",
            "latency_limit_s": "0.05",
            "plots": "false",
        },
        "launch.sweep": {
            **fleet,
            "sweep": "latency_limit_s=0.05,0.1",
            "policies": "random,shortest_queue",
            "seeds": "2",
            "num_requests": "4",
            "plots": "false",
        },
        "launch.benchmark": {"trace": trace, "environments": "1", "num_requests": "3"},
        "launch.fit_tables": {"trace": f"mine={trace}"},
        "launch.calibrate": {
            "expert": "mine",
            "requests": str(inputs / "log.jsonl"),
            "kv_capacity_tokens": "4000",
            "fix": "decode_per_seq_s=0",
            "plots": "false",
        },
    }[module]


@dataclasses.dataclass
class Given:
    """A launcher's good input, for a case to spoil: two files and the flags."""

    folder: Path
    flags: dict[str, str]
    extra: list[str] = dataclasses.field(default_factory=list)

    @property
    def arguments(self) -> list[str]:
        return [*(f"--{name}={value}" for name, value in self.flags.items()), *self.extra]

    def path(self, file: str) -> Path:
        return self.folder / file

    def replace(self, file: str, old: str, new: str) -> None:
        text = self.path(file).read_text()
        assert old in text
        self.path(file).write_text(text.replace(old, new, 1))


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of bad input."""

    id: str
    spoil: Callable[[Given], object]
    says: tuple[str, ...]  # texts of the error, in this order


def _cell(id_: str, file: str, old: str, new: str, row: int | None, field: str, *says: str) -> Case:
    """A case in which ``old`` became ``new``, and which must name file, row and field."""
    place = (f"{file}, ", *((f"row {row}, ",) if row else ()), f"field '{field}': ")
    return Case(id_, lambda given: given.replace(file, old, new), (*place, *says))


def _write(id_: str, file: str, content: bytes, *says: str) -> Case:
    return Case(id_, lambda given: given.path(file).write_bytes(content), (file, *says))


def _flag(id_: str, name: str, value: str, *says: str) -> Case:
    return Case(id_, lambda given: given.flags.update({name: value}), says)


def _without(name: str) -> Case:
    return Case(
        f"no --{name}",
        lambda given: given.flags.pop(name),
        (f"'{name}': is missing", f"; give --{name}"),
    )


def _as_folder(given: Given, file: str) -> None:
    given.path(file).unlink()
    given.path(file).mkdir()


def _files(file: str) -> list[Case]:
    """What can be wrong with any table, whatever it holds."""
    return [
        Case(f"{file} missing", lambda g: g.path(file).unlink(), (file, "no such file", "; check the path")),
        Case(f"{file} a folder", lambda g: _as_folder(g, file), (file, "cannot be read", "; ")),
        _write(f"{file} empty", file, b"", "is empty", "header"),
        _write(f"{file} blank", file, b"\n  \n# nothing\n", "is empty", "header"),
        _write(f"{file} binary", file, b"\x93NUMPY\x01\x00\xff\xfe" * 20, "is not plain text", "UTF-8"),
        _write(f"{file} in UTF-16", file, "expert,a\n1,2\n".encode("utf-16"), "is not plain text", "UTF-8"),
        _write(f"{file} one huge cell", file, b'a,b\n1,"' + b"x" * 200_000, "field larger than"),
    ]


FLEET_CASES = [
    *_files("fleet.csv"),
    Case(
        "fleet: missing column",
        lambda g: _drop_last_column(g.path("fleet.csv")),
        ("fleet.csv, field 'idle_power_w': ", "missing"),
    ),
    _cell(
        "fleet: misspelt column",
        "fleet.csv",
        "max_waiting",
        "max_wating",
        None,
        "max_waiting",
        "'max_wating'",
    ),
    Case(
        "fleet: unknown column",
        lambda g: g.path("fleet.csv").write_text(g.path("fleet.csv").read_text().replace("\n", ",1\n")),
        ("fleet.csv, field '1': ", "unknown"),
    ),
    _cell("fleet: column twice", "fleet.csv", "max_waiting", "max_running", 1, "max_running", "twice"),
    Case(
        "fleet: a cell too few",
        lambda g: g.replace("fleet.csv", ",0.01,200,40", ",200,40"),
        ("fleet.csv, row 3: ", "13 cells", "14", "; "),
    ),
    Case(
        "fleet: no expert",
        lambda g: g.path("fleet.csv").write_text(g.path("fleet.csv").read_text().split("\n")[0] + "\n"),
        ("fleet.csv: ", "no expert", "; "),
    ),
    _cell("fleet: not a number", "fleet.csv", "0.005,300", "5ms,300", 2, "network_rtt_s", "'5ms'"),
    _cell("fleet: empty cell", "fleet.csv", "0.005,300", ",300", 2, "network_rtt_s", "is empty"),
    _cell("fleet: NaN", "fleet.csv", "0.005,300", "nan,300", 2, "network_rtt_s", "not finite"),
    _cell("fleet: infinite", "fleet.csv", "0.005,300", "inf,300", 2, "network_rtt_s", "not finite"),
    _cell("fleet: negative", "fleet.csv", "0.005,300", "-0.005,300", 2, "network_rtt_s", "range", "from 0"),
    _cell("fleet: decode takes no time", "fleet.csv", "0.03,0.002", "0,0.002", 3, "decode_base_s", "above 0"),
    _cell("fleet: part of a slot", "fleet.csv", "ant,2,", "ant,2.5,", 2, "max_running", "'2.5'"),
    _cell("fleet: no slot", "fleet.csv", "ant,2,", "ant,0,", 2, "max_running", "'0'", "from 1"),
    _cell("fleet: beyond int32", "fleet.csv", ",64,60,", ",64,6e9,", 2, "kv_capacity_tokens", "6e9"),
    _cell("fleet: expert twice", "fleet.csv", "bee,", "ant,", 3, "expert", "'ant'", "twice"),
    _cell("fleet: expert without a name", "fleet.csv", "bee,", ",", 3, "expert", "empty"),
    _cell("fleet: expert called drop", "fleet.csv", "bee,", "Drop,", 3, "expert", "reserved"),
    _cell(
        "fleet: budget below slots",
        "fleet.csv",
        "bee,3,1,16",
        "bee,3,1,2",
        3,
        "max_batched_tokens",
        "max_running 3",
    ),
    _cell("fleet: busy below idle", "fleet.csv", "200,40", "30,40", 3, "busy_power_w", "idle_power_w"),
]

REQUEST_CASES = [
    *_files("requests.csv"),
    _cell(
        "requests: missing column",
        "requests.csv",
        "prompt_tokens",
        "prompt",
        None,
        "prompt_tokens",
        "missing",
    ),
    _cell(
        "requests: misspelt column", "requests.csv", ",expert", ",exprt", None, "exprt", "unknown", "'expert'"
    ),
    _cell("requests: column twice", "requests.csv", "quality.bee", "quality.ant", 1, "quality.ant", "twice"),
    Case(
        "requests: column without a name",
        lambda g: g.replace("requests.csv", ",expert", ","),
        ("requests.csv, row 1: ", "column 10 has no name", "; "),
    ),
    _cell("requests: shared and own", "requests.csv", ",expert", ",quality", None, "quality", "both"),
    _cell(
        "requests: no such expert", "requests.csv", "quality.bee", "quality.bea", None, "quality.bea", "'bee'"
    ),
    Case(
        "requests: not every expert",
        lambda g: g.path("requests.csv").write_text(
            "arrival_s,prompt_tokens,output_tokens,quality.ant\n0,1,1,1\n"
        ),
        ("requests.csv, field 'quality.bee': ", "missing", "; "),
    ),
    Case(
        "requests: a cell too many",
        lambda g: g.replace("requests.csv", "0.9,ant", "0.9,ant,"),
        ("requests.csv, row 2: ", "11 cells", "10", "; "),
    ),
    Case(
        "requests: a quote left open",
        lambda g: g.replace("requests.csv", "0.05,30", '"0.05,30'),
        ("requests.csv, row 4: ", "1 cells", "; "),
    ),
    Case(
        "requests: header only",
        lambda g: g.path("requests.csv").write_text("arrival_s,prompt_tokens,output_tokens,quality\n"),
        ("requests.csv: ", "no request", "; "),
    ),
    _cell("requests: not a number", "requests.csv", "0.05,30", "later,30", 3, "arrival_s", "'later'"),
    _cell(
        "requests: NUL in a cell", "requests.csv", "0.05,30", "0.05\x00,30", 3, "arrival_s", "not a number"
    ),
    _cell("requests: empty cell", "requests.csv", "0.05,30", "0.05,", 3, "prompt_tokens", "empty"),
    _cell("requests: NaN", "requests.csv", "0.25,0.75", "nan,0.75", 3, "quality.ant", "not finite"),
    _cell("requests: infinite", "requests.csv", "0.5,10", "inf,10", 4, "arrival_s", "not finite"),
    _cell("requests: before the start", "requests.csv", "0.0,20", "-1,20", 2, "arrival_s", "from 0"),
    _cell("requests: out of order", "requests.csv", "0.5,10", "0.04,10", 4, "arrival_s", "sort"),
    _cell("requests: no prompt", "requests.csv", "0.05,30", "0.05,0", 3, "prompt_tokens", "from 1"),
    _cell("requests: no output", "requests.csv", "30,25,8", "30,25,0", 3, "output_tokens.bee", "from 1"),
    _cell(
        "requests: half a token", "requests.csv", "30,25,8", "30,25.5,8", 3, "output_tokens.ant", "integer"
    ),
    _cell("requests: beyond int32", "requests.csv", "30,25,8", "30,3e9,8", 3, "output_tokens.ant", "range"),
    _cell("requests: quality above 1", "requests.csv", "0.25,0.75", "0.25,75", 3, "quality.bee", "to 1"),
    _cell("requests: quality below 0", "requests.csv", "0.25,0.75", "-0.1,0.75", 3, "quality.ant", "from 0"),
    _cell(
        "requests: predicted above 1",
        "requests.csv",
        "0.3,0.7",
        "0.3,1.01",
        3,
        "predicted_quality.bee",
        "to 1",
    ),
    _cell(
        "requests: nothing predicted",
        "requests.csv",
        ",12,0.3",
        ",0,0.3",
        3,
        "predicted_output_tokens",
        "range",
    ),
    _cell("requests: at no such expert", "requests.csv", "0.7,bee", "0.7,bees", 3, "expert", "'bee'"),
    Case(
        "requests: more tokens than int32 counts",
        lambda g: g.replace("requests.csv", "0.05,30,25", "0.05,2e9,2e9"),
        ("requests.csv", "field 'output_tokens'", "4000000000", "; "),
    ),
    Case(
        "no expert holds any request",
        lambda g: g.path("requests.csv").write_text(
            "arrival_s,prompt_tokens,output_tokens,quality,predicted_output_tokens,predicted_quality\n"
            "0,80,11,1,11,1\n1,200,10,1,10,1\n"
        ),
        ("fleet.csv, field 'kv_capacity_tokens': ", "90", "91 tokens", "; "),
    ),
]


def _holding(given: Given, content: dict[str, str]) -> None:
    out = Path(given.flags["out"])
    out.mkdir()
    for name, text in content.items():
        (out / name).write_text(text)


OUT_CASES = [
    Case(
        "out is a file",
        lambda g: Path(g.flags["out"]).write_text("mine"),
        ("out", "is a file", "; ", "--out"),
    ),
    Case(
        "out lies in a file",
        lambda g: g.flags.update(out=str(g.path("fleet.csv") / "x")),
        ("fleet.csv/x: ", "cannot be written", "; ", "--out"),
    ),
    Case(
        "out holds other files",
        lambda g: _holding(g, {"thesis.tex": "precious"}),
        ("out: ", "not of a run", "; ", "--out", "--overwrite"),
    ),
    Case(
        "out holds another run",
        lambda g: _holding(g, {"config.json": '{"seed": -5}', "records.csv": "precious"}),
        ("out: ", "another run", "; ", "--out", "--overwrite"),
    ),
    Case(
        "out has too long a name",
        lambda g: g.flags.update(out=g.flags["out"] + "x" * 300),
        ("xxx: ", "too long", "; "),
    ),
]

FLAG_CASES = [
    _without("fleet"),
    _without("latency_limit_s"),
    _flag("no such fleet", "fleet", "edge7", "'fleet'", "did you mean 'edge6'"),
    _flag("limit not a number", "latency_limit_s", "50ms", "--latency_limit_s", "50ms"),
    _flag("limit 0", "latency_limit_s", "0", "'latency_limit_s'", "positive"),
    _flag("limit negative", "latency_limit_s", "-0.05", "'latency_limit_s'", "positive"),
    _flag("limit NaN", "latency_limit_s", "nan", "'latency_limit_s'", "finite"),
    _flag("limit minus infinite", "latency_limit_s", "-inf", "'latency_limit_s'", "positive"),
    _flag("limit on TTFT 0", "ttft_limit_s", "0", "'ttft_limit_s'", "positive", "; give seconds"),
    _flag("unknown preset of limits", "limits", "mlperf", "'limits'", "mlperf_llama2_70b"),
    _flag("limit 0 in float32", "latency_limit_s", "1e-60", "'latency_limit_s'", "positive"),
    _flag(
        "unknown scheduler",
        "scheduler",
        "prefil_first",
        "'scheduler'",
        "did you mean 'prefill_first'",
        "; use one of",
    ),
    _flag("negative seed", "seed", "-1", "'seed'", "range"),
    _flag("half a seed", "seed", "0.5", "--seed", "0.5"),
    _flag("seed beyond uint32", "seed", "4294967296", "'seed'", "range"),
    _flag("unknown flag", "schedulr", "prefill_first", "'schedulr'", "scheduler"),
    _flag("unknown: renamed flag", "plot", "true", "--plot has a new name", "; give --plots"),
    _flag(
        "unknown: renamed flag of a group",
        "train.scenario.swing",
        "0,0",
        "; give --train.scenario.diurnal_swing",
    ),
    Case(
        "unknown: renamed flag, negated",
        lambda g: g.extra.append("--noplot"),
        ("--noplot has a new name", "; give --noplots"),
    ),
    Case("stray argument", lambda g: g.extra.append("fleet.csv"), ("unexpected argument 'fleet.csv'", "; ")),
]

SIMULATE_CASES = [
    _without("requests"),
    _without("policy"),
    _flag("unknown policy", "policy", "projected_gredy", "'policy'", "did you mean 'projected_greedy'"),
    _flag("a bound for a policy", "policy", "upper_bound", "'policy'", "bound", "random"),
    Case(
        "assigned to nothing",
        lambda g: (g.flags.update(policy="assigned"), _drop_last_column(g.path("requests.csv"))),
        ("requests.csv, field 'expert': ", "'assigned'", "; "),
    ),
    Case(
        "files swapped",
        lambda g: g.flags.update(fleet=g.flags["requests"], requests=g.flags["fleet"]),
        ("requests.csv, field ", "missing", "; "),
    ),
]


def _drop_last_column(path: Path) -> None:
    path.write_text("".join(line.rpartition(",")[0] + "\n" for line in path.read_text().splitlines()))


def _window(id_: str, start: str, end: str, *says: str) -> Case:
    return Case(id_, lambda g: g.flags.update(trace_start_s=start, trace_end_s=end), says)


TRACE_CASES = [
    *_files("trace.csv"),
    _write("trace: unknown format", "trace.csv", b"when,what\n1,2\n", "no known layout", "when, what"),
    _cell("trace: out of order", "trace.csv", "1.5,14", "0.1,14", 4, "arrival_s", "sort"),
    _cell("trace: not a number", "trace.csv", "0.5,12", "soon,12", 3, "arrival_s", "'soon'"),
    _cell("trace: no prompt", "trace.csv", "0.5,12", "0.5,0", 3, "prompt_tokens", "from 1"),
    _cell("trace: half a token", "trace.csv", "0.5,12", "0.5,1.5", 3, "prompt_tokens", "1.5"),
    _write("trace: broken JSON", "trace.csv", b'{"timestamp": 1, "input_len', "row 1", "; "),
    _write("trace: JSON without lengths", "trace.csv", b'{"timestamp": 1}\n', "lacks input_length, "),
    _write("trace: header only", "trace.csv", b"arrival_s,prompt_tokens,output_tokens\n", "no request"),
]


def _write_table(given: Given, **changes: object) -> None:
    """Write a table of the fleet's two experts and another, and give it; a change to None leaves out."""
    arrays: dict[str, object] = {
        "version": 1,
        "experts": ["cow", "bee", "ant"],
        "prompt_tokens": [10, 20, 30, 40],
        "quality": np.full((4, 3), 0.5),
        "output_tokens": np.full((4, 3), 8),
        "predicted_quality": np.full((4, 3), 0.5),
        "predicted_output_tokens": np.full((4, 3), 7.5),
        "split": [0, 0, 0, 2],
    }
    arrays |= changes
    np.savez(given.path("table.npz"), **{k: np.asarray(v) for k, v in arrays.items() if v is not None})
    given.flags["table"] = str(given.path("table.npz"))


def _table(id_: str, changes: dict[str, object], *says: str, **flags: str) -> Case:
    """A case of a table with these arrays, and these flags."""

    def spoil(given: Given) -> None:
        _write_table(given, **changes)
        given.flags.update(flags)

    return Case(f"table: {id_}", spoil, ("table.npz", *says))


TABLE_CASES = [
    Case(
        "no such table", lambda g: g.flags.update(table="gone.npz"), ("gone.npz: ", "no such file", "; check")
    ),
    Case("table: empty --table", lambda g: g.flags.update(table=""), ("'table': ", "empty", "; give")),
    Case(
        "table: not an npz",
        lambda g: g.flags.update(table=g.flags["trace"]),
        ("trace.csv: ", "not a readable .npz", "; write"),
    ),
    _table("other version", {"version": 7}, "'version': ", "'7'", "; write"),
    _table("array missing", {"quality": None}, "'quality': ", "missing", "; write"),
    _table("array misspelt", {"splits": [0]}, "'splits': ", "unknown", "'split'", "; rename"),
    _table("wrong shape", {"quality": np.ones((4, 2))}, "'quality': ", "(4, 2), not (4, 3)", "; give"),
    _table("NaN", {"quality": np.full((4, 3), np.nan)}, "'quality': ", "nan at quality[0, 0]", "; give"),
    _table(
        "out of range", {"prompt_tokens": [1, 2, 0, 3]}, "'prompt_tokens': ", "0 at prompt_tokens[2]", "; "
    ),
    _table("name twice", {"experts": ["ant", "bee", "bee"]}, "'experts': ", "'bee'", "twice", "; give"),
    _table("not the fleet's", {"experts": ["cow", "bees", "ant"]}, "'experts': ", "'bee'", "'bees'", "; use"),
    _table(
        "split not there", {}, "'split': ", "no row of 'validation'", "; use train", table_split="validation"
    ),
    _table(
        "no train rows",
        {"split": [2] * 4},
        "'split': ",
        "no train rows",
        "'mean'",
        "; use",
        predictions="mean",
    ),
    _flag(
        "predictions unknown", "predictions", "meen", "'predictions': 'meen'", "did you mean 'mean'", "; use"
    ),
    _flag("predictions twice", "predictions", "mean,mean", "'predictions'", "twice", "; give"),
    _flag(
        "predictions of no table", "predictions", "true", "'predictions'", "need a table", "; give --table"
    ),
    Case(
        "baseline of other predictions",
        lambda g: (_write_table(g), g.flags.update(predictions="mean,true", baseline="random@fitted")),
        ("'baseline': 'random@fitted'", "; use one of random@mean, shortest_queue@mean, random@true"),
    ),
    Case(
        "baseline of other predictions and views",
        lambda g: (
            _write_table(g),
            g.flags.update(predictions="mean,true", views="own", baseline="random@own"),
        ),
        (
            "'baseline': 'random@own'",
            "; use one of random@mean@own, shortest_queue@mean@own, random@true@own",
        ),
    ),
    Case(
        "a router that measures, under a view",
        lambda g: g.flags.update(policies="measured_greedy", baseline="measured_greedy", views="own"),
        ("'views': 'measured_greedy' goes by what it measures", "; leave out that policy"),
    ),
    Case(
        "sessions under a view",
        lambda g: g.flags.update(workloads="sessions", views="own"),
        ("'workloads': ", "where routers see everything", "; leave out views"),
    ),
    _table("not split", {"split": None}, "'split': ", "missing", "; use 'all'", table_split="test"),
    Case(
        "table: split unknown",
        lambda g: (_write_table(g), g.flags.update(table_split="tests")),
        (
            "'table_split': 'tests' is unknown",
            "did you mean 'test'",
            "; use one of all, train, validation, test",
        ),
    ),
    _flag(
        "table: split of none", "table_split", "test", "'table_split': 'test' needs a table", "; give --table"
    ),
    Case(
        "table: error level of its own",
        lambda g: (_write_table(g), g.flags.update(error_level="0")),
        ("'error_level': ", "a table has its own", "; leave out"),
    ),
]


def _checkpoint(
    id_: str, make: Callable[[Path], object], *says: str, give: tuple[str, ...] = ("{}",)
) -> Case:
    """A case of a learned router from the folder ``run``, made by ``make``; ``give`` are the flags."""

    def spoil(given: Given) -> None:
        make(given.path("run"))
        given.extra += [f"--checkpoint={text.format(given.path('run'))}" for text in give]

    return Case(f"checkpoint: {id_}", spoil, says)


def _saved(**choices: object) -> Callable[[Path], object]:
    return lambda run: save_run(run, network(**choices))


def _unlike(run: Path) -> None:
    save_run(run, network())
    save_run(run.with_name("other"), network(temperature=0.1))


def _damaged(run: Path) -> None:
    save_run(run, network())
    for file in run.glob("checkpoints/*/policy/**/*"):
        if file.is_file():
            file.write_bytes(file.read_bytes() + b"x")


CHECKPOINT_CASES = [
    _checkpoint("no such folder", lambda run: None, "run: ", "there is no such folder", "; give the folder"),
    _checkpoint("a file", lambda run: run.write_text("x"), "run: ", "is a file, not a folder", "; give"),
    _checkpoint("an empty folder", lambda run: run.mkdir(), "run: ", "the folder is empty", "; give"),
    _checkpoint(
        "another folder",
        lambda run: (run.mkdir(), (run / "notes.txt").write_text("x")),
        "run: ",
        "holds no checkpoint",
        "; give",
    ),
    _checkpoint(
        "nothing saved yet",
        lambda run: (run / "checkpoints").mkdir(parents=True),
        "run: ",
        "no whole checkpoint",
        "; give",
    ),
    _checkpoint("damaged", _damaged, "step_000000001: ", "is damaged", "; delete this folder"),
    _checkpoint(
        "of something else",
        lambda run: save_run(run, network(), stored_config={"model": 1}),
        "step_000000001, field 'network': ",
        "does not fit this version",
        "; use the version that trained it",
    ),
    _checkpoint(
        "of a later version",
        lambda run: save_run(run, network(), stored_config={"network": {"layers_of_the_future": 3}}),
        "field 'network': ",
        "'layers_of_the_future'",
        "; use the version",
    ),
    _checkpoint(
        "weights of another network",
        lambda run: save_run(run, network(), stored_config={"network": network(hidden=4)}),
        "step_000000001: ",
        "weights do not fit",
        "; use the version",
    ),
    _checkpoint(
        "flat, of another size",
        lambda run: save_run(run, network(encoder="flat"), experts=6, slots=32),
        "step_000000001: ",
        "for 6 experts of 32 slots",
        "has 2 experts of 5 slots",
        "; use a fleet of that size",
    ),
    _checkpoint("no folder", _saved(), "'checkpoint': ", "names no folder", "; give", give=("",)),
    _checkpoint("no folder after the name", _saved(), "names no folder", "; give", give=("mine=",)),
    _checkpoint("no name", _saved(), "'checkpoint': ", "'' is no name", "; use letters", give=("={}",)),
    _checkpoint("no file name", _saved(), "'checkpoint': ", "'my run'", "; use letters", give=("my run={}",)),
    _checkpoint("name of a heuristic", _saved(), "'random' is the name of", "; name it", give=("random={}",)),
    _checkpoint("name of a group", _saved(), "'all' is the name of", "; name it", give=("all={}",)),
    _checkpoint("twice", _saved(), "names 'run' twice", "; name each once", give=("{}", "x/run")),
    _checkpoint("name twice", _saved(), "names 'a' twice", "; name each", give=("a={}", "a={}")),
    _checkpoint(
        "run twice", _saved(), "is the same training run as", "; give it", give=("a={}", "a={}/checkpoints")
    ),
    _checkpoint("runs unlike", _unlike, "has another network", "; name it", give=("a={}", "a={}/../other")),
    _flag("stochastic without a learned router", "stochastic", "true", "'stochastic'", "; give --checkpoint"),
]

EVALUATE_CASES = [
    *CHECKPOINT_CASES,
    *TABLE_CASES,
    *(case for case in FLEET_CASES),
    *TRACE_CASES,
    *OUT_CASES,
    *(case for case in FLAG_CASES if case.id.startswith(("limit", "unknown", "half", "stray"))),
    _flag(
        "unknown policy", "policies", "random,projected_gredy", "'policy'", "did you mean 'projected_greedy'"
    ),
    _flag("a replay for a policy", "policies", "assigned", "'policy'", "assignment"),
    _flag("only a bound", "policies", "upper_bound", "'policies'", "no policy that routes"),
    _flag("no policies", "policies", "", "'policies'", "; "),
    _flag("unknown workload", "workloads", "poison", "'workloads'", "did you mean 'poisson'"),
    _flag("workload twice", "workloads", "gamma,gamma", "'workloads'", "twice"),
    _flag("no workloads but the trace", "arrival_rates", "0", "'arrival_rates'", "above 0"),
    _flag("unknown fleet", "fleet", "edge7", "'fleet'", "did you mean 'edge6'"),
    Case(
        "no default limit",
        lambda g: g.flags.pop("latency_limit_s"),
        ("'latency_limit_s'", "no default latency limit for fleet 'fleet'", "; give --latency_limit_s"),
    ),
    _flag(
        "rate not a number",
        "arrival_rates",
        "1,fast",
        "--arrival_rates",
        "'fast' is not a number",
        "; see --help",
    ),
    _flag(
        "rate NaN",
        "arrival_rates",
        "nan",
        "'arrival_rates'",
        "nan is out of range",
        "; give a finite number above 0",
    ),
    _flag("rate negative", "arrival_rates", "-1", "'arrival_rates'", "above 0"),
    _flag("rate twice", "arrival_rates", "2,2.0", "'arrival_rates'", "twice"),
    _flag("load not a number", "loads", "half", "--loads", "'half' is not a number"),
    _flag(
        "load infinite", "loads", "inf", "'loads'", "inf is out of range", "; give a finite number above 0"
    ),
    _flag("no loads", "loads", "", "'loads'", "; "),
    _flag("no seeds", "seeds", "0", "'seeds'", "; give a whole number from 1"),
    _flag("no requests", "num_requests", "0", "'num_requests'", "; give a whole number from 1"),
    _flag("seed negative", "seed", "-1", "'seed'", "out of range"),
    _flag("error level negative", "error_level", "-1", "'error_level'", "; give a finite number from 0"),
    _flag("error level NaN", "error_level", "nan", "'error_level'", "; give a finite number from 0"),
    _flag(
        "length bias infinite",
        "length_bias_log",
        "inf",
        "'length_bias_log'",
        "out of range",
        "; give a finite number from -10 to 10",
    ),
    _flag(
        "length noise negative",
        "length_noise_log",
        "-0.1",
        "'length_noise_log'",
        "; give a finite number from 0",
    ),
    _flag(
        "quality bias above 1",
        "quality_bias",
        "1.5",
        "'quality_bias'",
        "out of range",
        "; give a finite number from -1 to 1",
    ),
    _flag("quality noise NaN", "quality_noise", "nan", "'quality_noise'", "; give a finite number from 0"),
    _flag("gap CV 0", "gap_cv", "0", "'gap_cv'", "above 0"),
    _flag("burst of no time", "burst_mean_s", "0", "'burst_mean_s'", "above 0"),
    _flag("swing 1", "diurnal_swing", "1", "'diurnal_swing'", "below 1"),
    _flag("baseline not run", "baseline", "least_work", "'baseline'", "'least_work'", "; use one of random"),
    Case("workload trace without a file", lambda g: g.flags.pop("trace"), ("'trace'", "; give --trace=FILE")),
    _window("window empty", "0.6", "1.4", "trace.csv", "no request arrives in [0.6 s, 1.4 s)", "0..7 s"),
    _window("window reversed", "2", "1", "'trace_start_s'", "no window"),
    _window("window before the start", "-1", "1", "'trace_start_s'", "no window"),
    _window("window NaN", "0", "nan", "'trace_start_s'", "no window"),
    _window("window of one request", "0", "0.1", "trace.csv", "one instant", "; "),
    Case(
        "no expert holds any request",
        lambda g: (g.replace("fleet.csv", "64,60,", "64,3,"), g.replace("fleet.csv", "16,90,", "16,3,")),
        ("'kv_capacity_tokens'", "no expert's KV cache holds any request of workload 'trace'", "; "),
    ),
]


def _earlier(id_: str, content: str | None, *says: str) -> Case:
    """A case of a benchmark compared with an earlier run's file of this content."""

    def spoil(given: Given) -> None:
        if content is not None:
            given.path("earlier.jsonl").write_text(content)
        given.flags["compare"] = str(given.path("earlier.jsonl"))

    return Case(f"compare: {id_}", spoil, ("earlier.jsonl", *says, "; "))


def _axis(id_: str, text: str, *says: str) -> Case:
    """A case of one more axis."""
    return Case(f"axis: {id_}", lambda g: g.extra.append(f"--sweep={text}"), says)


def _flags(id_: str, flags: dict[str, str], *says: str) -> Case:
    return Case(id_, lambda g: g.flags.update(flags), says)


SWEEP_CASES = [
    *(case for case in CHECKPOINT_CASES if "of another network" in case.id or "name of a" in case.id),
    *(
        case
        for case in TABLE_CASES
        if "NaN" in case.id or "not the fleet's" in case.id or "of none" in case.id
    ),
    *(case for case in FLEET_CASES if "missing" in case.id or "NaN" in case.id),
    *(case for case in OUT_CASES),
    _axis("not NAME=VALUES", "load", "'sweep': 'load' is not NAME=VALUES", "; give"),
    _axis(
        "unknown", "arival_rate=1", "'arival_rate' is unknown (did you mean 'arrival_rate'?)", "; use one of"
    ),
    _axis(
        "renamed", "length_log_bias=1", "'length_log_bias' has a new name", "; give --sweep=length_bias_log="
    ),
    _axis("unknown profile field", "profile.decode_bas_s*=1", "did you mean 'decode_base_s'", "; use one of"),
    _axis("not a number", "load=1,fast", "'load': 'fast' is not a number", "; give"),
    _axis("NaN", "load=nan", "'load': 'nan' is not finite", "; give"),
    _axis("no range", "load=1:2", "'load': '1:2' is no range", "; give FROM:TO:COUNT"),
    _axis("no count", "load=1:2:0", "'load': the count '0'", "; give"),
    _axis("log of 0", "error_level=0:1:3:log", "no logarithm", "; give"),
    _axis("out of range", "load=0", "'load': 0 is out of range", "; give "),
    _axis("a value twice", "load=1,1", "'load': has a value twice", "; give each once"),
    _axis("twice", "latency_limit_s=1", "'latency_limit_s': is swept twice", "; give"),
    Case(
        "axis: load and rate",
        lambda g: g.extra.extend(["--sweep=load=1", "--sweep=arrival_rate=1"]),
        ("'load': contradicts arrival_rate", "; sweep one"),
    ),
    _axis(
        "of another workload", "burst_factor=2", "'burst_factor': is read by workload 'mmpp'", "; give --work"
    ),
    _axis(
        "of another policy", "margin=0.1", "'margin': is read by projected_greedy", "; add projected_greedy"
    ),
    _axis("of the paper's policy", "impact_weight=1", "is read by impact_greedy", "; add impact_greedy"),
    _axis(
        "no such expert", "profile.cat.max_running=1", "has no expert 'cat' (did you mean 'ant'?)", "; use"
    ),
    _axis(
        "a profile none may have",
        "profile.max_running=99",
        "max_running = 99",
        "max_batched_tokens",
        "; give",
    ),
    _axis("half a slot", "profile.max_running=1.5", "1.5 is not a whole number", "; give whole"),
    Case(
        "no limit",
        lambda g: g.flags.update(sweep="load=1"),
        ("'latency_limit_s'", "no default latency limit", "; give --latency_limit_s"),
    ),
    Case(
        "table: bias of its own",
        lambda g: (_write_table(g), g.extra.append("--sweep=quality_bias=0.1")),
        ("'quality_bias': ", "a table has its own", "; leave it out"),
    ),
    _flag("unknown policy", "policies", "randm", "'policy'", "did you mean 'random'"),
    _flag("a bound", "policies", "upper_bound", "is a bound", "; use one of"),
    _flag("no policies", "policies", "", "'policies'", "; "),
    Case("fleet twice", lambda g: g.extra.append(f"--fleet={g.flags['fleet']}"), ("'fleet'", "twice", "; ")),
    _flag("recorded workload", "workload", "trace", "'workload'", "not drawn from", "; use launch.evaluate"),
    _flag("unknown workload", "workload", "poison", "'workload'", "did you mean 'poisson'", "; use one of"),
    _flag("no seeds", "seeds", "0", "'seeds'", "; give a whole number from 1"),
    _flag("no requests", "num_requests", "0", "'num_requests'", "; give a whole number from 1"),
    _flag("no memory", "max_memory_gb", "0", "'max_memory_gb'", "; give a finite number above 0"),
    _flag("little memory", "max_memory_gb", "1e-6", "'max_memory_gb'", "do not hold a run", "; raise it"),
    _flag("no chunk", "chunk_requests", "0", "'chunk_requests'", "; give a whole number from 1"),
    _flag("unknown metric", "plot_metrics", "average_qo", "'plot_metrics'", "did you mean 'average_qos'"),
    _flag("capacity of nothing", "capacity", "load", "'capacity': needs target", "; give --capacity"),
    _flags(
        "capacity of an axis",
        {"capacity": "load", "target": "average_qos>=0.5", "sweep": "load=1"},
        "'load': is what the search is for",
        "; leave out",
    ),
    _flags(
        "target unknown",
        {"capacity": "load", "target": "within_limit_share>=0.9"},
        "is unknown",
        "; use one of",
    ),
    _flag("no process id", "coordinator_address", "localhost:1", "'num_processes': is missing", "; give all"),
    _flags(
        "no address",
        {"coordinator_address": "localhost", "num_processes": "2", "process_id": "0"},
        "'localhost' is not HOST:PORT",
        "; give",
    ),
    _flags(
        "process out of range",
        {"coordinator_address": "localhost:1", "num_processes": "2", "process_id": "2"},
        "'process_id': 2 is out of range",
        "; give a whole number from 0 to 1",
    ),
    _flags(
        "two ways to join", {"multihost": "true", "process_id": "0"}, "'process_id': contradicts", "; give"
    ),
    _flag("no device", "cpu_devices", "0", "'cpu_devices': 0 is out of range", "; give"),
]

BENCHMARK_CASES = [
    *(case for case in TRACE_CASES if "missing" in case.id or "order" in case.id),
    Case("out is a file", lambda g: Path(g.flags["out"]).write_text("mine"), ("out", "is a file", "--out")),
    _flag("unknown policy", "policy", "shortest_que", "'policy'", "did you mean 'shortest_queue'"),
    _flag("unknown scheduler", "scheduler", "fcfs", "'scheduler'", "prefill_first, chunked_prefill"),
    _flag("unknown what", "what", "simulator,decisions", "'what'", "did you mean 'decision'"),
    _flag("unknown preset", "preset", "edge", "'preset'", "did you mean 'edge6'"),
    _flag("nothing", "what", "", "'what'", "empty", "; give"),
    _flag("environments not numbers", "environments", "1,many", "--environments", "'many'", "; see"),
    _flag("no environments", "environments", "0", "'environments'", "multiples of 64"),
    _flag("environments not whole blocks", "environments", "100", "'environments'", "multiples of 64"),
    _flag("environments twice", "environments", "1,1", "'environments'", "twice"),
    _flag("no experts", "experts", "4,0", "'experts'", "a whole number from 1"),
    _flag("no slots", "slots", "0", "'slots'", "a whole number from 1"),
    _flag("no requests", "num_requests", "0", "'num_requests'", "a whole number from 1"),
    _flag("no repeats", "repeats", "0", "'repeats'", "a whole number from 1"),
    _flag("no calls", "calls", "1", "'calls'", "a whole number from 10"),
    _flag("no rate", "arrival_rate", "nan", "'arrival_rate'", "above 0"),
    _flag("reference runs negative", "reference_runs", "-1", "'reference_runs'", "a whole number from 0"),
    _flag("trace too short", "num_requests", "5", "'trace'", "only 4 requests", "--num_requests"),
    Case(
        "no such checkpoint",
        lambda g: g.flags.update(what="rollout", checkpoint=str(g.path("gone"))),
        ("gone", "no such folder", "; give"),
    ),
    _earlier("missing", None, "cannot be read"),
    _earlier("not JSON", "what,name\n", "row 1", "no JSON"),
    _earlier("of something else", '{"what": "peak memory"}\n', "row 1", "not of a benchmark"),
    _earlier(
        "of another format",
        '{"what": "benchmark", "format": 0, "settings": {}}\n',
        "row 1",
        "format 0, not 1",
    ),
    _earlier(
        "of other work",
        '{"what": "benchmark", "format": 1, "settings": {"policy": "random"}}\n',
        "'policy'",
        "measured other work (policy 'random', not 'shortest_queue')",
    ),
]

FIT_CASES = [
    *(case for case in TRACE_CASES if "no known" in case.id or "number" in case.id or "missing" in case.id),
    Case("nothing to do", lambda g: g.flags.pop("trace"), ("nothing to do", "; give --lookahead_dir")),
    _flag("trace without a name", "trace", "conv.csv", "'trace'", "not NAME=FILE"),
    _flag("no table", "lookahead_dir", "/nowhere", "/nowhere/scores_lengths.npz", "no such file", "; "),
    Case(
        "the second trace is bad",
        lambda g: g.extra.append(f"--trace=other={g.path('requests.csv')}.gone"),
        ("requests.csv.gone", "no such file", "; "),
    ),
    Case(
        "shorter than a bin",
        lambda g: g.replace("trace.csv", "7.0,", "2.0,"),
        ("trace.csv", "shorter than one bin", "; "),
    ),
]

LOG = "".join(
    f'{{"arrival_s": {3 * i}, "first_token_s": {3 * i + 1}, "last_token_s": {3 * i + 2}, '
    f'"prompt_tokens": {100 + 7 * i}, "output_tokens": {20 + i % 3}}}\n'
    for i in range(12)
)
ITERATIONS = "batch,prompt_tokens,context_tokens,duration_s\n" + "".join(
    f"0,{100 + i * i},0,0.{20 + i}\n{1 + i % 4},,{50 * i + 4},0.0{20 + i}\n" for i in range(12)
)


def _iterations(given: Given) -> None:
    """Give the iteration log in place of the request log."""
    given.flags["iterations"] = str(given.path("log.csv"))
    for name in ("requests", "fix"):
        given.flags.pop(name)


def _iteration(id_: str, old: str, new: str, row: int | None, field: str, *says: str) -> Case:
    """A case of an iteration log in which ``old`` became ``new``."""
    place = ("log.csv, ", *((f"row {row}, ",) if row else ()), f"field '{field}': ")
    return Case(
        f"iterations: {id_}", lambda g: (_iterations(g), g.replace("log.csv", old, new)), (*place, *says)
    )


def _written(id_: str, rows: list[str], *says: str) -> Case:
    """A case of an iteration log of these rows."""
    text = "batch,prompt_tokens,context_tokens,duration_s\n" + "".join(f"{row}\n" for row in rows)
    return Case(
        f"iterations: {id_}",
        lambda g: (_iterations(g), g.path("log.csv").write_text(text)),
        ("log.csv, field ", *says),
    )


def _request(id_: str, old: str, new: str, *says: str) -> Case:
    """A case of a request log in which ``old`` became ``new``."""
    return Case(f"requests: {id_}", lambda g: g.replace("log.jsonl", old, new), ("log.jsonl", *says))


def _roofline(id_: str, changes: dict[str, str | None], *says: str) -> Case:
    """A case of a roofline with these flags; None leaves one out."""
    good = {"parameters": "7e9", "layers": "32", "hidden_size": "4096", "kv_heads": "8", "head_dim": "128"}
    good |= {"bandwidth_gb_per_s": "900", "tflop_per_s": "150", "memory_gb": "24", "roofline": "true"}

    def spoil(given: Given) -> None:
        for name in ("requests", "kv_capacity_tokens", "fix"):
            given.flags.pop(name)
        given.flags.update({name: value for name, value in (good | changes).items() if value is not None})

    return Case(f"roofline: {id_}", spoil, says)


_PREFILLS = [f"0,{100 + i * i},0,0.{20 + i}" for i in range(12)]
_DECODES = [f"{1 + i % 4},,{50 * i + 4},0.0{20 + i}" for i in range(12)]

CALIBRATE_CASES = [
    *OUT_CASES[:1],
    *OUT_CASES[2:4],
    Case("log missing", lambda g: g.path("log.jsonl").unlink(), ("log.jsonl: ", "no such file", "; check")),
    Case("log a folder", lambda g: _as_folder(g, "log.jsonl"), ("log.jsonl: ", "cannot be read", "; ")),
    _write("log empty", "log.jsonl", b"\n\n", "holds no request", "; give"),
    _write("log binary", "log.jsonl", b"\x93\xff\xfe" * 9, "is not plain text", "; save"),
    _write("log a list", "log.jsonl", b"[1, 2]\n", "row 1: is no JSON object", "; give"),
    _request("broken JSON", '"prompt_tokens": 107,', '"prompt_tokens": ', "row 2: ", "no JSON", "; give"),
    _request("a stamp left out", '"arrival_s": 3, ', "", "row 2, field 'arrival_s': ", "empty", "; "),
    _request("a column left out", '"last_token_s": 2, ', "", "field 'last_token_s': ", "missing", "; give"),
    _request("NaN", '"first_token_s": 4', '"first_token_s": NaN', "row 2, field 'first_token_s': ", "finite"),
    _request("a text", '"first_token_s": 4', '"first_token_s": "x"', "row 2", "'x' is not a number", "; "),
    _request(
        "first token too soon", '"first_token_s": 4', '"first_token_s": 3', "row 2", "not after", "one clock"
    ),
    _request(
        "last before first", '"last_token_s": 5', '"last_token_s": 3.5', "row 2", "before the first", "; "
    ),
    _request("tokens in no time", '"last_token_s": 5', '"last_token_s": 4', "row 2", "more tokens", "; give"),
    _request("half a token", '"prompt_tokens": 107', '"prompt_tokens": 1.5', "row 2", "not an integer", "; "),
    _request("no answer", '"output_tokens": 21', '"output_tokens": 0', "row 2", "out of range", "from 1"),
    Case(
        "requests: too few",
        lambda g: g.path("log.jsonl").write_text("".join(LOG.splitlines(keepends=True)[:9])),
        ("log.jsonl: ", "9 requests", "too few", "; give at least 10"),
    ),
    _flag("requests: too few to fit", "test_share", "0.5", "log.jsonl: ", "6 requests", "--test_share"),
    _flag(
        "requests: beyond the cache", "kv_capacity_tokens", "150", "'kv_capacity_tokens'", "hold", "; give"
    ),
    Case(
        "requests: nobody meets",
        lambda g: g.flags.pop("fix"),
        (
            "log.jsonl, field 'decode_per_seq_s': ",
            "cannot tell decode_base_s and decode_per_seq_s apart (no two requests overlap)",
            "; add decoding at other batch sizes, or give --fix=decode_per_seq_s=VALUE",
        ),
    ),
    _iteration("no time", "0,100,0,0.20", "0,100,0,0", 2, "duration_s", "out of range", "above 0"),
    _iteration("negative time", "0,100,0,0.20", "0,100,0,-0.2", 2, "duration_s", "out of range", "above 0"),
    _iteration("NaN", "0,100,0,0.20", "0,100,0,nan", 2, "duration_s", "not finite", "; "),
    _iteration("no work", "0,100,0,0.20", "0,,0,0.20", 2, "batch", "neither", "; remove"),
    _iteration("context too small", "2,,54,", "2,,1,", 5, "context_tokens", "below one token", "; give"),
    _iteration("context of nobody", "0,100,0,", "0,100,9,", 2, "batch", "is context", "; count"),
    _iteration("prompts not numbers", "0,100,0", "0,100+20,0", 2, "prompt_tokens", "'100+20'", "; write"),
    _iteration("column missing", "context_tokens", "context", None, "context_tokens", "missing", "; give"),
    _iteration("sums beside prompts", "batch,", "prefill_tokens,", None, "prompt_tokens", "beside", "; keep"),
    _written("too few", [*_PREFILLS, *_DECODES[:4]], "'decode_base_s': ", "4 decode", "too few", "; give"),
    _written(
        "one batch size",
        [*_PREFILLS, *(f"8,,{100 * i + 8},0.02" for i in range(12))],
        "'decode_per_seq_s': ",
        "cannot tell decode_base_s and decode_per_seq_s apart (every decode iteration has batch 8)",
        "; add decoding at other batch sizes, or give --fix=decode_per_seq_s=VALUE",
    ),
    _written(
        "one prompt length",
        [*(["0,512,0,0.05"] * 12), *_DECODES],
        "'prefill_per_token_sq_s': ",
        "prefill_base_s, prefill_per_token_s and prefill_per_token_sq_s",
        "; add ",
        "--fix=",
    ),
    _flag("column mapped to nothing", "column", "arrival_s=when", "'arrival_s': ", "'when'", "; map it"),
    _flag("column unknown", "column", "arival_s=when", "'column': ", "did you mean 'arrival_s'", "; map"),
    _flag("column without a name", "column", "when", "'column': ", "not OURS=THEIRS", "; write"),
    _flag("fix without a value", "fix", "decode_base_s", "'fix': ", "not NAME=VALUE", "; write"),
    _flag("fix unknown", "fix", "decode_bas_s=1", "'fix': ", "did you mean 'decode_base_s'", "; use"),
    _flag("fix negative", "fix", "decode_per_seq_s=-1", "'fix': ", ">= 0", "; give"),
    _flag("fix not a number", "fix", "decode_per_seq_s=2ms", "'fix': ", "'2ms'", "; give"),
    Case(
        "fix twice",
        lambda g: g.extra.extend(["--fix=decode_base_s=1", "--fix=decode_base_s=2"]),
        ("'fix': ", "decode_base_s is given twice", "; give"),
    ),
    _flag("all held out", "test_share", "1", "'test_share': ", "out of range", "; give"),
    _flag(
        "budget below slots", "max_batched_tokens", "9", "'max_batched_tokens': ", "below max_running", "; "
    ),
    _flag("expert called drop", "expert", "drop", "'expert': ", "reserved", "; choose"),
    _flag("no slots", "max_running", "0", "'max_running': ", "out of range", "; give"),
    _flag(
        "unknown scheduler",
        "scheduler",
        "prefil_first",
        "'scheduler'",
        "did you mean 'prefill_first'",
        "; use one of",
    ),
    Case(
        "no KV capacity",
        lambda g: g.flags.pop("kv_capacity_tokens"),
        ("'kv_capacity_tokens': ", "missing", "; give"),
    ),
    Case("no source", lambda g: g.flags.pop("requests"), ("'iterations': ", "no source", "; give one of")),
    _flag("two sources", "iterations", "log.csv", "'requests': ", "iterations and requests", "; give one"),
    Case(
        "append to no fleet",
        lambda g: g.flags.update(append_to=str(g.path("gone.csv"))),
        ("gone.csv: ", "no such file", "; check"),
    ),
    Case(
        "append an expert twice",
        lambda g: g.flags.update(append_to=str(g.path("fleet.csv")), expert="ant"),
        ("fleet.csv, field 'expert': ", "'ant' is there already", "; give"),
    ),
    _roofline("no layers", {"layers": None}, "'layers': ", "missing", "; "),
    _roofline(
        "more than the bandwidth", {"bandwidth_efficiency": "1.5"}, "'bandwidth_efficiency': ", "; give"
    ),
    _roofline("weights too large", {"memory_gb": "8"}, "'memory_gb': ", "do not hold 14 GB", "; give"),
    _roofline("no memory", {"memory_gb": None}, "'kv_capacity_tokens': ", "missing", "--memory_gb"),
    _roofline("no FLOPs", {"tflop_per_s": "0"}, "'tflop_per_s': ", "out of range", "; give"),
    Case(
        "roofline: its flags without it",
        lambda g: g.flags.update(layers="32"),
        ("'layers': needs --roofline", "; give --roofline, or leave it out"),
    ),
    _roofline("with a fix", {"fix": "decode_base_s=1"}, "'fix': ", "fits no log", "; leave out"),
]

CASES = {
    "launch.calibrate": CALIBRATE_CASES,
    "launch.simulate": [*FLEET_CASES, *REQUEST_CASES, *OUT_CASES, *FLAG_CASES, *SIMULATE_CASES],
    "launch.evaluate": EVALUATE_CASES,
    "launch.sweep": SWEEP_CASES,
    "launch.benchmark": BENCHMARK_CASES,
    "launch.fit_tables": FIT_CASES,
}
PAIRS = [
    pytest.param(module, case, id=f"{module.removeprefix('launch.')}: {case.id}")
    for module, cases in CASES.items()
    for case in cases
]


@pytest.fixture
def given(request: pytest.FixtureRequest, tmp_path: Path, inputs: Path) -> Given:
    """Good input of the launcher under test."""
    module = request.node.callspec.params["module"]
    (inputs / "trace.csv").write_text(TRACE)
    (inputs / "log.jsonl").write_text(LOG)
    (inputs / "log.csv").write_text(ITERATIONS)
    return Given(inputs, {**_good_flags(module, inputs), "out": str(tmp_path / "out")})


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return every file and folder below ``folder``, with the files' content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def check_refused(code: int, out: str, err: str, says: tuple[str, ...]) -> None:
    """Check that a launcher ended with one clear line that says these texts in this order."""
    assert code == 2, err
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, f"more than one line: {err}"
    assert err.startswith("error: ")
    assert "Traceback" not in err
    rest = err
    for text in says:
        assert text in rest, f"{text!r} is not where expected in: {err}"
        rest = rest[rest.index(text) + len(text) :]
    assert "; " in err
    assert err.rpartition("; ")[2].strip()


@pytest.mark.parametrize(("module", "case"), PAIRS)
def test_refused_in_one_line(launch, given: Given, tmp_path: Path, module: str, case: Case):
    case.spoil(given)
    before = tree(tmp_path)
    ended = launch(module, *given.arguments)
    check_refused(ended.code, ended.out, ended.err, case.says)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("module", ["launch.simulate", "launch.evaluate", "launch.sweep", "launch.calibrate"])
def test_enough_kinds(module: str):
    assert len({case.id for case in CASES[module]}) >= 25


@pytest.mark.parametrize(("module", "case_id"), [("launch.evaluate", "baseline not run")])
def test_refused_by_a_real_process(given: Given, tmp_path: Path, module: str, case_id: str):
    case = next(case for case in CASES[module] if case.id == case_id)
    case.spoil(given)
    before = tree(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", module, *given.arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    check_refused(ended.returncode, ended.stdout, ended.stderr, case.says)
    assert tree(tmp_path) == before
