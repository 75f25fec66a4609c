"""The console command: help, an unknown command, and the launcher that a name runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from launch import main as console

LAUNCH = Path(console.__file__).parent


def test_every_launcher_is_a_command_with_a_line_of_help(capsys):
    launchers = {path.stem for path in LAUNCH.glob("*.py") if 'if __name__ == "__main__"' in path.read_text()}
    assert set(console.COMMANDS) == launchers
    with pytest.raises(SystemExit) as stop:
        console.main(["--help"])
    assert stop.value.code == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.split("\n") if line[:2] == "  ")
    assert set(lines) == launchers
    assert lines["sweep"] in (LAUNCH / "sweep.py").read_text()


def test_no_command_and_an_unknown_one_end_with_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        console.main([])
    assert stop.value.code == 2
    assert "usage: qos-jax" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        console.main(["evalute", "--out=x"])
    assert stop.value.code == 2
    assert "'evalute' is no command (did you mean 'evaluate'?)" in capsys.readouterr().err


def test_a_command_runs_its_launcher_as_main_with_the_other_arguments(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["qos-jax", "train", "--preset=quick"])
    monkeypatch.setattr(runpy, "run_module", lambda *args, **kw: seen.append((args, kw, sys.argv[1:])))
    console.main()
    assert seen == [(("launch.train",), {"run_name": "__main__", "alter_sys": True}, ["--preset=quick"])]
