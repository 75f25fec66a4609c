"""What the pages show works: Python of the README runs, commands parse, links lead somewhere, lines fit."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pages = runpy.run_path(str(ROOT / ".ci" / "pages.py"))  # which runs in CI what is parsed here
PAGES, blocks, commands = pages["PAGES"], pages["blocks"], pages["commands"]
README = ROOT / "README.md"
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def test_there_is_something_to_check():
    assert commands(README)
    assert blocks(README.read_text(encoding="utf-8"), "python")
    for room in (ROOT / "qos_jax").iterdir():
        if (room / "__init__.py").is_file():
            assert (room / "README.md") in PAGES, f"{room.name}/ has no page"


def test_python_of_the_readme_runs():
    # In a process of its own: under the suite's strict settings a user's code need not run.
    code = blocks(README.read_text(encoding="utf-8"), "python")
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
    by_launcher: dict[str, list[list[str]]] = {}
    for page in PAGES:
        for (name, *given), _ in commands(page):
            by_launcher.setdefault(name, []).append(given)
    assert len(by_launcher) >= 7
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(by_launcher)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == sum(map(len, by_launcher.values())), done.stderr


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_prose_fits_a_screen(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]


def test_the_readme_is_read_in_five_minutes():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert max(map(len, lines)) <= 120
