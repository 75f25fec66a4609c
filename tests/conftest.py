"""Strict settings for the whole suite, set before JAX is imported, and the data that does not ship."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from tests.xla_flags import quick_to_compile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compiling; the unoptimised programs are as right. XLA_FLAGS= (set, and empty)
# tests the optimised ones. The processes that tests start have the same.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = quick_to_compile()
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a test must not pass on what an earlier one compiled

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The same examples every time, so that a failure is a change in the code; "thorough" looks further.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# Tracing makes millions of objects that live as long as the program: looking through them for garbage after
# every seven hundred, as Python does, is a tenth of the suite's time.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real traces and recordings beside the repository; skip where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real data in {folder / 'data'}, which the repository does not ship")
    return folder
