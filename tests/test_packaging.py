"""The wheel's packages, which pyproject.toml lists by name, are those that there are."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_listed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {
        ".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "qos_jax").rglob("__init__.py")
    }
    assert found | setuptools["package-dir"].keys() == set(setuptools["packages"])


def test_every_file_that_the_code_reads_is_shipped():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    shipped = {
        file
        for pattern in setuptools["package-data"]["qos_jax.data"]
        for file in ROOT.glob(f"data/{pattern}")
    }
    figures = {file for kind in ("csv", "json", "jsonl") for file in (ROOT / "data").rglob(f"*.{kind}")}
    assert figures == shipped
