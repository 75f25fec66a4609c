"""``launch.simulate --sessions`` end to end: turns wait for answers, and what is refused."""

import csv
import json

import numpy as np
import pytest

from qos_jax.simulation.metrics import SESSION_METRICS
from tests.launch.conftest import FLEET

USERS, TURNS = 5, 40
GIVEN = {
    "sessions": True,
    "users": USERS,
    "num_requests": TURNS,
    "think_s": 3,
    "policy": "prefix_load",
    "latency_limit_s": 0.1,
    "prefix_entries": 8,
    "system_prompts": 2,
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    file = tmp_path_factory.mktemp("sessions") / "fleet.csv"
    file.write_text(FLEET.replace(",64,60,", ",2048,6000,").replace(",16,90,", ",2048,9000,"))
    return file


def arguments(fleet, out, **flags):
    return [f"--{name}={value}" for name, value in ({"fleet": fleet, "out": out} | GIVEN | flags).items()]


def test_users_wait_for_answers(launch, fleet, tmp_path):
    out = tmp_path / "run"
    ended = launch("launch.simulate", *arguments(fleet, out, plots=True))
    assert ended.code == 0, ended.err
    with open(out / "records.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == TURNS
    answered_s = dict.fromkeys(range(USERS), -np.inf)
    turns = dict.fromkeys(range(USERS), 0)
    for row in rows:
        user, arrival_s = int(row["session"]), float(row["arrival_s"])
        assert int(row["turn"]) == turns[user]
        assert arrival_s >= answered_s[user]
        answered_s[user], turns[user] = arrival_s + float(row["latency_s"] or 0), turns[user] + 1
    assert max(turns.values()) > 2
    summary = json.loads((out / "summary.json").read_text())
    hours = USERS * summary["makespan_s"] / 3600
    assert summary["turns_per_session_hour"] == pytest.approx(summary["completed"] / hours)
    assert summary["cached_tokens"] == sum(int(row["cached_tokens"]) for row in rows if row["latency_s"]) > 0
    assert SESSION_METRICS.keys() < summary.keys()
    assert summary["sessions"]["users"] == USERS
    assert f"{USERS} users who think 3 s" in ended.out
    assert "turns per session-hour" in ended.out
    plots = {path.stem for path in (out / "plots").iterdir()}
    assert plots == {"timeline", "latency_cdf", "prefix_hits"}

    refused = launch("launch.simulate", *arguments(fleet, out, think_s=4))  # another run
    assert refused.code == 2
    assert "differs in sessions" in refused.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"sessions": False}, "field 'users': needs --sessions; give --sessions, or leave it out"),
        ({"requests": "requests.csv"}, "field 'requests': users of --sessions say what is asked for"),
        ({"views": "own"}, "where routers see everything and servers have no faults; leave out"),
        ({"outage_per_s": 0.1, "prefix_entries": 0}, "field 'sessions': users are simulated where"),
        ({"policy": "assigned"}, "'assigned' replays a column of a file"),
        ({"think_s": 0}, "field 'think_s': 0.0 is out of range"),
        ({"users": 0}, "field 'users': 0 is out of range"),
    ],
    ids=str,
)
def test_refused(launch, fleet, tmp_path, flags, says):
    ended = launch("launch.simulate", *arguments(fleet, tmp_path / "run", **flags))
    assert ended.code == 2
    assert says in ended.err
    assert not (tmp_path / "run").exists()


def test_without_requests_both_sources_are_named(launch, fleet, tmp_path):
    given = [f"--fleet={fleet}", "--policy=random", "--latency_limit_s=0.1", f"--out={tmp_path / 'run'}"]
    ended = launch("launch.simulate", *given)
    assert ended.code == 2
    assert "field 'requests': is missing; give --requests=FILE, or --sessions" in ended.err
