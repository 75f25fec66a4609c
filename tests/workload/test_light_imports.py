"""Importing the room costs little: what is slow to import is imported where it is used."""

import ast
from pathlib import Path

ROOM = Path(__file__).resolve().parents[2] / "qos_jax" / "workload"
SLOW = {"scipy", "sklearn", "matplotlib", "pandas", "tabulate"}


def test_no_slow_import_at_the_top_of_a_file():
    found = set()
    for file in ROOM.glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {(file.name, name) for name in names if name.partition(".")[0] in SLOW}
    assert not found
