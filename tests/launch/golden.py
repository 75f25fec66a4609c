"""Records as the reference works them out; ``python -m tests.launch.golden`` writes the golden ones again."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from qos_jax.serving.reference import COMPLETED, DROPPED, simulate_fleet
from qos_jax.simulation.records import CSV_COLUMNS
from qos_jax.workload import read_fleet, read_requests
from tests.serving.replay import SHARED_MEMORY

FOLDER = Path(__file__).parent / "golden"
LIMIT_S = 0.06


def reference_records(
    fleet_file: Path, requests_file: Path, scheduler: str, limit_s: float
) -> list[dict[str, str]]:
    """Return the rows of ``records.csv`` for the requests at the experts their file assigns them to.

    In a request table a number of float32 stands where the file has a decimal, so quality is rounded.
    """
    fleet = read_fleet(fleet_file)
    arrival_s, table, expert = read_requests(requests_file, fleet.names)
    assert expert is not None
    outcomes, runs = simulate_fleet(
        fleet.profile, arrival_s, table.prompt_tokens, table.output_tokens, expert, scheduler
    )
    # A float32 simulator may order what lies closer than this the other way round.
    assert min(run.closest_tie_s for run in runs) > 1e-6
    rows = []
    for k, (outcome, n) in enumerate(zip(outcomes, expert, strict=True)):
        row = dict.fromkeys(CSV_COLUMNS, "")
        row |= {
            "request_id": str(k),
            "arrival_s": repr(float(arrival_s[k])),
            "status": outcome.status,
            "prompt_tokens": str(table.prompt_tokens[k]),
            "preemptions": str(outcome.preemptions),
            "qos": "0",
        }
        if outcome.status != DROPPED:
            generated = outcome.output_tokens or table.output_tokens[k, n]  # 0 where it was rejected
            row |= {"expert": fleet.names[n], "output_tokens": str(generated)}
        if outcome.status == COMPLETED:
            assert outcome.ttft_s is not None
            assert outcome.latency_s is not None
            per_token_s = outcome.latency_s / outcome.output_tokens
            quality = float(np.round(table.quality[k, n].astype(float), 6))
            row |= {
                "ttft_s": f"{outcome.ttft_s:.9g}",
                "latency_s": f"{outcome.latency_s:.9g}",
                "latency_per_token_s": f"{per_token_s:.9g}",
                "quality": f"{quality:.9g}",
                "qos": f"{quality if per_token_s <= limit_s else 0.0:.9g}",
            }
        rows.append(row)
    return rows


def read_records(file: Path) -> list[dict[str, str]]:
    """Return the rows of a ``records.csv``, whose header must be exactly that of the project."""
    with open(file, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == CSV_COLUMNS
    return rows


def _write() -> None:
    for scheduler in SHARED_MEMORY:
        rows = reference_records(FOLDER / "fleet.csv", FOLDER / "requests.csv", scheduler, LIMIT_S)
        with open(FOLDER / f"records_{scheduler}.csv", "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    _write()
