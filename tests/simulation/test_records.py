"""Records: shapes, the rule of QoS, and the CSV file as the project promises it."""

import csv
import dataclasses
import time

import numpy as np
import pytest

from qos_jax.simulation.records import RequestRecords, write_records_csv

GOLDEN = """\
request_id,arrival_s,expert,status,prompt_tokens,output_tokens,ttft_s,latency_s,preemptions,latency_per_token_s,quality,qos
0,0.0,"a, fast",completed,100,10,0.125,0.5,0,0.05,0.5,0.5
1,0.5,b,completed,200,5,0.25,1,2,0.2,1,0
2,1.0,b,rejected,300,7,,,0,,,0
3,1.25,,dropped,400,,,,0,,,0
4,2.0,"a, fast",completed,500,25,0.5,2,1,0.08,0.25,0.25
5,3.0,b,completed,600,1,0.75,1,0,1,1,0
"""


def _part(records: RequestRecords, part: slice) -> RequestRecords:
    return RequestRecords(**{f.name: getattr(records, f.name)[part] for f in dataclasses.fields(records)})


def test_csv_is_as_promised(records, limit_s, tmp_path):
    path = tmp_path / "run" / "records.csv"
    assert write_records_csv(path, records, ["a, fast", "b"], limit_s) == 6
    assert path.read_text() == GOLDEN


def test_chunks_give_the_same_file(records, limit_s, tmp_path):
    path = tmp_path / "records.csv"
    chunks = (_part(records, slice(start, start + 4)) for start in (0, 4))
    assert write_records_csv(path, chunks, ["a, fast", "b"], limit_s) == 6
    assert path.read_text() == GOLDEN


def test_nothing_is_left_of_a_file_that_fails(records, limit_s, tmp_path):
    def chunks():
        yield records
        raise RuntimeError("simulation failed")

    with pytest.raises(RuntimeError, match="simulation failed"):
        write_records_csv(tmp_path / "records.csv", chunks(), ["a", "b"], limit_s)
    assert list(tmp_path.iterdir()) == []


def test_csv_keeps_late_arrivals_and_its_own_arithmetic(tmp_path):
    rng = np.random.default_rng(0)
    n = 100_000
    run = RequestRecords(
        status=np.zeros(n),
        expert=np.zeros(n),
        arrival_s=np.sort(rng.random(n)) * 604_800,
        prompt_tokens=np.ones(n),
        output_tokens=rng.integers(1, 500, n),
        ttft_s=rng.random(n),
        latency_s=rng.random(n) * 20,
        preemptions=np.zeros(n),
        quality=rng.random(n),
    )
    start = time.perf_counter()
    write_records_csv(tmp_path / "records.csv", run, ["a"], 0.05)
    assert time.perf_counter() - start < 10  # about 0.6 s alone
    with open(tmp_path / "records.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["arrival_s"]) for row in rows] == run.arrival_s.tolist()
    for row in rows[::97]:
        within = float(row["latency_per_token_s"]) <= 0.05
        assert float(row["qos"]) == (float(row["quality"]) if within else 0)


def test_qos_is_quality_within_the_limit(records, limit_s):
    np.testing.assert_allclose(records.qos(limit_s), [0.5, 0, 0, 0, 0.25, 0])
    np.testing.assert_array_equal(records.within_limit(0.05), [True, False, False, False, False, False])


def test_at_picks_one_run(records):
    fields = {f.name: getattr(records, f.name) for f in dataclasses.fields(records)}
    both = RequestRecords(**{name: np.stack([values, values[::-1]])[None] for name, values in fields.items()})
    np.testing.assert_array_equal(both.at(0, 1).prompt_tokens, records.prompt_tokens[::-1])
    with pytest.raises(ValueError, match="leading axes"):
        records.at(0)


def test_differing_shapes_are_refused(records):
    with pytest.raises(ValueError, match="common shape"):
        dataclasses.replace(records, quality=records.quality[:-1])


def test_a_csv_holds_one_run(records, tmp_path):
    fields = {f.name: getattr(records, f.name)[None] for f in dataclasses.fields(records)}
    with pytest.raises(ValueError, match="one run"):
        write_records_csv(tmp_path / "records.csv", RequestRecords(**fields), ["a", "b"], 0.1)
