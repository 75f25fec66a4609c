"""What the README shows works: its Python runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

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


def test_commands_parse():
    # In a process of their own, one for all; after each command, its launcher's flags are as if never given;
    # after each launcher they are gone, since others define flags of the same names.
    program = (
        "import importlib, json, sys\nfrom absl import flags\n"
        "for name, commands in json.loads(sys.argv[1]).items():\n"
        "    importlib.import_module(name)\n"
        "    for command in commands:\n"
        "        print(name, command, file=sys.stderr)\n"
        "        flags.FLAGS([name, *command])\n"
        "        flags.FLAGS.unparse_flags()\n"
        "        for flag in flags.FLAGS:\n"
        "            flags.FLAGS[flag].unparse()\n"
        "    for flag in list(flags.FLAGS):\n"
        "        if flags.FLAGS.find_module_defining_flag(flag) in (name, sys.argv[0]):\n"
        "            delattr(flags.FLAGS, flag)\n"
    )
    commands: dict[str, list[list[str]]] = {}
    for name, given in COMMANDS:
        commands.setdefault(name, []).append(shlex.split(given))
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(COMMANDS), done.stderr


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README
