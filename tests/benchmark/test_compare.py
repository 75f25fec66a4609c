"""Ratios to an earlier run: the right rows matched, what cannot be compared refused in one line."""

import dataclasses
import json

import pytest

from qos_jax.benchmark.benchmark import BenchmarkConfig
from qos_jax.benchmark.compare import header, read_speeds, render_comparison, same_machine
from qos_jax.benchmark.plots import throughput
from qos_jax.benchmark.report import render_speed, render_speeds
from qos_jax.benchmark.row import REFERENCE, SIMULATOR, Speed, speed_of
from qos_jax.errors import InputError

SETTINGS = {"launcher": "benchmark", **dataclasses.asdict(BenchmarkConfig()), "machine": {"cores": 2}}


def speed(environments=2, **changes):
    given = Speed(SIMULATOR, "shortest_queue", environments, 6, 16, 80, 2.0, 4.0, figures={"mean_qos": 0.5})
    return dataclasses.replace(given, **changes)


def write(path, *speeds, settings=SETTINGS, **head):
    first = header(settings, 1e9) | head
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, *(s.record() for s in speeds))))
    return path


def test_rows_come_back_and_are_matched(tmp_path):
    slow = [speed(2, cpu_s=8.0), speed(4), speed(8)]
    before = read_speeds(write(tmp_path / "m.jsonl", *slow), SETTINGS)
    assert before == slow
    text = render_comparison([speed(2), speed(4, cpu_s=2.0, wall_s=0.5), speed(16)], before)
    assert "2.00" in text
    assert "4.00" in text  # twice per CPU-second and four times per second
    assert "ratios per CPU-second: 2.00" in text
    assert "1 rows only measured now, 1 only before" in text
    assert render_comparison([speed(16)], before) == "not compared: 1 rows only measured now, 3 only before"


def test_other_sizes_and_another_machine_may_be_compared(tmp_path):
    file = write(tmp_path / "m.jsonl", speed(), settings=SETTINGS | {"experts": [6], "machine": {}})
    assert read_speeds(file, SETTINGS) == [speed()]
    assert not same_machine(file, SETTINGS)
    assert same_machine(write(file, speed()), SETTINGS)


def test_rates_and_the_memory_floor():
    row = speed(moved_bytes_per_decision=100.0).placed(bandwidth_bytes_per_s=1e5, peak_bytes=7)
    assert (row.decisions_per_s, row.decisions_per_cpu_s, row.peak_bytes) == (40, 20, 7)
    assert row.floor_share == pytest.approx(80 * 100 / 1e5 / 2.0)
    assert speed().placed(1e5, 7).floor_share is None
    text = render_speeds([speed(what=REFERENCE, cpu_s=80.0), row])
    assert "20.0x" in text
    assert "4.00%" in text
    assert "mean_qos 0.5" in render_speed(row)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\xff\xfe", "not plain text"),
        (b"what,is\n", "row 1: is no JSON"),
        (b"[1]\n", "row 1: is no JSON object"),
        (b'{"what": "peak memory"}\n', "not of a benchmark"),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path, content, says):
    file = tmp_path / "m.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"m.jsonl.*{says}.*; give the metrics.jsonl"):
        read_speeds(file, SETTINGS)


def test_incompatible_runs_are_refused(tmp_path):
    file = tmp_path / "m.jsonl"
    with pytest.raises(InputError, match="cannot be read"):
        read_speeds(file, SETTINGS)
    with pytest.raises(
        InputError, match=r"'num_requests': measured other work .*512, not 256.*--num_requests"
    ):
        read_speeds(write(file, speed(), settings=SETTINGS | {"num_requests": 512}), SETTINGS)
    with pytest.raises(InputError, match="has format 7, not 1"):
        read_speeds(write(file, speed(), format=7), SETTINGS)
    with pytest.raises(InputError, match="holds no measurement"):
        read_speeds(write(file), SETTINGS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cpu_s": None}, "'cpu_s' is None"),
        ({"cpu_s": "4"}, "'cpu_s' is '4'"),
        ({"cpu_s": 0.0}, "'cpu_s' is 0.0"),
        ({"experts": 6.5}, "'experts' is 6.5"),
        ({"decisions": True}, "'decisions' is True"),
        ({"figures": []}, "'figures' is"),
    ],
)
def test_malformed_rows_are_refused(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        speed_of(speed().record() | changes)
    record = speed().record()
    del record["name"]
    file = write(tmp_path / "m.jsonl", speed())
    file.write_text(file.read_text() + json.dumps(record) + "\n")
    with pytest.raises(InputError, match="row 3: 'name' is missing"):
        read_speeds(file, SETTINGS)


def test_plots_show_what_was_measured_at_two_sizes():
    pytest.importorskip("matplotlib")
    rows = [speed(1), speed(4), speed(2, slots=8), speed(what=REFERENCE), speed(2, name="random")]
    (axes,) = throughput(rows, "environments").axes
    (line,) = axes.lines
    assert list(line.get_xdata()) == [1, 4]
    assert list(line.get_ydata()) == [20, 20]
    assert throughput(rows, "experts") is None
