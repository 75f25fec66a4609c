"""The launchers' real entry, run inside the test process, and small input files to run them on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import absl.logging
import pytest
from absl import flags

FLEET = """\
expert,max_running,max_waiting,max_batched_tokens,kv_capacity_tokens,prefill_base_s,prefill_per_token_s,\
prefill_per_token_sq_s,decode_base_s,decode_per_seq_s,decode_per_context_token_s,network_rtt_s,busy_power_w,\
idle_power_w
ant,2,2,64,60,0.01,0.0001,0.0000001,0.02,0.001,0.00001,0.005,300,50
bee,3,1,16,90,0.02,0.0002,0.0,0.03,0.002,0.00002,0.01,200,40
"""
REQUESTS = """\
arrival_s,prompt_tokens,output_tokens.ant,output_tokens.bee,quality.ant,quality.bee,\
predicted_output_tokens,predicted_quality.ant,predicted_quality.bee,expert
0.0,20,10,12,0.5,1,11,0.6,0.9,ant
0.05,30,25,8,0.25,0.75,12,0.3,0.7,bee
0.5,10,5,6,1,0,5,0.9,0.2,ant
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a launcher ended."""

    code: int
    out: str
    err: str


Launch = Callable[..., Outcome]


@pytest.fixture(scope="session")
def launch() -> Launch:
    """Return ``launch(module, *arguments)``: what ``python -m module arguments`` does, without a new process.

    The flags that the module defines are removed again, so that launchers with flags of the same name
    run in one process.
    """
    return _launch


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Return a folder with a good ``fleet.csv`` and ``requests.csv``."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    (folder / "fleet.csv").write_text(FLEET)
    (folder / "requests.csv").write_text(REQUESTS)
    return folder


def _launch(module: str, *arguments: str) -> Outcome:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(_absl_restored(spec.origin, err))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sys, "argv", [spec.origin, *arguments])
        patch.setattr("launch.common.exit_now", sys.exit)  # which would end the tests
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = 0 if stop.code is None else int(stop.code)
    return Outcome(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _absl_restored(main_file: str, err: io.StringIO):
    """Send absl's log to ``err``, and leave its flags and the root logger as they were."""
    root, handler = logging.getLogger(), absl.logging.get_absl_handler().python_handler
    handlers, level, stream = list(root.handlers), root.level, handler.stream
    handler.stream = err
    absl.logging.use_absl_handler()  # as `app.run` does in a new process
    try:
        yield
    finally:
        handler.stream, root.handlers[:] = stream, handlers
        root.setLevel(level)
        for name in list(flags.FLAGS):
            if flags.FLAGS.find_module_defining_flag(name) == main_file:
                delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
