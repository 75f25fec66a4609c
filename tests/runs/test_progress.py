"""Progress: plain lines where there is no terminal, a bar where there is one."""

import io

import pytest

from qos_jax.runs.progress import progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_with_rate_and_time_left():
    out, now = io.StringIO(), [0.0]
    with progress(100_000, stream=out, clock=lambda: now[0]) as advance:
        for step_s, count in ((1.0, 4_000), (4.0, 13_000), (1.0, 3_000), (4.0, 40_000), (6.0, 40_000)):
            now[0] += step_s
            advance(count)
    assert out.getvalue().splitlines() == [
        "17,000/100,000 requests 3,400/s ETA 24 s",
        "60,000/100,000 requests 6,000/s ETA 7 s",
        "100,000/100,000 requests 6,250/s in 16.0 s",
    ]


def test_a_failure_does_not_report_an_end():
    out = io.StringIO()
    with pytest.raises(RuntimeError), progress(10, "runs", description="azure", stream=out):
        raise RuntimeError
    assert out.getvalue() == ""


def test_a_job_that_takes_no_time_divides_by_nothing():
    out = io.StringIO()
    with progress(2, "runs", description="azure", stream=out, interval_s=0, clock=lambda: 0.0) as advance:
        advance(0)
        advance(2)
    assert out.getvalue().splitlines() == [
        "azure: 0/2 runs 0/s ETA unknown",
        "azure: 2/2 runs in 0.0 s",
    ]


def test_a_terminal_gets_a_bar():
    out = _Terminal()
    with progress(10, stream=out) as advance:
        advance(10)
    assert "10/10" in out.getvalue()
    assert "requests" in out.getvalue()
