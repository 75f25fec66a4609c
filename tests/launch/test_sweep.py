"""``launch.sweep`` end to end: one file, to the byte, whatever the devices, processes and kills."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qos_jax.simulation.metrics import METRICS
from tests.launch.conftest import FLEET

ROOT = Path(__file__).parents[2]
# Two fleets of one shape, many chunks, requests that fit.
FLEETS = {"small.csv": FLEET, "fast.csv": FLEET.replace("0.02,0.001", "0.01,0.001")}
GRID = {
    "policies": "random",
    "num_requests": 12,
    "seeds": 4,
    "chunk_requests": 1,
    "workload": "azure_code",
}
RATES, LIMITS = 16, 12
LIMITS_S = [*(f"{limit_s:.3g}" for limit_s in np.linspace(0.05, 0.5, LIMITS - 1)), "inf"]
AXES = [f"arrival_rate=1:9:{RATES}", f"latency_limit_s={','.join(LIMITS_S)}"]
CELLS = 2 * RATES * LIMITS


def arguments(folder, out, **flags):
    fleets = [f"--fleet={folder / name}" for name in FLEETS]
    axes = [f"--sweep={axis}" for axis in AXES]
    return [*fleets, *axes, *(f"--{name}={value}" for name, value in (GRID | flags | {"out": out}).items())]


def rows_of(out):
    with open(out / "sweep.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def lines_of(out):
    file = out / "sweep.csv"
    return file.read_bytes().count(b"\n") - 1 if file.is_file() else 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    for name, text in FLEETS.items():
        (folder / name).write_text(text.replace(",60,", ",6000,").replace(",90,", ",9000,"))
    return folder


@pytest.fixture(scope="module")
def whole(launch, folder):
    """An uninterrupted sweep on one device, and what it said."""
    ended = launch("launch.sweep", *arguments(folder, folder / "whole", plots=True))
    assert ended.code == 0, ended.err
    return folder / "whole", ended


def start(folder, out, *more, **flags):
    """Start the sweep in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch.sweep", *arguments(folder, out, plots=False, **flags), *more],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after_rows(process, out, rows=1):
    """Kill a process as soon as its file has some rows, but not all."""
    begin = time.monotonic()
    while lines_of(out) < rows and process.poll() is None:
        assert time.monotonic() - begin < 900
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)


def test_what_it_leaves(whole):
    out, ended = whole
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    plots = {
        f"plots/{kind}_{name}_{slug}.png"
        for kind in ("lines", "heat")
        for name in ("average_qos", "share_within_limit")
        for slug in {row["fleet"].replace("/", "_").strip("_") for row in rows_of(out)}
    }
    assert files == {"config.json", "sweep.csv"} | plots
    rows = rows_of(out)
    assert [int(row["cell"]) for row in rows] == list(range(CELLS))
    assert f"{CELLS:,} cells x 1 policies x 4 seeds of 12 requests" in ended.err
    assert "blocks of 64 runs" in ended.err
    assert "random" in ended.out
    assert all(f"{name}_ci_low" in rows[0] for name in METRICS)
    # Fleets slowest, the last axis fastest; a longer limit is never missed more often.
    share = np.array([float(row["share_within_limit"]) for row in rows]).reshape(2, RATES, LIMITS)
    assert np.all(np.diff(share, axis=2) >= 0)
    assert [float(row["latency_limit_s"]) for row in rows[:LIMITS]] == [float(one) for one in LIMITS_S]
    completed = [float(row["completed"]) / float(row["arrived"]) for row in rows]
    np.testing.assert_allclose(share[..., -1], np.reshape(completed, share.shape)[..., -1], rtol=1e-6)
    assert share[1].sum() > share[0].sum()


def test_killed_on_two_devices_and_resumed_on_one(launch, folder, whole):
    out = folder / "killed"
    process = start(folder, out, cpu_devices=2)
    kill_after_rows(process, out)
    told = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, told
    assert "on 2 device(s)" in told
    done = lines_of(out)
    assert 0 < done < CELLS
    with open(out / "sweep.csv", "ab") as stream:
        stream.write(b"7,random,cut sh")  # as a kill within a write leaves it
    ended = launch("launch.sweep", *arguments(folder, out, plots=False, resume=True))
    assert ended.code == 0, ended.err
    assert (out / "sweep.csv").read_bytes() == (whole[0] / "sweep.csv").read_bytes()
    again = launch("launch.sweep", *arguments(folder, out, plots=False, resume=True))
    assert "compiled" not in again.err  # nothing was left to do
    assert (out / "sweep.csv").read_bytes() == (whole[0] / "sweep.csv").read_bytes()


def test_a_lost_process_ends_the_run_and_what_two_wrote_is_kept(launch, folder, whole):
    out = folder / "hosts"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    # A device each. The second writes nothing: only the first has the folder.
    flags = {"coordinator_address": address, "num_processes": 2, "cpu_devices": 1}
    first = start(folder, out, process_id=0, **flags)
    second = start(folder, folder / "nobody", process_id=1, **flags)
    kill_after_rows(second, out, rows=2)
    told = first.communicate()[1]
    second.communicate()
    assert "on 2 device(s)" in told
    assert not (folder / "nobody").exists()
    done = lines_of(out)
    assert 0 < done < CELLS
    assert first.returncode != 0
    assert "lost touch with another process" in told or "another task died" in told
    ended = launch("launch.sweep", *arguments(folder, out, plots=False, resume=True))
    assert ended.code == 0, ended.err
    assert (out / "sweep.csv").read_bytes() == (whole[0] / "sweep.csv").read_bytes()


def test_the_largest_rate(launch, folder):
    ended = launch(
        "launch.sweep",
        f"--fleet={folder / 'fast.csv'}",
        "--sweep=latency_limit_s=0.04,0.4",
        "--policies=random",
        "--num_requests=12",
        "--seeds=2",
        "--capacity=arrival_rate",
        "--capacity_range=0.5,200",
        "--capacity_tolerance=0.2",
        "--target=share_within_limit>=0.6",
        f"--out={folder / 'capacity'}",
    )
    assert ended.code == 0, ended.err
    rows = rows_of(folder / "capacity")
    rates = [float(row["arrival_rate_per_s"] or 0) for row in rows]
    assert rates[0] < rates[1]
    for row in rows:
        if row["outcome"] == "found":
            assert float(row["share_within_limit"]) >= 0.6
            rate, fails = float(row["arrival_rate_per_s"]), float(row["fails_at_per_s"])
            assert rate < fails <= rate * 1.2 * 1.001
    assert (folder / "capacity/plots").is_dir()
    assert "largest rate with share_within_limit met" in ended.out
