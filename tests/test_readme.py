"""What the README shows works: its Python runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m (launch\.\w+) (.*)$", README, flags=re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 3
    assert len(blocks("python")) >= 1


def test_python_runs():
    # In a process of its own: under the suite's strict settings a user's code need not run.
    # Each block goes on from the one before.
    code = "\n".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout
    assert done.stdout.strip()


@pytest.mark.parametrize("module", sorted({module for module, _ in COMMANDS}))
def test_commands_parse(module):
    # A process for all commands of a launcher; after each, its flags are as if never given.
    program = (
        "import importlib, json, sys\nfrom absl import flags\n"
        "module = importlib.import_module(sys.argv[1])\n"
        "for command in json.loads(sys.argv[2]):\n"
        "    print(command, file=sys.stderr)\n"
        "    flags.FLAGS([sys.argv[1], *command])\n"
        "    flags.FLAGS.unparse_flags()\n"
        "    for name in flags.FLAGS:\n"
        "        flags.FLAGS[name].unparse()\n"
    )
    commands = [shlex.split(given) for name, given in COMMANDS if name == module]
    done = subprocess.run(
        [sys.executable, "-c", program, module, json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(commands), done.stderr


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README
